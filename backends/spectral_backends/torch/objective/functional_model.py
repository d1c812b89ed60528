"""A model as a pure function of its parameters, on private copies of them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from spectral_backends.torch.distributed.shards import WHOLE_COPY, is_distributed, is_fully_sharded
from spectral_backends.torch.instruments.process_state import put_back
from spectral_core.errors import InputError
from spectral_core.storage.exclusive import exclusively

__all__ = ["FunctionalModel"]

T = TypeVar("T")


class FunctionalModel:
    """``(parameters, batch) → what the user's forward returns``, without touching the model.

    Parameters and buffers are copied (and cast), so that gradients, mode, hooks and running
    statistics of the user's model stay as they are.

    Parameters
    ----------
    model : nn.Module or callable
        A module, or a function ``model(params, *inputs)``.
    params : mapping of str to Tensor, optional
        The parameter dict of a function. It must be None for a module.
    forward : callable, optional
        ``forward(model, batch)`` returns the outputs. By default they are ``model(*batch[:-1])``.
    dtype : torch.dtype, optional
        The floating point type to compute in. By default it is the model's own, at least float32.
    device : torch.device, optional
        The device to compute on. By default it is that of the model.

    Attributes
    ----------
    parameters : dict of str to Tensor
        The copied parameters, in `dtype` on `device`. None of them requires a gradient.
    frozen : frozenset of str
        The names of parameters that the user froze.
    buffers : dict of str to Tensor
        The copied buffers. A forward pass may write to them.

    Raises
    ------
    InputError
        If the model has no parameters, lies on several devices or on none, or holds NaN.
    """

    def __init__(
        self,
        model: nn.Module | Callable[..., Any],
        params: Mapping[str, Tensor] | None,
        forward: Callable[[Any, Any], Any] | None,
        dtype: torch.dtype | None,
        device: torch.device | None,
    ) -> None:
        self._model, self._forward = _unwrapped(model), forward
        with exclusively():  # during another thread's pass a module holds that pass's parameters
            parameters, buffers, self.frozen = _tensors_of(self._model, params)
            _check_finite(parameters)
            self.device = device or _only_device(parameters)
            self.stored_dtype = _widest_dtype(parameters)
            self.dtype = dtype or torch.promote_types(self.stored_dtype, torch.float32)
            self.parameters = {name: self.cast(p, copy=True) for name, p in parameters.items()}
            self.buffers = {name: self.cast(b, copy=True) for name, b in buffers.items()}

    def in_type(self, dtype: torch.dtype) -> "FunctionalModel":
        """Return the same function of the same values in another floating point type."""
        other = copy(self)
        other.dtype = dtype
        other.parameters = {name: other.cast(p) for name, p in self.parameters.items()}
        other.buffers = {name: other.cast(b, copy=True) for name, b in self.buffers.items()}
        return other

    def __call__(self, parameters: Mapping[str, Tensor], batch: Any) -> Any:
        """Run the user's forward with these parameters (the others keep their copies)."""
        if isinstance(self._model, nn.Module):
            return self.hold(parameters, lambda: self._run(self._model, batch))
        return self._run(partial(self._model, self._state(parameters)), batch)

    def hold(self, parameters: Mapping[str, Tensor], action: Callable[[], T]) -> T:
        """Run `action` while a module holds these parameters instead of its own.

        A custom function may run parts of the forward pass again during a backward pass, so
        backward passes belong in here too.
        """
        if not isinstance(self._model, nn.Module):
            return action()
        names = {f"model.{name}": value for name, value in self._state(parameters).items()}
        held: T = torch.func.functional_call(_Holder(self._model), names, (action,))
        return held

    def _state(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {**self.parameters, **self.buffers, **parameters}

    def cast(self, value: Tensor, *, copy: bool = False) -> Tensor:
        """Return `value` on the device, in the dtype if it is floating point, without a graph."""
        dtype = self.dtype if value.is_floating_point() else value.dtype
        with torch.inference_mode(False):  # autograd refuses tensors made in inference mode
            return value.detach().to(self.device, dtype, copy=copy or value.is_inference())

    def cast_input(self, value: Tensor) -> Tensor:
        """Return a batch's tensor cast, in an object of its own that a forward may mark."""
        return self.cast(value).requires_grad_(value.requires_grad)

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Undo what forward passes write: to the buffers copied here, and to module attributes.

        Among them are the module's own parameters, for which `hold` lends it others.
        """
        buffers = {name: buffer.clone() for name, buffer in self.buffers.items()}
        modules = self._model.modules() if isinstance(self._model, nn.Module) else ()
        held = [
            (written, dict(written))
            for module in modules
            for written in (module._parameters, module._buffers, vars(module))
        ]

        def undo() -> None:
            self.buffers.update(buffers)
            for current, before in held:
                for name in current.keys() - before.keys():
                    del current[name]
                current.update(before)

        with put_back(undo):
            yield

    def is_training(self) -> bool:
        """Say whether any module of the model is in training mode."""
        return isinstance(self._model, nn.Module) and any(m.training for m in self._model.modules())

    def _run(self, model: Callable[..., Any], batch: Any) -> Any:
        if self._forward is not None:
            return self._forward(model, batch)
        return model(*inputs_of(batch))


class _Holder(nn.Module):
    """Gives `functional_call` a module around the user's, whose call runs any action."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, action: Callable[[], Any]) -> Any:
        """Run the action."""
        return action()


def _unwrapped(model: Any) -> Any:
    """Return the module inside a compiled or parallel one: its operations can be watched."""
    model = getattr(model, "_orig_mod", model)
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return model.module
    return model


def inputs_of(batch: Any) -> tuple[Any, ...]:
    """Return the inputs of a batch ``(*inputs, target)``."""
    if not isinstance(batch, (tuple, list)) or len(batch) < 2:
        raise InputError(
            f"batches: a batch is a {type(batch).__name__}, not a tuple (*inputs, target); "
            "pass forward=lambda model, batch: (model(...), targets) to say how to use it."
        )
    return tuple(batch[:-1])


def _tensors_of(
    model: nn.Module | Callable[..., Any], params: Mapping[str, Tensor] | None
) -> tuple[dict[str, Tensor], dict[str, Tensor], frozenset[str]]:
    if isinstance(model, nn.Module):
        if params is not None:
            raise InputError("params: a module brings its own parameters; leave params out.")
        if isinstance(model, torch.jit.ScriptModule):
            raise InputError("model: a scripted module hides its operations; pass the original.")
        named: dict[str, Tensor] = dict(model.named_parameters())
        frozen = frozenset(name for name, p in named.items() if not p.requires_grad)
        buffers: dict[str, Tensor] = dict(model.named_buffers())
    else:
        named, frozen, buffers = _checked_params(model, params), frozenset(), {}
    sharded = isinstance(model, nn.Module) and is_fully_sharded(model)
    for name, parameter in named.items():
        if sharded and is_distributed(parameter):
            raise InputError(
                f"model: parameter {name!r} is sharded by fully_shard, each rank holds a part of "
                f"it; {WHOLE_COPY}."
            )
        if parameter.layout != torch.strided or parameter.is_quantized:
            kind = "quantized" if parameter.is_quantized else "sparse"
            raise InputError(
                f"model: parameter {name!r} is {kind}; measure a copy with "
                f"{'dequantize' if parameter.is_quantized else 'to_dense'}() of it."
            )
    parameters = {n: p for n, p in named.items() if p.is_floating_point() or p.is_complex()}
    buffers |= {n: p for n, p in named.items() if n not in parameters}  # integers have no curvature
    if not parameters:
        raise InputError("model: it has no parameters, so there is no curvature to measure.")
    for name, parameter in parameters.items():
        if parameter.is_complex():
            raise InputError(f"model: parameter {name!r} is complex; only real ones are supported.")
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise InputError(f"model: parameter {name!r} is lazy; run one batch through it first.")
    return parameters, buffers, frozen


def _checked_params(
    model: Callable[..., Any], params: Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    if not callable(model):
        raise InputError(
            f"model: a {type(model).__name__} is neither a module nor a function of its parameters."
        )
    if params is None:
        raise InputError(
            "params: the model is a function; pass its parameters as params={name: tensor}, "
            "it is called as model(params, *inputs)."
        )
    if not isinstance(params, Mapping):
        raise InputError(
            f"params: a {type(params).__name__} has no names; pass a dict {{name: tensor}}."
        )
    for name, parameter in params.items():
        if not isinstance(name, str):
            raise InputError(f"params: {name!r} is a {type(name).__name__}; pass names as text.")
        if not isinstance(parameter, Tensor):
            raise InputError(
                f"params: {name!r} is a {type(parameter).__name__}; pass a flat dict of tensors."
            )
    return dict(params)


def _check_finite(parameters: Mapping[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        if parameter.device.type == "meta":
            raise InputError(f"model: parameter {name!r} is on the meta device, without values.")
        if count := count_not_finite(parameter):
            raise InputError(
                f"model: parameter {name!r} holds {count} NaN or infinite values of "
                f"{parameter.numel()}; load a checkpoint from before it diverged."
            )


def count_not_finite(tensor: Tensor) -> int:
    """Return the number of values that are NaN or infinite."""
    # Types of eight bits lack some operations.
    values = tensor.detach().float() if tensor.element_size() == 1 else tensor.detach()
    return int((~torch.isfinite(values)).sum())


def _only_device(parameters: Mapping[str, Tensor]) -> torch.device:
    devices = {parameter.device for parameter in parameters.values()}
    if len(devices) > 1:
        raise InputError(
            f"model: its parameters lie on {', '.join(sorted(map(str, devices)))}; move it to one "
            "device, or pass device= to measure copies there."
        )
    return devices.pop()


def _widest_dtype(parameters: Mapping[str, Tensor]) -> torch.dtype:
    dtypes = [parameter.dtype for parameter in parameters.values()]
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).bits)
