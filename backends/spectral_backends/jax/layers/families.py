"""The matrices of a parameter, in families: those that the same equations consume."""

from dataclasses import dataclass, field, replace
from math import prod

import jax
from jax.extend.core import JaxprEqn

from spectral_backends.jax.jaxprs.interpreter import EquationPath, aval_of
from spectral_backends.jax.layers.matrix_view import MatrixView, TrackedView
from spectral_backends.jax.layers.readers import Consumed
from spectral_backends.jax.layers.rows import Rows

__all__ = ["Family", "Followed", "ParameterUses", "Product", "Use"]


@dataclass(frozen=True)
class Use:
    """An equation that consumes the matrices of a family.

    Parameters
    ----------
    path : tuple of int
        The path of the equation.
    operand : int
        The index of the operand that is the matrix.
    rows : Rows
        Its inputs and outputs at each position.
    depth : int
        The number of scans around it.
    axes : tuple of int
        The lengths of the leading axes that scans, then groups, put in front of the positions.
    own : tuple of bool
        Whether each of these counts the family's members; the others count positions.
    positions : tuple of int
        The lengths of the axes of positions that follow them.
    flipped : bool
        Whether it takes the family's outputs as its inputs, as a tied embedding is.
    kind : str
        The operation.
    work : int
        The number of its multiply-adds.
    """

    path: EquationPath
    operand: int
    rows: Rows
    depth: int
    axes: tuple[int, ...]
    own: tuple[bool, ...]
    positions: tuple[int, ...]
    flipped: bool
    kind: str
    work: int


@dataclass(eq=False)
class Family:
    """Matrices of one parameter that the same equations consume: blocks, groups, or just one.

    Parameters
    ----------
    parameter : int
        Its index among the parameters.
    view : MatrixView
        The parameter slice of the first one.
    axes : tuple of (int, int)
        The number of members and the step to the next, for each axis that counts them. Axes of
        scans come first.
    scanned : tuple of int
        The scan's parameters, if the first axis is that of a scan. Otherwise it is empty.
    uses : list of Use
        The equations that consume them.
    """

    parameter: int
    view: MatrixView
    axes: tuple[tuple[int, int], ...]
    scanned: tuple[int, ...] = ()
    uses: list[Use] = field(default_factory=list)

    @property
    def offsets(self) -> list[int]:
        """Return the offset of each member in the parameter."""
        found = [self.view.offset]
        for length, step in self.axes:
            found = [start + i * step for start in found for i in range(length)]
        return found

    @property
    def kinds(self) -> str:
        """Return the operations, in the order of their first use."""
        return "+".join(dict.fromkeys(use.kind for use in self.uses))


@dataclass(frozen=True)
class Followed:
    """A variable that is a view of a parameter.

    Parameters
    ----------
    parameter : int
        The index of the parameter.
    tracked : ndarray
        Its tracked view, whose strides say where the elements lie in the parameter.
    stack : tuple of int
        The step from one iteration's view to the next, for each scan around it: 0 where all have
        the same.
    scanned : tuple of int
        The parameters that are scanned together with it.
    altered : str
        The operation by which constants changed it on the way; empty if none did.
    """

    parameter: int
    tracked: TrackedView
    stack: tuple[int, ...] = ()
    scanned: tuple[int, ...] = ()
    altered: str = ""

    def seen_as(self, tracked: TrackedView, altered: str = "") -> "Followed":
        """Return another view of it."""
        return Followed(self.parameter, tracked, self.stack, self.scanned, self.altered or altered)


@dataclass(frozen=True)
class Product:
    """An equation that consumes a view of a parameter as matrices.

    Parameters
    ----------
    view : Followed
        The view that it consumes.
    consumed : Consumed
        The way in which it does.
    operand : int
        The index of the operand that is the view.
    equation : JaxprEqn
        The equation.
    path : tuple of int
        The path of the equation.
    lengths : tuple of int
        The lengths of the scans around it.
    """

    view: Followed
    consumed: Consumed
    operand: int
    equation: JaxprEqn
    path: EquationPath
    lengths: tuple[int, ...]

    @property
    def leading(self) -> list[tuple[int, int]]:
        """Return length and step of each axis in front of the matrix: of scans, then of groups."""
        tracked, n = self.consumed.tracked, self.consumed.group_axes
        groups = zip(tracked.shape[:n], tracked.strides[:n], strict=True)
        return [*zip(self.lengths, self.view.stack, strict=True), *groups]

    def use(self, *, width: int, flipped: bool) -> Use:
        """Return it as a use of matrices with `width` inputs."""
        outputs = sum(prod(aval_of(var).shape) for var in self.equation.outvars)
        return Use(
            path=self.path,
            operand=self.operand,
            rows=self.consumed.rows,
            depth=len(self.lengths),
            axes=tuple(length for length, _ in self.leading),
            own=tuple(bool(step) and length > 1 for length, step in self.leading),
            positions=self._positions,
            flipped=flipped,
            kind=self.consumed.kind,
            work=outputs * prod(self.lengths) * width,
        )

    @property
    def _positions(self) -> tuple[int, ...]:
        """Return the lengths of the axes of positions, as rows of the result have them."""
        aval = aval_of(self.equation.outvars[0])
        shape = jax.eval_shape(self.consumed.rows.outputs, aval).shape
        return tuple(shape[self.consumed.group_axes : -1])


@dataclass
class ParameterUses:
    """Everything seen of one parameter: its matrices, and what else was done with it.

    Parameters
    ----------
    root : ndarray
        The tracked view of the whole parameter.
    families : list of Family
        Its matrices.
    others : list of str
        The other operations on it.
    altered : list of str
        The operations by which constants changed it on the way to a matrix product.
    vectors : bool
        Whether it is a stack of vectors, such as the biases of scanned blocks.
    """

    root: TrackedView
    families: list[Family] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    altered: list[str] = field(default_factory=list)
    vectors: bool = False

    def add_other(self, what: str) -> None:
        """Add an operation that is no use of a matrix."""
        if what not in self.others:
            self.others.append(what)

    def add(self, product: Product) -> None:
        """Add a use to the family of its matrices."""
        seen, consumed = product.view, product.consumed
        view = MatrixView.of(
            consumed.tracked[(0,) * consumed.group_axes], self.root, consumed.out_axes
        )
        axes = tuple((length, step) for length, step in product.leading if step and length > 1)
        family = self._family(Family(seen.parameter, view, axes, seen.scanned), consumed.kind)
        if family is None or not view.is_box:
            self.add_other(f"{product.equation.primitive.name} of elements in another order")
            return
        if seen.altered and seen.altered not in self.altered:
            self.altered.append(seen.altered)
        flipped = family.view.order != view.order
        family.uses.append(product.use(width=view.shape[1], flipped=flipped))

    def _family(self, new: Family, kind: str) -> Family | None:
        """Return the family that a use belongs to; None if it takes the elements in disorder."""
        for family in self.families:
            if (family.axes, family.view.elements) != (new.axes, new.view.elements):
                continue
            outputs, inputs = family.view.order
            if new.view.order == (outputs, inputs):
                return family
            if new.view.order != (inputs, outputs):
                return None
            if family.kinds == "embedding" and kind != "embedding":
                # A tied head: its outputs are the logits.
                family.view = new.view
                family.uses = [replace(use, flipped=not use.flipped) for use in family.uses]
            return family
        if new.view.is_box:
            self.families.append(new)
        return new
