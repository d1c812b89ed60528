"""The layers of a model, named, from what its jaxpr does with the parameters."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

from jax.extend.core import ClosedJaxpr

from spectral_backends.jax.layers.families import Family, ParameterUses
from spectral_backends.jax.layers.parameter_uses import find_uses
from spectral_core.curvature.problem import LayerInfo
from spectral_core.matrices.names import TREE_ENDING, block_name, distinct_name, layer_names

__all__ = ["Layer", "find_layers"]

MIN_GROUP_RANK = 3
"""The shortest side that a group may have: below it a fit has too few directions."""


@dataclass(frozen=True)
class Layer:
    """A weight matrix: its public description and its index among the members of a family.

    Parameters
    ----------
    info : LayerInfo
        The name, kind and shape of the layer.
    family : Family
        The family of matrices that the same equations consume.
    member : int
        The index of the layer among the members of the family.
    hidden : str
        The reason why its uses do not tell everything about it. It is empty if they do.
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
        """Return the corner of the box in its family at which it begins."""
        return self.family.view.starts(self.family.offsets[self.member])

    @property
    def work(self) -> float:
        """Return the multiply-adds of its uses on the batch that was traced."""
        members = prod(length for length, _ in self.family.axes)
        return sum(use.work for use in self.family.uses) / members


def find_layers(
    jaxpr: ClosedJaxpr, names: Sequence[str], shapes: Sequence[tuple[int, ...]]
) -> tuple[dict[str, Layer], dict[str, str]]:
    """Return the layers by name, and the parameters that are no layer, with the reason.

    Parameters with fewer than two axes (biases, norms), or stacks of such, are neither. Layers
    come in the order of the forward pass.

    Parameters
    ----------
    jaxpr : ClosedJaxpr
        The jaxpr of the model. Its first arguments are the parameters.
    names, shapes : sequences
        The names and shapes of the parameters.
    """
    uses = find_uses(jaxpr, shapes)
    bases = _bases(names, shapes)
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
    begins = [sorted(start for each in seen.families for start in each.offsets) for seen in uses]
    layers: dict[str, Layer] = {}
    for base, labelled, family, hidden in sorted(found, key=lambda each: each[2].uses[0].path):
        for member, full in enumerate(labelled):
            full = distinct_name(full, layers, bases if full != base else ())
            index = begins[family.parameter].index(family.offsets[member])
            parameter = names[family.parameter]
            info = LayerInfo(full, family.kinds, family.view.shape, parameter, index)
            layers[full] = Layer(info, family, member, hidden)
    return layers, skipped


def _bases(names: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> list[str]:
    """Return the name of the layer of each parameter, without a root ``params`` of all."""
    if all(name.startswith("params.") for name in names):
        names = [name.removeprefix("params.") for name in names]
    return layer_names(names, TREE_ENDING, [len(shape) >= 2 for shape in shapes])


def _labels(bases: Sequence[str], index: int, family: Family, label: str) -> list[str]:
    """Return the names of a family's members: the index of a scanned block, then of a group."""
    base = bases[index]
    names = []
    for position in product(*(range(length) for length, _ in family.axes)):
        ending = [label] if label else []
        full, groups = base, list(position)
        if family.scanned and position:
            block = groups.pop(0)
            full = block_name(base, block, [bases[parameter] for parameter in family.scanned])
        if groups:
            number = 0
            for group, (length, _) in zip(groups, family.axes[-len(groups) :], strict=True):
                number = number * length + group
            ending.append(f"group{number}")
        names.append(".".join([full, *ending]))
    return names


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
