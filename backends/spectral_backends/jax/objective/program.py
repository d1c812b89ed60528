"""The model and its loss as jaxprs, one for each shape of batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr

from spectral_backends.jax.devices.placement import split_samples
from spectral_backends.jax.jaxprs.compilation import exact_products
from spectral_backends.jax.jaxprs.interpreter import evaluate
from spectral_backends.jax.jaxprs.work import multiply_adds
from spectral_backends.jax.layers.discovery import Layer, find_layers
from spectral_backends.jax.objective.parameters import Parameters
from spectral_core.errors import InputError

__all__ = ["Loss", "Program", "trace", "trace_loss"]

Loss = Callable[..., Any]


@dataclass(frozen=True)
class Program:
    """The computation for batches of one shape.

    Parameters
    ----------
    forward : ClosedJaxpr or None
        The outputs as a function of parameters and batch. None if the loss does not tell them.
    loss : ClosedJaxpr
        The loss as a function of outputs and batch; of parameters and batch, where there is no
        `forward`.
    parameters : Parameters
        The names and shapes of the parameters.
    structure : pytree structure
        The structure of the outputs; None without `forward`.
    """

    forward: ClosedJaxpr | None
    loss: ClosedJaxpr
    parameters: Parameters
    structure: Any

    @property
    def model(self) -> ClosedJaxpr:
        """Return the jaxpr that the parameters go into."""
        return self.loss if self.forward is None else self.forward

    @cached_property
    def found(self) -> tuple[dict[str, Layer], dict[str, str]]:
        """Return the layers, and the parameters that are none."""
        return find_layers(self.model, self.parameters.names, self.parameters.shapes)

    @property
    def single_output(self) -> bool:
        """Say whether the outputs are told, and are one array with an axis of samples."""
        avals = [] if self.forward is None else self.forward.out_avals
        return len(avals) == 1 and avals[0].ndim > 0

    @cached_property
    def work(self) -> float:
        """Return the multiply-adds of a forward pass, the loss included."""
        outputs = 0.0 if self.forward is None else multiply_adds(self.forward)
        return outputs + multiply_adds(self.loss)

    @property
    def layers(self) -> dict[str, Layer]:
        """Return the layers by name."""
        return self.found[0]

    def outputs(self, values: Sequence[Any], batch: Sequence[Any]) -> list[Any]:
        """Return the arrays that the loss is computed from."""
        assert self.forward is not None
        found = evaluate(self.forward, [*values, *batch])[0]
        return [split_samples(z) for z in found] if self.single_output else found

    def loss_of(self, outputs: Sequence[Any], batch: Sequence[Any]) -> Any:
        """Return the loss of outputs (or of parameters, where they are not told)."""
        return evaluate(self.loss, [*outputs, *batch])[0][0]

    def total(self, values: Sequence[Any], batch: Sequence[Any]) -> Any:
        """Return the loss of parameters."""
        seeds = values if self.forward is None else self.outputs(values, batch)
        return self.loss_of(seeds, batch)


def trace(
    loss_fn: Loss | tuple[Loss, Loss],
    parameters: Parameters,
    batch: Sequence[jax.Array],
    structure: Any,
) -> Program:
    """Trace the user's functions for batches like the given one.

    Raises
    ------
    InputError
        If they cannot be traced, or return what is no loss.
    """
    seeds, given = _shapes(parameters.values), _shapes(batch)
    n = len(seeds)

    def batch_of(flat: Sequence[Any]) -> Any:
        return jax.tree_util.tree_unflatten(structure, list(flat))

    if not isinstance(loss_fn, tuple):

        def whole(*flat: Any) -> Any:
            found = loss_fn(parameters.tree(list(flat[:n])), batch_of(flat[n:]))
            return _as_scalar("loss_fn", found)

        return Program(None, _traced("loss_fn", whole, seeds + given), parameters, None)
    forward, loss = loss_fn
    _check_pair(batch_of(batch))
    kept: list[Any] = []

    def outputs(*flat: Any) -> Any:
        inputs = batch_of(flat[n:])[:-1]
        found = forward(parameters.tree(list(flat[:n])), *inputs)
        leaves, kept[:] = _outputs(found)
        return leaves

    traced = _traced("forward", outputs, seeds + given)
    shapes = _shapes(traced.out_avals)
    closed = trace_loss(loss, kept[0], shapes, given, structure)
    return Program(traced, closed, parameters, kept[0])


def trace_loss(
    loss: Loss, outputs_structure: Any, outputs: Sequence[Any], batch: Sequence[Any], structure: Any
) -> ClosedJaxpr:
    """Trace ``loss(outputs, targets)`` as a function of flat outputs and the whole flat batch."""

    def of_outputs(*flat: Any) -> Any:
        z = jax.tree_util.tree_unflatten(outputs_structure, list(flat[: len(outputs)]))
        whole = jax.tree_util.tree_unflatten(structure, list(flat[len(outputs) :]))
        return _as_scalar("loss", loss(z, whole[-1]))

    return _traced("loss", of_outputs, [*outputs, *batch])


def _shapes(arrays: Sequence[Any]) -> list[Any]:
    make: Any = jax.ShapeDtypeStruct  # has no types
    return [make(array.shape, array.dtype) for array in arrays]


def _traced(name: str, function: Callable[..., Any], arguments: Sequence[Any]) -> ClosedJaxpr:
    try:
        with exact_products():
            return jax.make_jaxpr(function)(*arguments)
    except InputError:
        raise
    except jax.errors.ConcretizationTypeError as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(
            f"{name}: it needs the values of arrays while it is traced ({first}); make it a pure "
            "function that jax.jit accepts, with jnp.where or lax.cond in place of if."
        ) from error


def _outputs(found: Any) -> tuple[list[Any], list[Any]]:
    leaves, structure = jax.tree_util.tree_flatten(found)
    arrays = []
    for leaf in leaves:
        try:
            arrays.append(jnp.asarray(leaf))
        except (TypeError, ValueError) as error:
            raise InputError(
                f"forward: it returned a {type(leaf).__name__} among its outputs; return the array "
                "that the loss is computed from."
            ) from error
    if not arrays:
        raise InputError("forward: it returned no array; return what the loss is computed from.")
    return arrays, [structure]


def _as_scalar(name: str, found: Any) -> Any:
    leaves = jax.tree_util.tree_leaves(found)
    if isinstance(found, tuple) and len(leaves) > 1:
        raise InputError(
            f"{name}: it returned a tuple of {len(found)}; return the loss alone, without "
            "auxiliary values."
        )
    try:
        loss = jnp.asarray(found)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{name}: it returned a {type(found).__name__}; return a scalar array."
        ) from error
    if loss.size != 1:
        raise InputError(
            f"{name}: it returned an array of shape {loss.shape}; reduce it to a scalar, for "
            "instance with .mean()."
        )
    if not jnp.issubdtype(loss.dtype, jnp.floating):
        raise InputError(f"{name}: it returned a number of type {loss.dtype}; return a real one.")
    return loss.reshape(())


def _check_pair(batch: Any) -> None:
    if not isinstance(batch, tuple | list) or len(batch) < 2:
        shown = f"{type(batch).__name__} of {len(batch)}" if hasattr(batch, "__len__") else batch
        raise InputError(
            f"batches: a batch is a {shown}; with (forward, loss) it must be a tuple "
            "(*inputs, targets). Or pass loss_fn(params, batch), which reads any batch."
        )
