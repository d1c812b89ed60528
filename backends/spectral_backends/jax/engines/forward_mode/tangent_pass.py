"""Curvature of any layer by forward mode, with adjoints that layers share (Theory 5.9).

``h = <D, H D>`` is the second derivative of the loss along ``W + t D``. To second order, an
equation ``y = f(x)`` behind W adds ``d²f[ẋ, ẋ]`` to what its operands bring, and with
``λ = ∂L/∂y``::

    h = Σ_e <λ_e, d²f_e[ẋ, ẋ]>

over all nonlinear equations, those of the loss among them. The equations of the loss alone give
``h^GGN``. The tangents ẋ of a direction are one linear pass forward from its layer; the adjoints λ
are one pass backward, for all layers and directions of a batch; and the quantities that the
quadratic forms need are computed once for each batch and layer.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from spectral_backends.jax.jaxprs.chunks import in_chunks
from spectral_backends.jax.jaxprs.inner_product import inner_product
from spectral_backends.jax.jaxprs.interpreter import EquationPath, aval_of, bind, evaluate, walk
from spectral_backends.jax.jaxprs.nonlinear_equations import NonlinearEquation, NonlinearEquations
from spectral_backends.jax.layers.discovery import Layer
from spectral_backends.jax.objective.compiled import Batch, tallied
from spectral_backends.jax.objective.objective import Objective
from spectral_backends.jax.objective.program import Program

__all__ = ["TangentPass", "TangentTotals", "adjoints_at", "curvatures_forward"]

Equations = Mapping[EquationPath, NonlinearEquation]


@dataclass
class TangentTotals:
    """Running sums of one layer over the terms of all batches.

    Parameters
    ----------
    values, ggn, derivative : ndarray, shape (K,)
        The sums of the second derivative, of its Gauss-Newton part (zero where the outputs are not
        told) and of ``<∂l, D_k>``.
    problem : str
        The reason why there are none; empty if there are.
    work : float
        The multiply-adds, without those of the adjoints that all layers share.
    """

    values: npt.NDArray[np.float64]
    ggn: npt.NDArray[np.float64]
    derivative: npt.NDArray[np.float64]
    problem: str = ""
    work: float = 0.0


class TangentPass:
    """Sends directions of many layers forward through each batch.

    Parameters
    ----------
    objective : Objective
        The mean loss.
    layers : sequence of Layer
        All layers that may be asked for. Adjoints are computed for all of them, so that the choice
        of layers does not change a bit of a result.
    directions : mapping of str to (u, v)
        The vectors u and v of each layer, of shapes ``(m, K)`` and ``(n, K)``.
    second_order : bool
        Whether to add the second-order part of the network itself. Without it, `values` are those
        of `ggn`.
    together : callable
        ``together(batch, layer)`` is the number of directions that go together.

    Attributes
    ----------
    shared_work : float
        The multiply-adds of the adjoints.
    """

    def __init__(
        self,
        objective: Objective,
        layers: Sequence[Layer],
        directions: Mapping[str, tuple[Any, Any]],
        *,
        second_order: bool,
        together: Callable[[Batch, Layer], int],
    ) -> None:
        self._objective, self._directions = objective, directions
        self._names = [layer.info.name for layer in layers]
        self._second_order, self._together = second_order, together
        self.shared_work = 0.0
        self._nonlinear: dict[Any, dict[int, dict[EquationPath, NonlinearEquation]]] = {}
        self.totals = {}
        for name in self._names:
            values, ggn, derivative = np.zeros((3, directions[name][0].shape[1]))
            self.totals[name] = TangentTotals(values, ggn, derivative)

    def run(self, wanted: Collection[str], progress_callback: Callable[[str], None]) -> None:
        """Go through the data once for some of the layers.

        `progress_callback` is called with what is being computed.
        """
        for batch, terms in self._objective.weighted():
            layers = [batch.program.layers[name] for name in self._names]
            try:
                with tallied() as tally:
                    nonlinear = self._nonlinear_of(batch, layers)
                    adjoints = self._adjoints(batch, nonlinear)
            except (TypeError, ValueError, NotImplementedError) as error:
                for total in self.totals.values():
                    total.problem = total.problem or _sentence(error)
                return
            self.shared_work += tally.work
            for layer in layers:
                total = self.totals[layer.info.name]
                if layer.info.name in wanted and not total.problem:
                    progress_callback(f"{layer.info.name}, batch {batch.index + 1}")
                    self._add(
                        batch, layer, nonlinear[layer.parameter], adjoints, terms.scale, total
                    )

    def _add(
        self,
        batch: Batch,
        layer: Layer,
        nonlinear: Equations,
        adjoints: Mapping[EquationPath, Any],
        scale: float,
        total: TangentTotals,
    ) -> None:
        u, v = self._directions[layer.info.name]
        chunk = self._together(batch, layer)
        key = ("tangents", self._second_order, layer.family, u.shape[1], chunk)
        run = self._objective.cache.compiled(
            batch, key, lambda: curvatures_forward(batch.program, layer, nonlinear, chunk)
        )
        own = {path: adjoints[path] for path in nonlinear}
        try:
            with tallied() as tally:
                found = run(batch.values, batch.leaves, layer.starts, u, v, own)
        except (TypeError, ValueError, NotImplementedError) as error:
            total.problem = _sentence(error)
            return
        total.work += tally.work
        h, ggn, derivative = (scale * np.asarray(each, np.float64) for each in found)
        total.values += h
        total.ggn += ggn
        total.derivative += derivative

    def _nonlinear_of(
        self, batch: Batch, layers: Sequence[Layer]
    ) -> dict[int, dict[EquationPath, NonlinearEquation]]:
        """Return the nonlinear equations, by the parameter that moves."""
        if batch.key not in self._nonlinear:
            parameters = {layer.parameter for layer in layers}
            finder = NonlinearEquations(batch.program.model)
            self._nonlinear[batch.key] = {
                parameter: finder.of(parameter) if self._second_order else {}
                for parameter in parameters
            }
        return self._nonlinear[batch.key]

    def _adjoints(
        self, batch: Batch, nonlinear: Mapping[int, Equations]
    ) -> dict[EquationPath, Any]:
        equations = {path: found for each in nonlinear.values() for path, found in each.items()}
        if not equations:
            return {}
        key = ("adjoints", *sorted(equations))
        run = self._objective.cache.compiled(
            batch, key, lambda: adjoints_at(batch.program, equations)
        )
        adjoints: dict[EquationPath, Any] = run(batch.values, batch.leaves)
        return adjoints


def adjoints_at(program: Program, equations: Equations) -> Callable[..., dict[EquationPath, Any]]:
    """Return a function of parameters and batch: ``∂L/∂y`` of the results of some equations.

    A zero is added to each result, and the loss differentiated in it.
    """

    def add_fed(equation: Any, operands: Sequence[Any], fed: Any) -> tuple[Sequence[Any], None]:
        zeros = iter(fed)
        results = bind(equation, operands)
        return [y + next(zeros) if _is_real(y) else y for y in results], None

    def run(values: Sequence[Any], batch: Sequence[Any]) -> dict[EquationPath, Any]:
        def loss(feeds: dict[EquationPath, Any]) -> Any:
            handlers = dict.fromkeys(equations, add_fed)
            outputs, _ = evaluate(program.model, [*values, *batch], handlers, feeds)
            return outputs[0] if program.forward is None else program.loss_of(outputs, batch)

        adjoints: dict[EquationPath, Any] = jax.grad(loss)(_zeros(program, equations))
        return adjoints

    return run


def curvatures_forward(
    program: Program, layer: Layer, nonlinear: Equations, chunk: int
) -> Callable[..., tuple[Any, Any, Any]]:
    """Return a function that evaluates the quadratic forms of one batch.

    Parameters
    ----------
    program : Program
        The program for batches of one shape.
    layer : Layer
        Any member of a family. The member is an argument of the function.
    nonlinear : mapping of path to NonlinearEquation
        The equations of the model that are nonlinear in the layer's parameter.
    chunk : int
        The number of directions that go together.

    Returns
    -------
    callable
        ``(parameters, batch, starts, u, v, adjoints)`` with u ``(m, K)`` and v ``(n, K)`` returns
        three arrays ``(K,)`` of the batch's loss: the second derivative, its Gauss-Newton part
        (zero without `Program.forward`) and the first.
    """
    parameter, view = layer.parameter, layer.family.view

    def keep(equation: Any, operands: Sequence[Any], fed: Any) -> tuple[Sequence[Any], Any]:
        return bind(equation, operands), list(operands)

    def run(
        values: Sequence[Any], batch: Sequence[Any], starts: Any, u: Any, v: Any, adjoints: Any
    ) -> tuple[Any, Any, Any]:
        def model(weight: Any) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
            inputs = [*values[:parameter], weight, *values[parameter + 1 :], *batch]
            outputs, kept = evaluate(program.model, inputs, dict.fromkeys(nonlinear, keep))
            moving = {s: [kept[s][i] for i in found.moving] for s, found in nonlinear.items()}
            return ([z for z in outputs if _is_real(z)], moving), (outputs, kept)

        (reals, _), push, (outputs, kept) = jax.linearize(model, values[parameter], has_aux=True)
        forms = {s: found.form(kept[s], adjoints[s]) for s, found in nonlinear.items()}
        gradient, hessian = _of_the_loss(program, reals, outputs, batch)

        def along(pair: tuple[Any, Any]) -> tuple[Any, Any, Any]:
            forth, tangents = push(view.embed(jnp.outer(*pair), starts))
            ggn = sum(map(inner_product, forth, hessian(forth)))
            h = ggn + sum(form(tangents[path]) for path, form in forms.items())
            return h, ggn, sum(map(inner_product, forth, gradient))

        found: tuple[Any, Any, Any] = in_chunks(along, (u.T, v.T), chunk)
        return found

    return run


def _of_the_loss(
    program: Program, reals: list[Any], outputs: list[Any], batch: Sequence[Any]
) -> tuple[list[Any], Callable[[list[Any]], list[Any]]]:
    """Return gradient and Hessian of the loss in the outputs, the latter as a linear map."""
    if program.forward is None:  # the only output is the loss
        return [jnp.ones_like(z) for z in reals], lambda z: [jnp.zeros_like(each) for each in z]

    def loss(moved: list[Any]) -> Any:
        each = iter(moved)
        whole = [next(each) if _is_real(z) else z for z in outputs]
        return program.loss_of(whole, batch)

    gradient, hessian = jax.linearize(jax.grad(loss), reals)
    return gradient, hessian


def _zeros(program: Program, equations: Equations) -> dict[EquationPath, Any]:
    """Return a zero for each real result, with the iterations of the scans around it in front."""
    every = dict(walk(program.model))
    zeros = {}
    for path, found in equations.items():
        around = [every[path[:i]] for i in range(1, len(path))]
        lengths = [e.params["length"] for e in around if e.primitive.name == "scan"]
        avals = map(aval_of, found.equation.outvars)
        zeros[path] = [
            jnp.zeros((*lengths, *aval.shape), aval.dtype) for aval in avals if _is_real(aval)
        ]
    return zeros


def _is_real(value: Any) -> bool:
    return bool(jnp.issubdtype(value.dtype, jnp.floating))


def _sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"directions cannot be sent forward: {lines[0]}"
