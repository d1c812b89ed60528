"""Which layers of a problem to measure: by glob, by several, or by a predicate."""

from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from spectral_core.errors import InputError
from spectral_core.problem import LayerInfo

__all__ = ["LayerSelection", "select_layers"]

LayerSelection = str | Iterable[str] | Callable[[LayerInfo], bool]


def select_layers(layers: Sequence[LayerInfo], selection: LayerSelection) -> list[LayerInfo]:
    """Select layers by glob, list of globs, or predicate, in the order of the forward pass.

    Parameters
    ----------
    layers : sequence of LayerInfo
        What there is to select from.
    selection : str, iterable of str, or callable
        A glob such as ``"layer2.*.conv*"``, several of them, or a function of a `LayerInfo`.

    Raises
    ------
    InputError
        If a pattern matches no layer, the predicate accepts none, or `selection` is none of these.
    """
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
