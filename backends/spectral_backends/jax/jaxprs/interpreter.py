"""Evaluating a jaxpr with some of its equations replaced: the base of every transformation here.

An *equation path* names an equation: its index in the jaxpr, or, inside the jaxpr of another
equation, the indices that lead to it. `evaluate` runs a jaxpr and calls a *handler* in place of
each equation that has one::

    def handler(equation, operands, fed):
        (y,) = bind(equation, operands)
        return [y + fed], operands[0]  # outputs of the equation, and what to keep

    outputs, kept = evaluate(jaxpr, inputs, {path: handler}, {path: zeros_like_y})

What goes into a handler beside its operands (`fed`) and what it keeps are pytrees, passed as
arguments and results, so that the whole is a pure function: differentiate it in the feeds and it
gives cotangents at the paths, ``vmap`` it, jit it. A handler may return any outputs of the
equation's types: a probe adds a zero, a tangent rule puts something else in.

Equations inside ``jit`` are reached by inlining, inside ``remat`` under a new ``jax.checkpoint``,
inside ``scan`` by a new scan. What is fed there, and what is kept, has one leading axis for each
scan around the equation, by the index of the iteration also where the scan runs backwards.

Equations that no given path leads into are bound as they are, so custom derivative rules, control
flow and compiled functions keep their meaning. No path leads into an equation whose jaxpr is not
its definition (``custom_jvp_call``) or is not straight (``cond``, ``while``, ``shard_map``):
`inner_jaxpr` is None for it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from spectral_backends.jax.devices.sample_shares import in_shares, is_in_shares

__all__ = [
    "EquationPath",
    "Handler",
    "aval_of",
    "bind",
    "evaluate",
    "inner_jaxpr",
    "is_scan",
    "scan_counts",
    "walk",
]

EquationPath = tuple[int, ...]
"""The indices that lead to an equation, from the outermost jaxpr inward."""

Handler = Callable[[JaxprEqn, Sequence[Any], Any], tuple[Sequence[Any], Any]]
"""``handler(equation, operands, fed)`` returns the equation's outputs and what is to be kept."""

_INLINED = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr"}
_CHECKPOINTED = ("checkpoint", "remat", "remat2")


def evaluate(
    jaxpr: ClosedJaxpr,
    inputs: Sequence[Any],
    handlers: Mapping[EquationPath, Handler] | None = None,
    feeds: Mapping[EquationPath, Any] | None = None,
) -> tuple[list[Any], dict[EquationPath, Any]]:
    """Evaluate a jaxpr, with handlers in place of some equations.

    Parameters
    ----------
    jaxpr : ClosedJaxpr
        The jaxpr, as ``jax.make_jaxpr`` returns it.
    inputs : sequence of arrays
        The arguments of the jaxpr. They may be traced.
    handlers : mapping of path to handler
        The equations to replace, each with its handler.
    feeds : mapping of path to pytree
        The values that the handlers receive. A handler that is not named receives None. Inside
        scans the values have the iterations of the scans as leading axes.

    Returns
    -------
    outputs : list of arrays
        The outputs of the jaxpr.
    kept : dict of path to pytree
        The values that the handlers kept. Inside scans they have the iterations of the scans as
        leading axes.
    """
    shared = {path: _bound for path, equation in walk(jaxpr) if is_in_shares(equation)}
    every = {**shared, **(handlers or {})}
    outputs, kept = _evaluate(jaxpr.jaxpr, jaxpr.consts, inputs, every, dict(feeds or {}))
    return outputs, {path: kept[path] for path in handlers or ()}


def bind(equation: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
    """Compute what an equation computes."""
    primitive = cast(Any, equation.primitive)  # has no types
    found = primitive.get_bind_params(equation.params)
    # Up to JAX 0.9 the functions of custom rules are returned beside the parameters.
    functions, params = found if isinstance(found, tuple) else ((), found)

    def run(*given: Any) -> list[Any]:
        with equation.ctx.manager:
            results = primitive.bind(*functions, *given, **params)
        return list(results) if primitive.multiple_results else [results]

    results: list[Any] = in_shares(equation, run)(*operands)
    return results


def _bound(equation: JaxprEqn, operands: Sequence[Any], fed: Any) -> tuple[Sequence[Any], None]:
    return bind(equation, operands), None


def aval_of(atom: Any) -> Any:
    """Return the abstract array of a variable: its shape and dtype."""
    return atom.aval


def inner_jaxpr(equation: JaxprEqn) -> ClosedJaxpr | None:
    """Return the jaxpr that paths may lead into: of ``jit``, ``remat``, ``scan``; else None."""
    name = equation.primitive.name
    if name in _CHECKPOINTED:
        return ClosedJaxpr(equation.params["jaxpr"], ())
    key = "jaxpr" if name == "scan" else _INLINED.get(name)
    if key is None:
        return None
    found = equation.params[key]
    return found if isinstance(found, ClosedJaxpr) else ClosedJaxpr(found, ())


def is_scan(equation: JaxprEqn) -> bool:
    """Say whether the inner jaxpr runs once for each index of a leading axis."""
    return bool(equation.primitive.name == "scan")


def scan_counts(equation: JaxprEqn) -> tuple[int, int]:
    """Return the number of operands of a scan that are constants, and of those it carries."""
    params = equation.params
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    constants, carried, _ = params["ft_in"].unpack()  # from JAX 0.11 on
    return len(constants), len(carried)


def walk(jaxpr: ClosedJaxpr, prefix: EquationPath = ()) -> Iterator[tuple[EquationPath, JaxprEqn]]:
    """Yield every equation that a path may name, each before those inside of it."""
    for index, equation in enumerate(jaxpr.jaxpr.eqns):
        path = (*prefix, index)
        yield path, equation
        inner = inner_jaxpr(equation)
        if inner is not None:
            yield from walk(inner, path)


def _evaluate(
    jaxpr: Jaxpr,
    consts: Sequence[Any],
    inputs: Sequence[Any],
    handlers: dict[EquationPath, Handler],
    feeds: dict[EquationPath, Any],
) -> tuple[list[Any], dict[EquationPath, Any]]:
    values: dict[Var, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    kept: dict[EquationPath, Any] = {}
    for index, equation in enumerate(jaxpr.eqns):
        operands = [read(atom) for atom in equation.invars]
        within = _within(index, handlers)
        if () in within:
            outputs, kept[(index,)] = within[()](equation, operands, feeds.get((index,)))
        elif within:
            outputs, found = _evaluate_inside(equation, operands, within, _within(index, feeds))
            kept |= {(index, *path): what for path, what in found.items()}
        else:
            outputs = bind(equation, operands)
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars], kept


def _within(index: int, paths: Mapping[EquationPath, Any]) -> dict[EquationPath, Any]:
    """Return the entries at or inside an equation, by the rest of the path."""
    return {path[1:]: what for path, what in paths.items() if path[0] == index}


def _evaluate_inside(
    equation: JaxprEqn,
    operands: Sequence[Any],
    handlers: dict[EquationPath, Handler],
    feeds: dict[EquationPath, Any],
) -> tuple[Sequence[Any], dict[EquationPath, Any]]:
    inner = inner_jaxpr(equation)
    if inner is None:
        raise ValueError(
            f"no equation path leads inside {equation.primitive.name!r}: {list(handlers)}"
        )

    def run(
        inputs: Sequence[Any], fed: dict[EquationPath, Any]
    ) -> tuple[list[Any], dict[EquationPath, Any]]:
        return _evaluate(inner.jaxpr, inner.consts, inputs, handlers, fed)

    params = equation.params
    if is_scan(equation):
        return _scan(equation, operands, run, feeds)
    if equation.primitive.name in _CHECKPOINTED:
        run = jax.checkpoint(run, prevent_cse=params["prevent_cse"], policy=params["policy"])
    return run(operands, feeds)


def _scan(
    equation: JaxprEqn,
    operands: Sequence[Any],
    run: Callable[
        [Sequence[Any], dict[EquationPath, Any]], tuple[list[Any], dict[EquationPath, Any]]
    ],
    feeds: dict[EquationPath, Any],
) -> tuple[Sequence[Any], dict[EquationPath, Any]]:
    """Scan anew, with the feeds among what is scanned and what is kept among what is stacked."""
    params, (n_consts, n_carry) = equation.params, scan_counts(equation)
    consts, rest = operands[:n_consts], operands[n_consts:]

    def body(carry: list[Any], each: tuple[list[Any], Any]) -> tuple[list[Any], Any]:
        slices, fed = each
        outputs, kept = run([*consts, *carry, *slices], fed)
        return outputs[:n_carry], (outputs[n_carry:], kept)

    carry, (stacked, kept) = lax.scan(
        body, list(rest[:n_carry]), (list(rest[n_carry:]), feeds),
        length=params["length"], reverse=params["reverse"], unroll=params["unroll"],
    )  # fmt: skip
    return [*carry, *stacked], kept
