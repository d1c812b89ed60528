"""Which rule updates each array of a dict or list: T for matrices, AdamW for the rest."""

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from spectral_adapters.routing.alphas import Alpha, choose_alphas
from spectral_adapters.routing.names import kind_of_matrices, named_embedding, named_head
from spectral_adapters.routing.table import Route
from spectral_core import InputError, MatrixLayout, MatrixSpec, as_matrices

__all__ = ["Overrides", "route_arrays"]

Overrides = Mapping[str, "str | Mapping[str, Any]"]
"""Glob of names to ``"spectral"``, ``"adamw"``, or a dict with ``alpha`` or ``matrices``."""


def route_arrays(
    shapes: Mapping[str, tuple[int, ...]], alpha: Alpha, overrides: Overrides | None, named: bool
) -> list[Route]:
    """Return the route of each parameter, with its α.

    T gets what has two axes or more, as outputs × inputs or a convolution (out, in, kernel …); not
    a matrix with a side of 1, nor what its name says to be an embedding or an output head.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        By name.
    alpha : float, str, mapping, SpectralReport or path
        As in `choose_alphas`; nothing can be measured here, so not ``"auto"``.
    overrides : mapping, optional
        The first glob that matches counts.
    named : bool
        Whether names say something; those of a list are its indices.

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
    for pattern in overrides:
        if not any(fnmatchcase(name, pattern) for name in shapes):
            raise InputError(f"route: {pattern!r} matches none of {list(shapes)[:8]}.")
    routes = []
    for name, shape in shapes.items():
        route = _natural(name, shape, named)
        matching = [pattern for pattern in overrides if fnmatchcase(name, pattern)]
        if matching:
            route = _override(route, matching[0], overrides[matching[0]], named)
        routes.append(route)
    stacks = [as_matrices(r.shape, r.matrices).stack if r.matrices else () for r in routes]
    return choose_alphas(alpha, routes, stacks)


def _natural(name: str, shape: tuple[int, ...], named: bool) -> Route:
    if len(shape) < 2:
        return Route(name, shape, "adamw", "", "", "a vector" if shape else "a number")
    conv = len(shape) > 2
    layout = as_matrices(shape, "conv" if conv else "matrix")
    _, m, n = layout.matrices[0]
    layer = name.removesuffix(".weight")
    kind = _kind(name, layout, named)
    reason = f"{len(shape)} axes{': taken for a convolution' if conv else ''}"
    route = Route(name, shape, "spectral", kind, str(layout.spec), reason)
    if min(m, n) == 1:
        return replace(route, rule="adamw", reason=f"its matrices are {m}×{n}")
    if named and named_embedding(name):
        return replace(route, rule="adamw", reason="embedding: its name")
    if named and not conv and named_head(layer):
        return replace(route, rule="adamw", reason=f"output head: named {layer!r}")
    return route


def _kind(name: str, layout: MatrixLayout, named: bool) -> str:
    return kind_of_matrices(name.removesuffix(".weight") if named else "", layout)


def _override(route: Route, pattern: str, wanted: str | Mapping[str, Any], named: bool) -> Route:
    options: dict[str, Any] = dict(wanted) if isinstance(wanted, Mapping) else {"rule": wanted}
    rule = options.pop("rule", "spectral" if {"alpha", "matrices"} & set(options) else route.rule)
    alpha, spec = options.pop("alpha", None), options.pop("matrices", route.matrices)
    if options or rule not in ("spectral", "adamw") or not isinstance(spec, (str, MatrixSpec)):
        raise InputError(
            f"route: {wanted!r} for {pattern!r}; pass 'spectral', 'adamw', or a dict with 'alpha' "
            "or 'matrices' (a spec of as_matrices)."
        )
    if rule == "adamw":
        return replace(route, rule="adamw", reason=f"route {pattern!r}")
    if len(route.shape) < 2:
        if pattern == route.name:
            raise InputError(f"route: {route.name!r} of shape {route.shape} is no matrix.")
        return route  # a glob that meets biases too
    layout = as_matrices(route.shape, spec)
    return replace(
        route, rule="spectral", kind=_kind(route.name, layout, named),
        matrices=str(layout.spec), alpha=alpha,
        reason=f"route {pattern!r}", alpha_reason="" if alpha is None else f"α from {pattern!r}",
    )  # fmt: skip
