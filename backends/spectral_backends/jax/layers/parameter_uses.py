"""Finding the matrices among a model's parameters by the equations that consume them.

Each parameter is followed through a jaxpr: views and casts are applied to a shadow of it without
memory, whose strides then tell which elements of the parameter make up the matrix that an equation
consumes. Inside a scan the slices of a stacked parameter are one matrix for each iteration.

A product that neither meets data nor leads to outputs but by a single number is no use of a layer:
power iterations make a spectral norm of it, by which the matrix is then divided.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from spectral_backends.jax.jaxprs.interpreter import (
    Site,
    aval_of,
    inner_jaxpr,
    is_scan,
    scan_counts,
)
from spectral_backends.jax.layers.matrix_view import MatrixView, Shadow, shadow_of
from spectral_backends.jax.layers.readers import Consumed, read_operand
from spectral_backends.jax.layers.rows import Rows
from spectral_backends.jax.layers.view_tracking import view_shadow

__all__ = ["Family", "ParameterUses", "Use", "find_uses"]

_SCALINGS = ("mul", "div")
_COPIES = ("broadcast_in_dim", "reshape", "convert_element_type", "copy")
_WITHOUT_DERIVATIVE = ("stop_gradient", "shape_of")


@dataclass(frozen=True)
class Use:
    """An equation that consumes the matrices of a family.

    Parameters
    ----------
    site : tuple of int
        Of the equation.
    operand : int
        Which of its operands the matrix is.
    rows : Rows
        Its inputs and outputs at each position.
    depth : int
        Number of scans around it.
    axes : tuple of int
        Lengths of the leading axes that scans, then groups, put before the positions.
    own : tuple of bool
        Which of these count the family's members; the others count positions.
    positions : tuple of int
        Lengths of the axes of positions that follow them.
    flipped : bool
        Whether it takes the family's outputs as its inputs, as a tied embedding is.
    kind : str
        The operation.
    work : int
        Multiply-adds.
    """

    site: Site
    operand: int
    rows: Rows
    depth: int
    axes: tuple[int, ...]
    own: tuple[bool, ...]
    positions: tuple[int, ...]
    flipped: bool
    kind: str
    work: int


@dataclass
class Family:
    """Matrices of one parameter that the same equations consume: blocks, groups, or just one.

    Parameters
    ----------
    parameter : int
        Index among the parameters.
    view : MatrixView
        Where the first one is.
    axes : tuple of (int, int)
        Members and the step to the next, for each axis that counts them; of scans first.
    scanned : tuple of int
        The scan's parameters, if its first axis is that of a scan; else empty.
    uses : list of Use
        Where they are consumed.
    """

    parameter: int
    view: MatrixView
    axes: tuple[tuple[int, int], ...]
    scanned: tuple[int, ...] = ()
    uses: list[Use] = field(default_factory=list)

    @property
    def offsets(self) -> list[int]:
        """Return where each member begins in the parameter."""
        found = [self.view.offset]
        for length, step in self.axes:
            found = [start + i * step for start in found for i in range(length)]
        return found

    @property
    def kinds(self) -> str:
        """Return the operations, in the order of their first use."""
        return "+".join(dict.fromkeys(use.kind for use in self.uses))


@dataclass
class ParameterUses:
    """Everything seen of one parameter: its matrices, and what else was done with it.

    `altered` are the operations by which constants changed it on the way to a matrix product.
    `vectors` says that it is a stack of vectors, such as the biases of scanned blocks.
    """

    families: list[Family] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    altered: list[str] = field(default_factory=list)
    vectors: bool = False


def find_uses(jaxpr: ClosedJaxpr, shapes: Sequence[tuple[int, ...]]) -> list[ParameterUses]:
    """Return what a jaxpr does with its first arguments, the parameters.

    Parameters
    ----------
    jaxpr : ClosedJaxpr
        Of the model.
    shapes : sequence of tuple of int
        Of the parameters; other arguments follow them.
    """
    finder = _Finder(shapes)
    parameters, data = jaxpr.jaxpr.invars[: len(shapes)], jaxpr.jaxpr.invars[len(shapes) :]
    followed = {var: _Followed(i, finder.roots[i]) for i, var in enumerate(parameters)}
    known = _Known(followed, set(parameters), set(data))
    finder.follow(jaxpr, known, (), ())
    for var in jaxpr.jaxpr.outvars:
        finder.standing |= known.products_in(var)
    finder.record()
    return finder.uses


@dataclass(frozen=True)
class _Followed:
    """A variable that is a view of a parameter.

    `stack` holds, for each scan around it, the step from one iteration's view to the next: 0 where
    all have the same. `scanned` are the parameters that are scanned together with it.
    """

    parameter: int
    shadow: Shadow
    stack: tuple[int, ...] = ()
    scanned: tuple[int, ...] = ()
    altered: str = ""

    def seen_as(self, shadow: Shadow, altered: str = "") -> "_Followed":
        return _Followed(self.parameter, shadow, self.stack, self.scanned, self.altered or altered)


@dataclass
class _Known:
    """What is known of the variables of a jaxpr.

    `followed` are views of parameters; `dependent` depend on any parameter, and `data` on data.
    `numbers` are one number made of parameters alone, or copies of it in an array. `products` are
    those that a variable is made of without having met data, by their place in `_Finder.seen`.
    """

    followed: dict[Var, _Followed]
    dependent: set[Var]
    data: set[Var]
    numbers: set[Var] = field(default_factory=set)
    products: dict[Var, frozenset[int]] = field(default_factory=dict)

    def products_in(self, atom: Any) -> frozenset[int]:
        """Return the products that a variable is made of."""
        return frozenset() if isinstance(atom, Literal) else self.products.get(atom, frozenset())

    def inside(self, equation: JaxprEqn, inner: Jaxpr, followed: dict[Var, _Followed]) -> "_Known":
        """Return what is known of the arguments of an equation's jaxpr."""
        pairs = list(zip(inner.invars, equation.invars, strict=True))
        return _Known(
            followed,
            {var for var, atom in pairs if _among(atom, self.dependent)},
            {var for var, atom in pairs if _among(atom, self.data)},
            {var for var, atom in pairs if _among(atom, self.numbers)},
            {var: self.products_in(atom) for var, atom in pairs},
        )


@dataclass(frozen=True)
class _Seen:
    """A product that consumes a view of a parameter."""

    known: _Followed
    consumed: Consumed
    operand: int
    equation: JaxprEqn
    site: Site
    lengths: tuple[int, ...]


class _Finder:
    """Goes through jaxprs: `seen` are the products, `standing` those that are uses of a layer."""

    def __init__(self, shapes: Sequence[tuple[int, ...]]) -> None:
        self.roots = [shadow_of(shape) for shape in shapes]
        self.uses = [ParameterUses() for _ in shapes]
        self.seen: list[_Seen] = []
        self.standing: set[int] = set()

    def follow(
        self, jaxpr: ClosedJaxpr, known: _Known, path: Site, lengths: tuple[int, ...]
    ) -> None:
        """Go through a jaxpr, and add what is known of its variables; `lengths` are of scans."""
        for index, equation in enumerate(jaxpr.jaxpr.eqns):
            site = (*path, index)
            touched = [i for i, a in enumerate(equation.invars) if _among(a, known.followed)]
            inner, before = inner_jaxpr(equation), len(self.seen)
            if touched and inner is not None:
                self._enter(equation, inner, known, site, lengths)
            elif touched and equation.primitive.name not in _WITHOUT_DERIVATIVE:
                self._look(equation, touched, known, site, lengths)
                for var in equation.outvars:
                    known.products[var] = frozenset(range(before, len(self.seen)))
            self._spread(equation, known)

    def _spread(self, equation: JaxprEqn, known: _Known) -> None:
        """Say of an equation's results what they are made of."""
        results, operands = equation.outvars, equation.invars
        if any(_among(atom, known.dependent) for atom in operands):
            known.dependent.update(results)
        made_of = frozenset().union(*map(known.products_in, (*operands, *results)))
        if any(_among(atom, known.data) for atom in operands):
            known.data.update(results)
            self.standing |= made_of
            made_of = frozenset()
        copied = equation.primitive.name in _COPIES and _among(operands[0], known.numbers)
        for var in results:
            single = prod(aval_of(var).shape) == 1
            if var in known.dependent - known.data and (single or copied):
                known.numbers.add(var)
            # A view of a parameter is consumed later, and a number tells nothing of outputs.
            known.products[var] = frozenset() if single or var in known.followed else made_of

    def record(self) -> None:
        """Add what stands to the uses; where nothing does, every product of the parameter."""
        standing = {self.seen[i].known.parameter for i in self.standing}
        for i, seen in enumerate(self.seen):
            if i in self.standing or seen.known.parameter not in standing:
                self._record(seen)
            else:
                self._record_other(seen.known, "a product that meets no data")

    def _enter(
        self,
        equation: JaxprEqn,
        inner: ClosedJaxpr,
        known: _Known,
        site: Site,
        lengths: tuple[int, ...],
    ) -> None:
        scan = is_scan(equation)
        n_consts, n_carry = scan_counts(equation) if scan else (len(equation.invars), 0)
        n_fixed = n_consts + n_carry
        candidates = (_lookup(atom, known.followed) for atom in equation.invars[n_fixed:])
        scanned = tuple(view.parameter for view in candidates if view is not None)
        followed: dict[Var, _Followed] = {}
        inside = known.inside(equation, inner.jaxpr, followed)
        if scan:  # what is carried may come to depend on anything later
            carried = inner.jaxpr.invars[n_consts:n_fixed]
            inside.dependent.update(carried)
            inside.data.update(carried if inside.data else ())
        for i, (var, atom) in enumerate(zip(inner.jaxpr.invars, equation.invars, strict=True)):
            view = _lookup(atom, known.followed)
            if view is None:
                continue
            if n_consts <= i < n_fixed:
                self._record_other(view, "carried by lax.scan: pass it as an input of the body")
            elif i >= n_fixed:
                step = view.shadow.strides[0]
                self.uses[view.parameter].vectors |= view.shadow.ndim < 3
                followed[var] = _Followed(
                    view.parameter, view.shadow[0], (*view.stack, step),
                    view.scanned or scanned, view.altered,
                )  # fmt: skip
            else:
                stack = (*view.stack, 0) if scan else view.stack
                followed[var] = _Followed(
                    view.parameter, view.shadow, stack, view.scanned, view.altered
                )
        more = (*lengths, equation.params["length"]) if scan else lengths
        self.follow(inner, inside, site, more)
        for outer, result in zip(equation.outvars, inner.jaxpr.outvars, strict=True):
            known.products[outer] = inside.products_in(result)
            returned = _lookup(result, followed)
            if returned is not None and scan:
                self._record_other(returned, "returned from lax.scan")
            elif returned is not None:
                known.followed[outer] = returned

    def _look(
        self,
        equation: JaxprEqn,
        touched: list[int],
        known: _Known,
        site: Site,
        lengths: tuple[int, ...],
    ) -> None:
        name = equation.primitive.name
        first = _lookup(equation.invars[touched[0]], known.followed)
        assert first is not None
        if touched == [0] or (len(touched) == 1 and name in _SCALINGS):
            shadows = view_shadow(equation, first.shadow)
            altered = ""
            if shadows is None and (scale := self._scale(equation, touched[0], known)):
                shadows, altered = [first.shadow], f"{name} by {scale}"
            if shadows is not None:
                inexact = jnp.issubdtype(aval_of(equation.outvars[0]).dtype, jnp.inexact)
                for var, shadow in zip(equation.outvars, shadows, strict=True):
                    if inexact:  # nothing is differentiated through whole numbers
                        known.followed[var] = first.seen_as(shadow, altered)
                return
        for operand in touched:
            view = _lookup(equation.invars[operand], known.followed)
            assert view is not None
            consumed = read_operand(equation, operand, view.shadow)
            if consumed is None:
                self._record_other(view, _REMEDIES.get(name, name))
            else:
                self.seen.append(_Seen(view, consumed, operand, equation, site, lengths))

    @staticmethod
    def _scale(equation: JaxprEqn, operand: int, known: _Known) -> str:
        """Return by what an equation multiplies its operand, element by element; or nothing."""
        if equation.primitive.name not in _SCALINGS:
            return ""
        if equation.primitive.name == "div" and operand != 0:
            return ""
        other = equation.invars[1 - operand]
        if aval_of(equation.invars[operand]).shape != aval_of(equation.outvars[0]).shape:
            return ""
        if _among(other, known.numbers):
            return "a number made of parameters"
        return "" if _among(other, known.dependent) else "a constant"

    def _record_other(self, known: _Followed, what: str) -> None:
        others = self.uses[known.parameter].others
        if what not in others:
            others.append(what)

    def _record(self, seen: _Seen) -> None:
        """Add a use to the family of its matrices."""
        known, consumed, equation, lengths = seen.known, seen.consumed, seen.equation, seen.lengths
        root, n = self.roots[known.parameter], consumed.group_axes
        groups = list(zip(consumed.shadow.shape[:n], consumed.shadow.strides[:n], strict=True))
        leading = [*zip(lengths, known.stack, strict=True), *groups]
        view = MatrixView.of(consumed.shadow[(0,) * n], root, consumed.out_axes)
        axes = tuple((length, step) for length, step in leading if step and length > 1)
        family = self._family(known, Family(known.parameter, view, axes, known.scanned), consumed)
        if family is None or not view.is_box:
            self._record_other(known, f"{equation.primitive.name} of elements in another order")
            return
        if known.altered and known.altered not in self.uses[known.parameter].altered:
            self.uses[known.parameter].altered.append(known.altered)
        outputs = sum(prod(aval_of(var).shape) for var in equation.outvars) * prod(lengths)
        family.uses.append(
            Use(
                site=seen.site,
                operand=seen.operand,
                rows=consumed.rows,
                depth=len(lengths),
                axes=tuple(length for length, _ in leading),
                own=tuple(bool(step) and length > 1 for length, step in leading),
                positions=_positions(consumed, equation),
                flipped=family.view.order != view.order,
                kind=consumed.kind,
                work=outputs * view.shape[1],
            )
        )

    def _family(self, known: _Followed, new: Family, consumed: Consumed) -> Family | None:
        """Return the family that a use belongs to; None if it takes the elements in disorder."""
        families = self.uses[known.parameter].families
        for family in families:
            if (family.axes, family.view.elements) != (new.axes, new.view.elements):
                continue
            outputs, inputs = family.view.order
            if new.view.order == (outputs, inputs):
                return family
            if new.view.order != (inputs, outputs):
                return None
            if family.kinds == "embedding" and consumed.kind != "embedding":
                # A tied head: its outputs are the logits.
                family.view = new.view
                family.uses = [_flip(use) for use in family.uses]
            return family
        if new.view.is_box:
            families.append(new)
        return new


def _positions(consumed: Consumed, equation: JaxprEqn) -> tuple[int, ...]:
    """Return the lengths of the axes of positions, as rows of the result have them."""
    aval = aval_of(equation.outvars[0])
    shape = jax.eval_shape(consumed.rows.outputs, aval).shape
    return tuple(shape[consumed.group_axes : -1])


def _flip(use: Use) -> Use:
    return Use(**(vars(use) | {"flipped": not use.flipped}))


def _lookup(atom: Any, followed: dict[Var, _Followed]) -> _Followed | None:
    return None if isinstance(atom, Literal) else followed.get(atom)


def _among(atom: Any, variables: Iterable[Var]) -> bool:
    return not isinstance(atom, Literal) and atom in variables


_OPAQUE = "inside {}, where it cannot be followed{}"
_REMEDIES = {
    "cond": _OPAQUE.format("lax.cond", ": write it with jnp.where or outside of the branches"),
    "while": _OPAQUE.format("lax.while_loop", ": write it with lax.scan"),
    "shard_map": _OPAQUE.format("shard_map", ": use jit with sharded arrays"),
    "custom_jvp_call": _OPAQUE.format(
        "a function with jax.custom_jvp", ": multiply by the parameter outside of it"
    ),
    "custom_vjp_call": _OPAQUE.format(
        "a function with jax.custom_vjp", ": multiply by the parameter outside of it"
    ),
}
