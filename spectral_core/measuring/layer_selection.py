"""The selection of layers to measure: by glob, by several globs, or by a predicate."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

from spectral_core.curvature.problem import LayerInfo
from spectral_core.errors import InputError

__all__ = ["LayerSelection", "select_layers"]

LayerSelection = str | Iterable[str] | Callable[[LayerInfo], bool]


def select_layers(
    layers: Sequence[LayerInfo],
    selection: LayerSelection,
    *,
    skipped: Mapping[str, str] = MappingProxyType({}),
) -> list[LayerInfo]:
    """Select layers by glob, list of globs, or predicate, in the order of the forward pass.

    Parameters
    ----------
    layers : sequence of LayerInfo
        The layers to select from.
    selection : str, iterable of str, or callable
        A glob such as ``"layer2.*.conv*"``, several globs, or a function of a `LayerInfo`.
    skipped : mapping of str to str
        The parameters that are no layer, with the reason. An error message cites the reason if one
        of them is asked for.

    Raises
    ------
    InputError
        If there is no layer, a pattern matches none, the predicate accepts none, or `selection` is
        none of these.

    Examples
    --------
    >>> import spectral_core as sc
    >>> layers = [sc.LayerInfo("conv1", "conv2d", (8, 27)), sc.LayerInfo("fc", "linear", (10, 8))]
    >>> [layer.name for layer in sc.select_layers(layers, "conv*")]
    ['conv1']
    >>> [layer.name for layer in sc.select_layers(layers, lambda layer: layer.kind == "linear")]
    ['fc']
    """
    if not layers:
        raise InputError(
            "layers: the problem has no layer to select; "
            + (f"skipped: {_reasons(skipped)}" if skipped else "it has no weight matrix.")
        )
    if callable(selection):
        chosen = [layer for layer in layers if selection(layer)]
        if not chosen:
            raise InputError(
                f"layers: the predicate accepted none of the {len(layers)} layers; "
                f"there are: {_listing([layer.name for layer in layers])}."
            )
        return chosen
    patterns = [selection] if isinstance(selection, str) else _as_list(selection)
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise InputError(
            f"layers: {selection!r} is neither a glob, nor a list of globs, nor a predicate; pass "
            "for instance 'layer2.*'."
        )
    if not patterns:
        raise InputError("layers: the list of patterns is empty; pass '*' for every layer.")
    names = [layer.name for layer in layers]
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in names):
            if out := {name: why for name, why in skipped.items() if _matches(name, pattern)}:
                raise InputError(
                    f"layers: {pattern!r} matches none of the {len(names)} layers, only parameters "
                    f"that were skipped: {_reasons(out)}"
                )
            near = get_close_matches(pattern, names) or names
            raise InputError(
                f"layers: {pattern!r} matches none of the {len(names)} layers; "
                f"did you mean: {_listing(near)}?"
            )
    return [layer for layer in layers if any(_matches(layer.name, p) for p in patterns)]


def _as_list(selection: Any) -> list[Any]:
    return list(selection) if isinstance(selection, Iterable) else [selection]


def _matches(name: str, pattern: str) -> bool:
    # A literal name wins over its reading as a glob, so that every name selects itself.
    return name == pattern or fnmatchcase(name, pattern)


def _listing(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(names[:most])
    return shown + (f", … ({len(names)} in all)" if len(names) > most else "")


def _reasons(skipped: Mapping[str, str], most: int = 3) -> str:
    """Return the first parameters that were skipped with the reasons, to end a sentence."""
    shown = [f"{name!r} ({why.rstrip('.')})" for name, why in list(skipped.items())[:most]]
    more = f", … ({len(skipped)} in all)" if len(skipped) > most else ""
    return ", ".join(shown) + more + "."
