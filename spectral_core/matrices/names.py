"""The names of layers: from the names of parameters to those of layers, and back.

A backend names a layer after its parameter: ``up.kernel`` holds ``up``. Where a parameter holds
several matrices, a block of a stack has its number in the path (``blocks.0.up`` of
``blocks.up.kernel``), and any other part has a label at the end (``attn.in_proj.q``,
``conv.group1``). Reports know layers alone; `match_layers` finds their parameters.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

__all__ = [
    "ARRAY_ENDING",
    "MODULE_ENDING",
    "TREE_ENDING",
    "LayerMatches",
    "MatchedLayer",
    "block_name",
    "distinct_name",
    "layer_names",
    "match_layers",
    "parameter_name",
    "path_name",
]

ARRAY_ENDING = re.compile(r"(?<=.)\.weight$")
MODULE_ENDING = re.compile(r"(?<=.)[._]weight$")
"""As modules of PyTorch end their parameters: ``fc1.weight``, ``attn.in_proj_weight``."""
TREE_ENDING = re.compile(r"(?<=.)\.(kernel|weight|embedding|weights|w|embeddings)$")
"""As the layers of Flax, Haiku, Equinox and others call their matrices."""

_ROOT = "params"
_LABEL = re.compile(r"\.(?=[a-z])([qkv]|part\d+)?\.?(group(?P<group>\d+))?_*$")


def path_name(path: Iterable[Any]) -> str:
    """Return the dotted name of a leaf of a tree by its path, as `jax.tree_util` has it.

    The attribute ``value``, in which `flax.nnx` holds an array, is left out.
    """
    keys = list(path)
    if len(keys) > 1 and getattr(keys[-1], "name", None) == "value":
        del keys[-1]
    return ".".join(map(_key_text, keys))


def parameter_name(path: Iterable[Any]) -> str:
    """Return the name of a parameter by its path in a tree, with points for slashes of Haiku."""
    return _dotted(path_name(path)).strip(".") or _ROOT


def layer_names(
    parameters: Sequence[str], ending: re.Pattern[str], matrices: Sequence[bool] | None = None
) -> list[str]:
    """Return the name of the layer that each parameter holds.

    It is the parameter's name without an ending that says nothing, unless two names would then be
    the same.

    Parameters
    ----------
    parameters : sequence of str
        The dotted names of the parameters.
    ending : Pattern
        The ending that is dropped, such as `TREE_ENDING`.
    matrices : sequence of bool, optional
        A truth value for each parameter: True if it has two axes or more. The names of others are
        not compared.
    """
    short = [ending.sub("", name) for name in parameters]
    counted = [n for i, n in enumerate(short) if matrices is None or matrices[i]]
    return [
        base if counted.count(base) == 1 else name
        for base, name in zip(short, parameters, strict=True)
    ]


def block_name(base: str, block: int, together: Iterable[str]) -> str:
    """Return the name of one block of a stacked parameter.

    Parameters
    ----------
    base : str
        The name of the parameter's layer.
    block : int
        The number of the block.
    together : iterable of str
        The names of all parameters that are stacked with it. The number stands behind what they
        have in common.
    """
    shared = _common([name.split(".") for name in together])
    within = base.split(".")[len(shared) :]
    return ".".join([*shared, str(block), *within] if shared else [base, str(block)])


def distinct_name(name: str, *taken: Collection[str]) -> str:
    """Return a name that is not taken: underscores are appended until it is free."""
    while any(name in names for names in taken):
        name += "_"
    return name


@dataclass(frozen=True)
class MatchedLayer:
    """A layer that is a matrix of a parameter.

    Parameters
    ----------
    name : str
        The name of the layer.
    index : int or None
        The slice of the parameter's stack that holds the layer, counted along all stacked axes. It
        is None if the parameter is no stack, or if the name does not tell.
    """

    name: str
    index: int | None = None


@dataclass(frozen=True)
class LayerMatches:
    """The result of `match_layers`.

    Parameters
    ----------
    layers : list of list of MatchedLayer
        The layers of each parameter, in the order in which they were given.
    doubts : list of str
        One entry for each parameter: a layer that may as well belong to another parameter, or that
        stands beside another of one meaning. The entry is empty if there is no such layer.
    """

    layers: list[list[MatchedLayer]]
    doubts: list[str]


def match_layers(
    parameters: Sequence[str], layers: Iterable[str], stacks: Sequence[Sequence[int]]
) -> LayerMatches:
    """Find the parameter of each layer by their names, whichever framework either is of.

    Endings, a root ``params`` and the way in which numbers are written (``layers_0``, ``layers.0``)
    do not count, unless only they tell two parameters apart. A parameter has the layers of the
    strictest reading of their names that fits any. A layer that could belong to two parameters
    belongs to none.

    Parameters
    ----------
    parameters : sequence of str
        The dotted names of all parameters that hold matrices.
    layers : iterable of str
        The names of layers.
    stacks : sequence of sequence of int
        The lengths of the axes of each parameter that count independent matrices; empty for none.
    """
    found: list[list[MatchedLayer]] = [[] for _ in parameters]
    doubts = ["" for _ in parameters]
    pending = list(dict.fromkeys(layers))
    for reading, spelling in product((_as_whole, _as_part, _as_block), _SPELLINGS):
        known: dict[str, list[int]] = {}
        for i, name in enumerate(parameters):
            if not found[i]:
                known.setdefault(spelling.parameter(name), []).append(i)
        for layer in pending:
            fits = {
                (i, place.index(stacks[i]))
                for base, place in reading(spelling.before(layer))
                for i in known.get(spelling.layer(base), ())
                if place.fits(stacks[i])
            }
            single = len(fits) == 1
            for i, index in fits:
                if not single or (reading is _as_whole and found[i]):
                    doubts[i] = layer
                if single:
                    found[i].append(MatchedLayer(layer, index))
        taken = {match.name for matches in found for match in matches} | set(doubts)
        pending = [layer for layer in pending if layer not in taken]
    certain = [[] if doubt else own for own, doubt in zip(found, doubts, strict=True)]
    return LayerMatches(certain, doubts)


@dataclass(frozen=True)
class _Place:
    """The part of a parameter that the name of a layer tells."""

    block: int | None = None
    group: int | None = None

    def fits(self, stack: Sequence[int]) -> bool:
        """Return whether a stack has such a block."""
        return self.block is None or (len(stack) > 0 and self.block < stack[0])

    def index(self, stack: Sequence[int]) -> int | None:
        """Return the slice of a stack, or None if the name does not tell."""
        within = prod(stack) if self.block is None else prod(stack[1:])
        inner = 0 if within == 1 else self.group
        if not stack or inner is None or inner >= within:
            return None
        if self.block is None:
            return inner if self.group is not None else None
        return self.block * within + inner


_Reading = Callable[[str], Iterator[tuple[str, _Place]]]


def _as_whole(layer: str) -> Iterator[tuple[str, _Place]]:
    yield layer, _Place()


def _as_part(layer: str) -> Iterator[tuple[str, _Place]]:
    """Read ``conv.group1`` as a part of ``conv``."""
    if (found := _LABEL.search(layer)) and found.start():
        group = found["group"]
        yield layer[: found.start()], _Place(group=None if group is None else int(group))


def _as_block(layer: str) -> Iterator[tuple[str, _Place]]:
    """Read ``blocks.0.up``, and parts of it, as block 0 of ``blocks.up``."""
    for name, place in (*_as_whole(layer), *_as_part(layer)):
        segments = name.split(".")
        for i, segment in enumerate(segments):
            if len(segments) > 1 and segment.rstrip("_").isdecimal():
                rest = ".".join([*segments[:i], *segments[i + 1 :]])
                yield rest, _Place(int(segment.rstrip("_")), place.group)


@dataclass(frozen=True)
class _Spelling:
    """The normalisation of names for a comparison: `before` a layer is read, and after."""

    parameter: Callable[[str], str]
    layer: Callable[[str], str]
    before: Callable[[str], str] = str


def _bare(name: str) -> str:
    """Drop the root and the ending of a name, whatever framework it is of."""
    name = _dotted(name).removeprefix(f"{_ROOT}.")
    return TREE_ENDING.sub("", MODULE_ENDING.sub("", name)) or _ROOT


def _dotted(name: str) -> str:
    return re.sub(r"(/~)?/", ".", name)


def _apart(name: str) -> str:
    """Write ``layers_0.up`` as ``layers.0.up``."""
    return re.sub(r"_(\d+)(?=\.|$)", r".\1", name)


def _apart_and_bare(name: str) -> str:
    return _apart(_bare(name))


_SPELLINGS = (
    _Spelling(str, str),
    _Spelling(_bare, str),
    _Spelling(_bare, _bare),
    _Spelling(_apart_and_bare, _apart_and_bare, _apart),
)
"""From the strictest on."""


def _common(names: Sequence[Sequence[str]]) -> list[str]:
    """Return the parts that all names begin with."""
    shared: list[str] = []
    for parts in zip(*names, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return shared


def _key_text(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key).strip(".[]'\"")
