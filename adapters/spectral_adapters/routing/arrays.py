"""The rule that updates each array of a dict or list: T for matrices, AdamW for the rest."""

from collections.abc import Mapping
from dataclasses import replace

from spectral_adapters.routing.alphas import Alpha, choose_alphas
from spectral_adapters.routing.names import named_embedding, named_head
from spectral_adapters.routing.overrides import Override, Overrides, first_override, unmatched
from spectral_adapters.routing.table import Route
from spectral_adapters.routing.types import kind_of_matrices, thin_reason
from spectral_core import InputError, MatrixLayout, as_matrices

__all__ = ["Overrides", "route_arrays"]


def route_arrays(
    shapes: Mapping[str, tuple[int, ...]], alpha: Alpha, overrides: Overrides | None, named: bool
) -> list[Route]:
    """Return the route of each parameter, with its α.

    T gets arrays of two axes or more, as outputs × inputs or a convolution (out, in, kernel …).
    AdamW gets the rest, matrices with a side of 1, and the embeddings and output heads that are
    known by their names.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        The shapes of the parameters by name.
    alpha : float, str, mapping, SpectralReport or path
        The exponent, see `choose_alphas`. Nothing can be measured here, so ``"auto"`` is refused.
    overrides : mapping, optional
        The overrides by glob of names. The first glob that matches counts.
    named : bool
        Whether names say something. The names of a list are its indices, which do not.

    Raises
    ------
    InputError
        If a glob matches nothing, an override cannot be followed, or α is out of range.
    """
    if isinstance(alpha, str) and alpha == "auto":
        raise InputError(
            "alpha: 'auto' measures a model of PyTorch; measure your problem and pass the report."
        )
    overrides = dict(overrides or {})
    for pattern in unmatched(overrides, list(shapes)):
        raise InputError(f"route: {pattern!r} matches none of {list(shapes)[:8]}.")
    routes = []
    for name, shape in shapes.items():
        route, said = _natural(name, shape, named), first_override(overrides, [name])
        routes.append(route if said is None else _overridden(route, said, named))
    return choose_alphas(alpha, routes, each_slice=True)


def _natural(name: str, shape: tuple[int, ...], named: bool) -> Route:
    if len(shape) < 2:
        return Route(name, shape, "adamw", "", "", "a vector" if shape else "a number")
    conv = len(shape) > 2
    layout = as_matrices(shape, "conv" if conv else "matrix")
    layer = name.removesuffix(".weight")
    kind = _kind(name, layout, named)
    reason = f"{len(shape)} axes{': taken for a convolution' if conv else ''}"
    route = Route(name, shape, "spectral", kind, str(layout.spec), reason)
    if thin := thin_reason(layout.matrices):
        return replace(route, rule="adamw", reason=thin)
    if named and named_embedding(name):
        return replace(route, rule="adamw", reason="embedding: its name")
    if named and not conv and named_head(layer):
        return replace(route, rule="adamw", reason=f"output head: named {layer!r}")
    return route


def _kind(name: str, layout: MatrixLayout, named: bool) -> str:
    return kind_of_matrices(name.removesuffix(".weight") if named else "", layout)


def _overridden(route: Route, said: Override, named: bool) -> Route:
    pattern = said.pattern
    if said.options:
        raise InputError(
            f"route: {sorted(said.options)} for {pattern!r}; pass 'spectral', 'adamw', or a dict "
            "with 'rule', 'alpha' or 'matrices' (a spec of as_matrices)."
        )
    if (said.rule or route.rule) == "adamw":
        return replace(route, rule="adamw", reason=f"route {pattern!r}")
    if len(route.shape) < 2:
        if pattern == route.name:
            raise InputError(f"route: {route.name!r} of shape {route.shape} is no matrix.")
        return route  # a glob that meets biases too
    layout = said.layout(route)
    return replace(
        route, rule="spectral", kind=_kind(route.name, layout, named), matrices=str(layout.spec),
        reason=f"route {pattern!r}", alpha=said.alpha,
        alpha_reason="" if said.alpha is None else f"α from {pattern!r}",
    )  # fmt: skip
