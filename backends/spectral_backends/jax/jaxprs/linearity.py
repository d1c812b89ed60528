"""Is a jaxpr piecewise linear in a parameter? Then ``h = h^GGN`` for its matrices (Theory 5.8).

Each variable carries the set of parameters that it depends on and the set of those in which it is
nonlinear, as bits. Sums and views join both. ``max``, ``abs`` and selections are piecewise linear.
Products are nonlinear in the parameters that both factors depend on. Comparisons and steps depend
on nothing. Any other operation is nonlinear in all parameters that it depends on.

In a scan over stacked blocks each iteration has a block of its own. What is carried depends on
*earlier* blocks, which get bits of their own: their product with the present one is linear in each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from spectral_backends.jax.jaxprs.interpreter import inner_jaxpr, is_scan, scan_counts

__all__ = ["find_curvature"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SUMS = _words(
    """
    add add_any sub neg reshape transpose broadcast_in_dim squeeze expand_dims slice pad concatenate
    rev reduce_sum cumsum convert_element_type copy copy_p reduce_window_sum split name
    sharding_constraint optimization_barrier reduce_precision gather dynamic_slice
    dynamic_update_slice scatter scatter-add scatter_add select_n device_put psum real imag
    """
)
_PIECES = _words(
    """
    max min abs clamp reduce_max reduce_min reduce_window_max reduce_window_min cummax cummin sort
    top_k
    """
)
_STEPS = _words(
    """
    eq ne lt le gt ge sign floor ceil round argmax argmin is_finite not and or xor stop_gradient
    reduce_and reduce_or
    """
)
_PRODUCTS = frozenset(["mul", "dot_general", "conv_general_dilated"])
_OWN_RULE = {"custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}


@dataclass(frozen=True)
class _State:
    """Holds the parameters that a variable depends on, and those in which it is nonlinear, as bits.

    `view` says that it is a parameter itself.
    """

    depends: int = 0
    nonlinear: int = 0
    view: bool = False

    def __or__(self, other: "_State") -> "_State":
        return _State(self.depends | other.depends, self.nonlinear | other.nonlinear)


def find_curvature(jaxpr: ClosedJaxpr, n_parameters: int) -> dict[int, str]:
    """Return the parameters in which results are nonlinear, with the first nonlinear operation.

    Parameters
    ----------
    jaxpr : ClosedJaxpr
        Its first arguments are the parameters.
    n_parameters : int
        The number of parameters.
    """
    reader = _Reader(n_parameters)
    states = [_State(1 << i, 0, True) for i in range(n_parameters)]
    states += [_State()] * (len(jaxpr.jaxpr.invars) - n_parameters)
    found = _joined(reader.read(jaxpr.jaxpr, states))
    return {
        i: reader.reasons.get(i, "an operation")
        for i in range(n_parameters)
        if found.nonlinear >> i & 1
    }


class _Reader:
    def __init__(self, n_parameters: int) -> None:
        self._n = n_parameters
        self.reasons: dict[int, str] = {}

    def read(self, jaxpr: Jaxpr, inputs: Sequence[_State]) -> list[_State]:
        """Return the states of the results of a jaxpr."""
        states: dict[Var, _State] = dict(zip(jaxpr.invars, inputs, strict=True))

        def of(atom: Any) -> _State:
            return _State() if isinstance(atom, Literal) else states.get(atom, _State())

        for equation in jaxpr.eqns:
            operands = [of(atom) for atom in equation.invars]
            if not any(state.depends for state in operands):
                continue
            results = self._results(equation, operands)
            states.update(zip(equation.outvars, results, strict=True))
        return [of(atom) for atom in jaxpr.outvars]

    def _results(self, equation: JaxprEqn, operands: list[_State]) -> list[_State]:
        name, params = equation.primitive.name, equation.params
        inner = inner_jaxpr(equation)
        if is_scan(equation):
            return self._scan(equation, operands)
        if inner is not None:
            return self.read(inner.jaxpr, operands)
        if name in _OWN_RULE and _OWN_RULE[name] in params:
            return self.read(params[_OWN_RULE[name]].jaxpr, operands)
        if name == "cond":  # the first operand only chooses the branch
            found = [self.read(branch.jaxpr, operands[1:]) for branch in params["branches"]]
            return [_joined(states) for states in zip(*found, strict=True)]
        return [self._result(name, params, operands)] * len(equation.outvars)

    def _result(self, name: str, params: Any, operands: list[_State]) -> _State:
        if name in _STEPS:
            return _State()
        if name == "convert_element_type" and operands[0].view:
            return operands[0]
        found = _joined(operands[1:] if name == "select_n" else operands)
        if name in _SUMS or name in _PIECES:
            return found
        if name == "integer_pow" and params["y"] == 1:
            return found
        if name in _PRODUCTS:
            nonlinear = operands[0].depends & operands[1].depends
        elif name == "div":
            nonlinear = operands[1].depends
        else:
            nonlinear = found.depends
        self._note(nonlinear, name)
        return _State(found.depends, found.nonlinear | nonlinear)

    def _note(self, bits: int, name: str) -> None:
        for i in range(self._n):
            if (bits | bits >> self._n) >> i & 1:
                self.reasons.setdefault(i, name)

    def _scan(self, equation: JaxprEqn, operands: list[_State]) -> list[_State]:
        body, (n_consts, n_carry) = equation.params["jaxpr"].jaxpr, scan_counts(equation)
        n_fixed = n_consts + n_carry
        consts, carry, scanned = operands[:n_consts], operands[n_consts:n_fixed], operands[n_fixed:]
        # Blocks are apart where nothing else that goes into the scan depends on the parameter.
        shared = _joined([*consts, *carry, *(s for s in scanned if not s.view)]).depends
        apart = _joined([s for s in scanned if s.view]).depends & ~shared
        while True:
            results = self.read(body, [*consts, *carry, *scanned])
            following = [
                before | self._earlier(after, apart)
                for before, after in zip(carry, results[:n_carry], strict=True)
            ]
            if [(s.depends, s.nonlinear) for s in following] == [
                (s.depends, s.nonlinear) for s in carry
            ]:
                break
            carry = following
        states = [*(before | after for before, after in zip(carry, results, strict=False))]
        return [self._together(s) for s in [*states, *results[n_carry:]]]

    def _earlier(self, state: _State, apart: int) -> _State:
        """Count the blocks of this iteration as earlier ones."""

        def moved(bits: int) -> int:
            return bits & ~apart | (bits & apart) << self._n

        return _State(moved(state.depends), moved(state.nonlinear))

    def _together(self, state: _State) -> _State:
        """Count earlier blocks as blocks."""
        low = (1 << self._n) - 1

        def joined(bits: int) -> int:
            return bits & low | bits >> self._n

        return _State(joined(state.depends), joined(state.nonlinear))


def _joined(states: Sequence[_State]) -> _State:
    found = _State()
    for state in states:
        found = found | state
    return found
