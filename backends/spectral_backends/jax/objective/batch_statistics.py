"""Models that normalise by statistics of their batch, as batch norm does in training mode.

Its loss then depends on how the data are cut into batches. The model is traced once more, without
any values, for a number of samples that a prime divides which divides no other length: whatever is
done to axes, those whose length it divides hold the samples. A *statistic* has lost them all; where
a root of one comes back into an array of samples, as a standard deviation does, samples meet.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from enum import IntEnum
from itertools import chain
from math import gcd
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from spectral_backends.jax.jaxprs.compilation import compile_exactly
from spectral_backends.jax.jaxprs.interpreter import aval_of, inner_jaxpr, is_scan, scan_counts
from spectral_backends.jax.objective.compiled import Batch
from spectral_backends.jax.objective.parameters import Parameters
from spectral_backends.jax.objective.program import Loss, Program, trace
from spectral_core.errors import NonDeterministicError

__all__ = ["refuse_batch_statistics"]

_ROOTS = ("sqrt", "rsqrt", "cbrt", "pow", "cholesky", "eigh", "svd")
_PRIMES = (11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71)


class _What(IntEnum):
    """Names the kind of a value. If several kinds come together, the later one wins."""

    CONSTANT = 0
    PARAMETER = 1
    DATA = 2
    STATISTIC = 3
    ROOT = 4
    NORMALISED = 5
    INSIDE = 6
    """Normalised, and then met by a parameter: a loss may normalise as well."""


def refuse_batch_statistics(
    loss_fn: Loss | tuple[Loss, Loss], parameters: Parameters, batch: Batch
) -> None:
    """Raise `NonDeterministicError` if the model normalises by statistics of its batch.

    The check is made if the model can be traced for another number of samples. In some layouts the
    first axis is not that of samples, so it is enough that samples keep apart along one axis.
    """
    names = {e.primitive.name for jaxpr in _all_jaxprs(batch.program.model) for e in jaxpr.eqns}
    if names.isdisjoint(_ROOTS):
        return
    seen = [_samples_meet(loss_fn, parameters, batch, 0)]
    if seen[0] is not False or "scan" in names:  # a scan may run over time, as the first axis
        seen.append(_samples_meet(loss_fn, parameters, batch, 1))
    if True in seen and not (
        False in seen and _keep_apart(loss_fn, parameters, batch, seen.index(False))
    ):
        raise NonDeterministicError(
            "a normalisation uses the statistics of each batch, as batch norm does in training "
            "mode, so the loss depends on the batching. Use its evaluation mode "
            "(use_running_average=True of Flax, model.eval() of nnx, equinox.nn.inference_mode, "
            "is_training=False of Haiku). Or pass check_deterministic=False to measure the "
            "function that these batches make."
        )


def _samples_meet(
    loss_fn: Loss | tuple[Loss, Loss], parameters: Parameters, batch: Batch, axis: int
) -> bool | None:
    """Say whether samples along an axis of the batch meet; None if they cannot be there."""
    length = _length(batch, axis)
    shapes = [leaf.shape for leaf in (*parameters.values, *batch.leaves, *_avals(batch.program))]
    prime = next((p for p in _PRIMES if all(n % p for n in chain(*shapes))), 0)
    if not length or not prime:
        return None
    # It keeps factors of 2 up to 8, as models may cut samples in two, or among devices.
    samples = prime * gcd(length, 8)

    def longer(leaf: jax.Array) -> Any:
        shape = list(leaf.shape)
        if leaf.ndim > axis and shape[axis] % length == 0:  # tokens may be flattened into samples
            shape[axis] = shape[axis] // length * samples
        make: Any = jax.ShapeDtypeStruct  # has no types
        return make(shape, leaf.dtype)

    try:
        more = trace(loss_fn, parameters, [longer(leaf) for leaf in batch.leaves], batch.key[0])
    except Exception:  # the model takes one number of samples only, or another axis
        return None
    outputs = more.model.out_avals
    if more.forward is not None and not any(_holds(aval, prime) for aval in outputs):
        return None
    given = [_What.PARAMETER] * len(parameters.shapes) + [_What.DATA] * len(batch.leaves)
    worst = max(_followed(more.model.jaxpr, given, prime))
    return worst >= (_What.INSIDE if more.forward is None else _What.NORMALISED)


def _length(batch: Batch, axis: int) -> int:
    """Return the length that most arrays have along an axis, the smaller one of two; 0 if none."""
    seen = Counter(leaf.shape[axis] for leaf in batch.leaves if leaf.ndim > axis)
    return max(seen, key=lambda length: (seen[length], -length), default=0)


def _keep_apart(
    loss_fn: Loss | tuple[Loss, Loss], parameters: Parameters, batch: Batch, axis: int
) -> bool:
    """Say whether the outputs of the last samples along an axis are theirs alone.

    A recurrent network over an axis of time has no statistics along it, and is no function of one
    time. Without outputs there is nothing to see.
    """
    if batch.program.forward is None:
        return True
    length = _length(batch, axis)
    start = length // 2

    def last(array: jax.Array) -> jax.Array:
        own = array.ndim > axis and array.shape[axis] == length
        return jax.lax.slice_in_dim(array, start, length, axis=axis) if own else array

    leaves = [last(leaf) for leaf in batch.leaves]
    try:
        part = trace(loss_fn, parameters, leaves, batch.key[0])
    except Exception:  # the model takes some lengths of time only
        return False
    found = compile_exactly(part.outputs)(batch.values, leaves)
    whole = compile_exactly(batch.program.outputs)(batch.values, batch.leaves)
    tolerance = float(np.finfo(parameters.dtype).eps) ** 0.5
    pairs = [(last(z), own) for z, own in zip(whole, found, strict=True)]
    return all(
        z.shape == own.shape and bool(jnp.abs(z - own).max() <= tolerance * jnp.abs(z).max())
        for z, own in pairs
    )


def _followed(jaxpr: Jaxpr, given: Sequence[_What], prime: int) -> list[_What]:
    """Return the kinds of the results of a jaxpr, from the kinds of its arguments."""
    known: dict[Var, _What] = dict(zip(jaxpr.invars, given, strict=True))

    def look(atom: Any) -> _What:
        return _What.CONSTANT if isinstance(atom, Literal) else known.get(atom, _What.CONSTANT)

    for equation in jaxpr.eqns:
        operands = [look(atom) for atom in equation.invars]
        inner = [j for j in _inner(equation) if len(j.invars) == len(operands)]
        if is_scan(equation):
            results = _scanned(equation, inner[0], operands, prime)
        elif inner:
            found = [_followed(each, operands, prime) for each in inner]
            results = [max(each) for each in zip(*found, strict=True)]
        else:
            results = [_result(equation, operands, var, prime) for var in equation.outvars]
        known.update(zip(equation.outvars, results, strict=True))
    return [look(atom) for atom in jaxpr.outvars]


def _result(equation: JaxprEqn, operands: list[_What], result: Var, prime: int) -> _What:
    """Return the kind of a result of an equation."""
    what, sampled = max(operands, default=_What.CONSTANT), _holds(aval_of(result), prime)
    if what == _What.NORMALISED and _What.PARAMETER in operands:
        return _What.INSIDE
    if what == _What.ROOT and sampled:
        return _What.NORMALISED
    if what == _What.STATISTIC and sampled:
        return _What.DATA
    if what == _What.STATISTIC and equation.primitive.name in _ROOTS:
        return _What.ROOT
    if what == _What.DATA and not sampled:
        of_samples = any(_holds(aval_of(atom), prime) for atom in equation.invars)
        return _What.STATISTIC if of_samples else what
    return what


def _scanned(equation: JaxprEqn, body: Jaxpr, given: list[_What], prime: int) -> list[_What]:
    """Return the kinds of a scan's results: a carried value takes the kind of values it meets."""
    n_consts, n_carry = scan_counts(equation)
    constants, moving = given[:n_consts], given[n_consts:]
    carried, rest = moving[:n_carry], moving[n_carry:]
    results: list[_What] = []
    for _ in _What:  # each round that changes anything raises a kind
        results = _followed(body, [*constants, *carried, *rest], prime)
        carried = [max(pair) for pair in zip(carried, results[:n_carry], strict=True)]
    return [*carried, *results[n_carry:]]


def _inner(equation: JaxprEqn) -> list[Jaxpr]:
    """Return the jaxprs that compute an equation's results from its operands."""
    inner: Any = inner_jaxpr(equation) or equation.params.get("call_jaxpr")
    return [] if inner is None else [getattr(inner, "jaxpr", inner)]


def _all_jaxprs(closed: ClosedJaxpr | Jaxpr) -> Iterator[Jaxpr]:
    jaxpr: Any = getattr(closed, "jaxpr", closed)
    yield jaxpr
    for equation in jaxpr.eqns:
        for inner in _inner(equation):
            yield from _all_jaxprs(inner)


def _avals(program: Program) -> Iterator[Any]:
    """Yield the abstract arrays of all that the model computes."""
    for jaxpr in _all_jaxprs(program.model):
        for equation in jaxpr.eqns:
            yield from (aval_of(var) for var in equation.outvars if hasattr(aval_of(var), "shape"))


def _holds(aval: Any, prime: int) -> bool:
    return any(length % prime == 0 for length in getattr(aval, "shape", ()))
