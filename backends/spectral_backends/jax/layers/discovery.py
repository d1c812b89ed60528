"""The layers of a model, named, from what its jaxpr does with the parameters."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

from jax.extend.core import ClosedJaxpr

from spectral_backends.jax.layers.families import Family, ParameterUses
from spectral_backends.jax.layers.parameter_uses import find_uses
from spectral_core.curvature.problem import LayerInfo

__all__ = ["Layer", "find_layers"]

MIN_GROUP_RANK = 3
"""Groups with a smaller side below this have too few directions for any fit."""

_LEAF_NAMES = ("kernel", "weight", "embedding", "weights", "w", "embeddings")


@dataclass(frozen=True)
class Layer:
    """A weight matrix: its public description and its place among the members of a family.

    Parameters
    ----------
    info : LayerInfo
        Name, kind and shape.
    family : Family
        Matrices that the same equations consume.
    member : int
        Which of them it is.
    hidden : str
        Why its uses are not all there is to know of it; empty if they are.
    """

    info: LayerInfo
    family: Family
    member: int
    hidden: str

    @property
    def parameter(self) -> int:
        """Return the index of its parameter."""
        return self.family.parameter

    @property
    def starts(self) -> tuple[int, ...]:
        """Return where it begins in its family's box."""
        return self.family.view.starts(self.family.offsets[self.member])

    @property
    def work(self) -> float:
        """Return the multiply-adds of its uses on the batch that was traced."""
        members = prod(length for length, _ in self.family.axes)
        return sum(use.work for use in self.family.uses) / members


def find_layers(
    jaxpr: ClosedJaxpr, names: Sequence[str], shapes: Sequence[tuple[int, ...]]
) -> tuple[dict[str, Layer], dict[str, str]]:
    """Return the layers by name, and the parameters that are none with the reason.

    Parameters with fewer than two axes (biases, norms), or stacks of such, are neither. Layers
    come in the order of the forward pass.

    Parameters
    ----------
    jaxpr : ClosedJaxpr
        Of the model; its first arguments are the parameters.
    names, shapes : sequences
        Of the parameters.
    """
    uses = find_uses(jaxpr, shapes)
    bases = _base_names(names, shapes)
    skipped: dict[str, str] = {}
    found: list[tuple[str, list[str], Family, str]] = []
    for index, seen in enumerate(uses):
        if len(shapes[index]) < 2 or (seen.vectors and not seen.families):
            continue
        if reason := _why_no_layer(seen):
            skipped[bases[index]] = reason
            continue
        for part, family in enumerate(seen.families):
            label = f"part{part}" if len(seen.families) > 1 else ""
            found.append(
                (bases[index], _labels(bases, index, family, label), family, _hidden(seen))
            )
    layers: dict[str, Layer] = {}
    for base, labelled, family, hidden in sorted(found, key=lambda each: each[2].uses[0].site):
        for member, full in enumerate(labelled):
            while full in layers or (full != base and full in bases):
                full += "_"  # another parameter has that name
            info = LayerInfo(full, family.kinds, family.view.shape)
            layers[full] = Layer(info, family, member, hidden)
    return layers, skipped


def _base_names(names: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> list[str]:
    """Drop what says nothing: ``params`` in front of all, ``kernel`` behind, unless two agree."""
    if all(name.startswith("params.") for name in names):
        names = [name.removeprefix("params.") for name in names]
    leaf = "|".join(_LEAF_NAMES)
    short = [re.sub(rf"(?<=.)\.({leaf})$", "", name) for name in names]
    matrices = [name for name, shape in zip(short, shapes, strict=True) if len(shape) >= 2]
    return [
        base if matrices.count(base) == 1 else name for base, name in zip(short, names, strict=True)
    ]


def _labels(bases: Sequence[str], index: int, family: Family, label: str) -> list[str]:
    """Return the names of a family's members: the index of a scanned block, then of a group."""
    base = bases[index]
    names = []
    for place in product(*(range(length) for length, _ in family.axes)):
        ending = [label] if label else []
        full, groups = base, list(place)
        if family.scanned and place:
            block = groups.pop(0)
            shared = _common([bases[parameter] for parameter in family.scanned])
            within = base.split(".")[len(shared) :]
            full = ".".join([*shared, str(block), *within] if shared else [base, str(block)])
        if groups:
            number = 0
            for position, (length, _) in zip(groups, family.axes[-len(groups) :], strict=True):
                number = number * length + position
            ending.append(f"group{number}")
        names.append(".".join([full, *ending]))
    return names


def _common(names: Sequence[str]) -> list[str]:
    """Return the parts that all names begin with."""
    shared: list[str] = []
    for parts in zip(*(name.split(".") for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return shared


def _why_no_layer(seen: ParameterUses) -> str:
    if not seen.families and not seen.others:
        return "no equation of the model uses it, or only under stop_gradient"
    if not seen.families:
        return (
            "no matrix product, convolution or lookup uses it as it is stored (seen: "
            f"{', '.join(sorted(seen.others))})"
        )
    if all(family.axes and min(family.view.shape) < MIN_GROUP_RANK for family in seen.families):
        count = sum(len(family.offsets) for family in seen.families)
        m, n = seen.families[0].view.shape
        return (
            f"its {count} groups are {m}×{n} matrices, of rank {min(m, n)} at most: "
            "too few directions for a fit"
        )
    return ""


def _hidden(seen: ParameterUses) -> str:
    if seen.others:
        return f"it is used otherwise too ({', '.join(seen.others)})"
    if seen.altered:
        return f"it is changed on its way ({', '.join(seen.altered)})"
    return ""
