"""Finding the matrices among a model's parameters by the equations that consume them.

Each parameter is followed through a jaxpr. A *tracked view* stands for it: an array whose memory is
never touched, to which the same views and casts are applied. Its strides then tell which elements
of the parameter make up the matrix that an equation consumes. Inside a scan the slices of a stacked
parameter are one matrix for each iteration.

A product that neither meets data nor leads to outputs but by a single number is no use of a layer:
power iterations make a spectral norm of it, by which the matrix is then divided.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from spectral_backends.jax.jaxprs.interpreter import (
    EquationPath,
    aval_of,
    inner_jaxpr,
    is_scan,
    scan_counts,
)
from spectral_backends.jax.layers.families import Followed, ParameterUses, Product
from spectral_backends.jax.layers.matrix_view import tracked_root
from spectral_backends.jax.layers.readers import read_operand
from spectral_backends.jax.layers.view_tracking import tracked_results

__all__ = ["find_uses"]

_SCALINGS = ("mul", "div")
_COPIES = ("broadcast_in_dim", "reshape", "convert_element_type", "copy")
_WITHOUT_DERIVATIVE = ("stop_gradient", "shape_of")


def find_uses(jaxpr: ClosedJaxpr, shapes: Sequence[tuple[int, ...]]) -> list[ParameterUses]:
    """Return the uses of a jaxpr's first arguments, the parameters.

    Parameters
    ----------
    jaxpr : ClosedJaxpr
        The model.
    shapes : sequence of tuple of int
        The shapes of the parameters; other arguments follow them.
    """
    finder = _Finder(shapes)
    parameters, data = jaxpr.jaxpr.invars[: len(shapes)], jaxpr.jaxpr.invars[len(shapes) :]
    followed = {var: Followed(i, finder.uses[i].root) for i, var in enumerate(parameters)}
    known = _Known(followed, set(parameters), set(data))
    finder.follow(jaxpr, known, (), ())
    for var in jaxpr.jaxpr.outvars:
        finder.standing |= known.products_in(var)
    finder.record()
    return finder.uses


@dataclass
class _Known:
    """Holds the facts that are known about the variables of a jaxpr.

    `followed` are views of parameters; `dependent` depend on any parameter, and `data` on data.
    `numbers` are one number made of parameters alone, or copies of it in an array. `products` are
    those that a variable is made of without having met data, by their index in `_Finder.seen`.
    """

    followed: dict[Var, Followed]
    dependent: set[Var]
    data: set[Var]
    numbers: set[Var] = field(default_factory=set)
    products: dict[Var, frozenset[int]] = field(default_factory=dict)

    def products_in(self, atom: Any) -> frozenset[int]:
        """Return the products that a variable is made of."""
        return frozenset() if isinstance(atom, Literal) else self.products.get(atom, frozenset())

    def inside(self, equation: JaxprEqn, inner: Jaxpr, followed: dict[Var, Followed]) -> "_Known":
        """Return the facts that are known about the arguments of an equation's jaxpr."""
        pairs = list(zip(inner.invars, equation.invars, strict=True))
        return _Known(
            followed,
            {var for var, atom in pairs if _among(atom, self.dependent)},
            {var for var, atom in pairs if _among(atom, self.data)},
            {var for var, atom in pairs if _among(atom, self.numbers)},
            {var: self.products_in(atom) for var, atom in pairs},
        )


class _Finder:
    """Goes through jaxprs: `seen` are the products, `standing` those that are uses of a layer."""

    def __init__(self, shapes: Sequence[tuple[int, ...]]) -> None:
        self.uses = [ParameterUses(tracked_root(shape)) for shape in shapes]
        self.seen: list[Product] = []
        self.standing: set[int] = set()

    def follow(
        self, jaxpr: ClosedJaxpr, known: _Known, prefix: EquationPath, lengths: tuple[int, ...]
    ) -> None:
        """Go through a jaxpr, and add what is known of its variables; `lengths` are of scans."""
        for index, equation in enumerate(jaxpr.jaxpr.eqns):
            path = (*prefix, index)
            touched = [i for i, a in enumerate(equation.invars) if _among(a, known.followed)]
            inner, before = inner_jaxpr(equation), len(self.seen)
            if touched and inner is not None:
                self._enter(equation, inner, known, path, lengths)
            elif touched and equation.primitive.name not in _WITHOUT_DERIVATIVE:
                self._look(equation, touched, known, path, lengths)
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
            # A view is consumed later, and a single number does not pass its products on.
            known.products[var] = frozenset() if single or var in known.followed else made_of

    def record(self) -> None:
        """Add what stands to the uses; where nothing does, every product of the parameter."""
        standing = {self.seen[i].view.parameter for i in self.standing}
        for i, product in enumerate(self.seen):
            uses = self._uses_of(product.view)
            if i in self.standing or product.view.parameter not in standing:
                uses.add(product)
            else:
                uses.add_other("a product that meets no data")

    def _uses_of(self, view: Followed) -> ParameterUses:
        return self.uses[view.parameter]

    def _enter(
        self,
        equation: JaxprEqn,
        inner: ClosedJaxpr,
        known: _Known,
        path: EquationPath,
        lengths: tuple[int, ...],
    ) -> None:
        scan = is_scan(equation)
        n_consts, n_carry = scan_counts(equation) if scan else (len(equation.invars), 0)
        n_fixed = n_consts + n_carry
        candidates = (_lookup(atom, known.followed) for atom in equation.invars[n_fixed:])
        scanned = tuple(view.parameter for view in candidates if view is not None)
        followed: dict[Var, Followed] = {}
        inside = known.inside(equation, inner.jaxpr, followed)
        if scan:  # later iterations may carry values that depend on anything
            carried = inner.jaxpr.invars[n_consts:n_fixed]
            inside.dependent.update(carried)
            inside.data.update(carried if inside.data else ())
        for i, (var, atom) in enumerate(zip(inner.jaxpr.invars, equation.invars, strict=True)):
            view = _lookup(atom, known.followed)
            if view is None:
                continue
            if n_consts <= i < n_fixed:
                self._uses_of(view).add_other(
                    "carried by lax.scan: pass it as an input of the body"
                )
            elif i >= n_fixed:
                step = view.tracked.strides[0]
                self._uses_of(view).vectors |= view.tracked.ndim < 3
                followed[var] = Followed(
                    view.parameter, view.tracked[0], (*view.stack, step),
                    view.scanned or scanned, view.altered,
                )  # fmt: skip
            else:
                stack = (*view.stack, 0) if scan else view.stack
                followed[var] = Followed(
                    view.parameter, view.tracked, stack, view.scanned, view.altered
                )
        more = (*lengths, equation.params["length"]) if scan else lengths
        self.follow(inner, inside, path, more)
        for outer, result in zip(equation.outvars, inner.jaxpr.outvars, strict=True):
            known.products[outer] = inside.products_in(result)
            returned = _lookup(result, followed)
            if returned is not None and scan:
                self._uses_of(returned).add_other("returned from lax.scan")
            elif returned is not None:
                known.followed[outer] = returned

    def _look(
        self,
        equation: JaxprEqn,
        touched: list[int],
        known: _Known,
        path: EquationPath,
        lengths: tuple[int, ...],
    ) -> None:
        name = equation.primitive.name
        first = _lookup(equation.invars[touched[0]], known.followed)
        assert first is not None
        if touched == [0] or (len(touched) == 1 and name in _SCALINGS):
            results = tracked_results(equation, first.tracked)
            altered = ""
            if results is None and (scale := self._scale(equation, touched[0], known)):
                results, altered = [first.tracked], f"{name} by {scale}"
            if results is not None:
                inexact = jnp.issubdtype(aval_of(equation.outvars[0]).dtype, jnp.inexact)
                for var, tracked in zip(equation.outvars, results, strict=True):
                    if inexact:  # integers have no derivative
                        known.followed[var] = first.seen_as(tracked, altered)
                return
        for operand in touched:
            view = _lookup(equation.invars[operand], known.followed)
            assert view is not None
            consumed = read_operand(equation, operand, view.tracked)
            if consumed is None:
                self._uses_of(view).add_other(_REMEDIES.get(name, name))
            else:
                self.seen.append(Product(view, consumed, operand, equation, path, lengths))

    @staticmethod
    def _scale(equation: JaxprEqn, operand: int, known: _Known) -> str:
        """Return the factor by which an equation scales its operand, elementwise; or nothing."""
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


def _lookup(atom: Any, followed: dict[Var, Followed]) -> Followed | None:
    return None if isinstance(atom, Literal) else followed.get(atom)


def _among(atom: Any, variables: Iterable[Var]) -> bool:
    return not isinstance(atom, Literal) and atom in variables


_CARRIED = "carried by lax.scan: pass it as an input of the body"
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
