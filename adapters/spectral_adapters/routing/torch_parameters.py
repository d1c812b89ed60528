"""The rule of each parameter of a model: T for weight matrices, AdamW for the rest."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from spectral_adapters.routing.overrides import Override, Overrides, first_override, unmatched
from spectral_adapters.routing.table import Route, RoutingTable
from spectral_adapters.routing.torch_modules import (
    LayerType,
    embedding_reason,
    layer_type,
    output_heads,
)
from spectral_adapters.routing.types import kind_of_matrices, thin_reason
from spectral_backends.torch.distributed.shards import is_flat_shard
from spectral_core import InputError, MatrixSpec, as_matrices

__all__ = [
    "FLAT_SHARD",
    "Overrides",
    "Route",
    "RoutingTable",
    "route_parameter",
    "route_parameters",
]

FLAT_SHARD = "a flat shard of matrices"
"""The reason why a vector is none of the model's own."""


def route_parameters(model: nn.Module, overrides: Overrides | None = None) -> list[Route]:
    """Return the route of every parameter of a model, in the order of `named_parameters`.

    T gets the weight matrices of linear maps, convolutions, attention and recurrent layers. AdamW
    gets embeddings, output heads, norms, biases, vectors, weights that two modules share, and
    matrices with a side of 1. Frozen parameters are left out.

    Parameters
    ----------
    model : nn.Module
        A model; wrappers such as `torch.compile` and DataParallel are looked through.
    overrides : mapping of str to str or mapping, optional
        The overrides, by globs of parameter names: ``"spectral"``, ``"adamw"`` or a dict of options
        such as ``{"alpha": 1.0, "matrices": "conv groups=2", "lr": 0.1}``. The first glob that
        matches counts. ``alpha`` or ``matrices`` mean ``"spectral"``, other options keep the rule.

    Raises
    ------
    InputError
        If a glob matches no parameter, or an override cannot be followed.
    """
    overrides = dict(overrides or {})
    for pattern, wanted in overrides.items():
        Override.read(pattern, wanted)
    heads, owned = output_heads(model, _clean), list(_owned_parameters(model))
    if lost := unmatched(overrides, [name for each in owned for name in each.names]):
        raise InputError(
            f"route: {sorted(lost)} match no parameter; there are for instance "
            f"{[each.names[0] for each in owned[:5]]}."
        )
    routes = []
    for each in owned:
        route, said = _natural(each, heads), first_override(overrides, each.names)
        routes.append(route if said is None else _overridden(route, said))
    return routes


def route_parameter(parameter: Tensor, name: str = "", matrices: str = "") -> Route:
    """Return the route of a parameter of which only the shape and perhaps a name are known."""
    shape = tuple(parameter.shape)
    path, _, last = name.rpartition(".")
    if parameter.ndim < 2:
        reason = FLAT_SHARD if is_flat_shard(parameter, last) else _axes(parameter)
        return Route(name, shape, "adamw", "", "", reason, parameter)
    found = layer_type(None, path, last, parameter, None)
    if matrices:
        kind = _kind(name, shape, matrices, found.kind)
        found = LayerType(kind, matrices, "matrices as given")
    route = _spectral(name, parameter, found)
    if thin := thin_reason(as_matrices(route.shape, route.matrices).matrices):
        return Route(name, shape, "adamw", "", "", thin, parameter)
    return route


@dataclass(frozen=True)
class _Owned:
    """A parameter with all its names, the first module that holds it, and how many modules do."""

    parameter: Tensor
    names: list[str]
    module: nn.Module
    path: str
    parent: nn.Module | None
    holders: int


def _owned_parameters(model: nn.Module) -> Iterator[_Owned]:
    names: dict[int, list[str]] = {}
    holders: dict[int, set[tuple[int, str]]] = {}
    first: dict[int, tuple[Tensor, nn.Module, str]] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    for path, module in modules.items():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            key = id(parameter)
            names.setdefault(key, []).append(_clean(f"{path}.{name}" if path else name))
            # A module that is registered twice holds its parameter once.
            holders.setdefault(key, set()).add((id(module), name))
            first.setdefault(key, (parameter, module, path))
    for key, (parameter, module, path) in first.items():
        parent = modules.get(path.rpartition(".")[0]) if path else None
        yield _Owned(parameter, names[key], module, _clean(path), parent, len(holders[key]))


def _natural(owned: _Owned, heads: Mapping[int, str]) -> Route:
    """Return the route without overrides."""
    parameter, name = owned.parameter, owned.names[0]
    shape = tuple(parameter.shape)
    if not parameter.requires_grad:
        reason = "frozen when the optimizer was made"
        return Route(name, shape, "left out", "", "", reason, parameter)
    if parameter.ndim < 2:
        return Route(name, shape, "adamw", "", "", _vector_reason(owned), parameter)
    last = name.rpartition(".")[2]
    found = layer_type(owned.module, owned.path, last, parameter, owned.parent)
    route = _spectral(name, parameter, found, checked=False)
    if reason := _why_adamw(owned, last, heads):
        return replace(route, rule="adamw", reason=reason)
    if not found.matrices:
        reason = f"{found.reason}; name its matrices with route="
        return replace(route, rule="adamw", reason=reason)
    if thin := thin_reason(as_matrices(route.shape, route.matrices).matrices):
        return replace(route, rule="adamw", reason=thin)
    return route


def _why_adamw(owned: _Owned, last: str, heads: Mapping[int, str]) -> str:
    if owned.holders > 1:
        return f"tied: also {', '.join(owned.names[1:])}"
    if reason := embedding_reason(owned.module, owned.path, last):
        return reason
    kind = type(owned.module).__name__
    if "Norm" in kind:
        return f"norm: {kind}"
    return heads.get(id(owned.parameter), "")


def _vector_reason(owned: _Owned) -> str:
    kind = type(owned.module).__name__
    if is_flat_shard(owned.parameter, owned.names[0].rpartition(".")[2], owned.module):
        return FLAT_SHARD
    if "Norm" in kind:
        return f"norm: {kind}"
    return "bias" if "bias" in owned.names[0] else _axes(owned.parameter)


def _axes(parameter: Tensor) -> str:
    return "a vector" if parameter.ndim else "a number"


def _spectral(name: str, parameter: Tensor, found: LayerType, checked: bool = True) -> Route:
    shape = tuple(parameter.shape)
    if checked:
        as_matrices(shape, found.matrices)
    return Route(name, shape, "spectral", found.kind, found.matrices, found.reason, parameter)


def _overridden(route: Route, said: Override) -> Route:
    if route.rule == "left out":
        return route
    pattern, rule = said.pattern, said.rule or route.rule
    if rule == "spectral" and len(route.shape) < 2:
        return replace(route, options=said.options)
    reason = f"route {pattern!r}"
    if rule == route.rule:
        reason = f"{route.reason}; {reason}"
    if rule == "adamw":
        return replace(route, rule="adamw", reason=reason, options=said.options)
    matrices = said.matrices or route.matrices
    if not matrices:
        raise InputError(
            f"route: {route.name!r} of shape {route.shape} has matrices of unknown layout; pass "
            f"{{{pattern!r}: {{'matrices': …}}}} with a spec of as_matrices."
        )
    return replace(
        route, rule="spectral", kind=_kind(route.name, route.shape, matrices, route.kind),
        matrices=str(matrices), reason=reason, alpha=said.alpha,
        alpha_reason="" if said.alpha is None else f"α from route {pattern!r}",
        options=said.options,
    )  # fmt: skip


def _kind(name: str, shape: tuple[int, ...], matrices: MatrixSpec | str, known: str) -> str:
    return kind_of_matrices(name.removesuffix(".weight"), as_matrices(shape, matrices), known)


def _clean(name: str) -> str:
    """Drop the parts that `torch.compile`, DataParallel and checkpointing add to names."""
    name = re.sub(r"(^|(?<=\.))(_orig_mod|_checkpoint_wrapped_module)(\.|$)", "", name)
    return re.sub(r"^module\.", "", name).removesuffix(".")
