"""A clause: one sentence that a backend must keep, and the check of it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Protocol

import array_api_compat
import numpy as np

from spectral_core._renamed import by_new_names
from spectral_core.arrays.namespace import as_like, to_numpy
from spectral_core.errors import InputError, LayerError
from spectral_core.testing.closed_form import Array, ClosedForm

__all__ = ["Clause", "ConformanceError", "Make", "Trial", "Watch"]


class Watch(Protocol):
    """A callable for state that must stay the same from here on, whatever is measured."""

    def __call__(self, state: Callable[[], Any], /) -> None:
        """Remember the present result of `state`: arrays and plain values, in dicts and lists."""


class Make(Protocol):
    """A callable that builds a backend's problem of a closed form."""

    def __call__(self, form: ClosedForm, watch: Watch, /) -> Any:
        """Return the `CurvatureProblem`; call `watch` on state to protect before building it."""


ROUNDINGS = 1e4
"""Tolerance in units of the dtype's rounding, where none is given."""


class ConformanceError(AssertionError):
    """A backend does not keep a clause; the message says what was found and what was expected."""


@dataclass(frozen=True)
class Clause:
    """One requirement on every backend.

    Parameters
    ----------
    name : str
        A short name, which is also ``str(clause)``.
    statement : str
        The requirement, in a sentence.
    run : callable
        A function that checks it.
    """

    name: str
    statement: str
    run: Callable[["Trial"], None] = field(repr=False, compare=False)

    def __str__(self) -> str:
        return self.name

    def check(self, make: Make, *, tolerance: float | None = None) -> tuple[str, ...]:
        """Check a backend against the clause.

        Parameters
        ----------
        make : callable
            ``make(form, watch)`` returns your `CurvatureProblem` of a `ClosedForm`. Call
            ``watch(state)`` before you build it, with a function that returns what measuring must
            leave alone (parameters, gradients, mode, the framework's random state) as arrays and
            plain values; or do not.
        tolerance : float, optional
            The largest error of a value relative to the largest of its kind. The default is 10⁴
            roundings of ``describe()["dtype"]``.

        Returns
        -------
        tuple of str
            The things that the backend refused with a `LayerError` and that were not checked; empty
            if everything is offered.

        Raises
        ------
        ConformanceError
            If the backend does not keep the clause.
        """
        trial = Trial(make, tolerance)
        try:
            self.run(trial)
        except Exception as error:
            what = str(error)
            if not isinstance(error, ConformanceError):
                what = f"{trial.place}it raised {type(error).__name__}: {error}"
            raise ConformanceError(f"{self.name} ({self.statement}): {what}") from error
        return tuple(dict.fromkeys(trial.refused))


class Trial:
    """One check of one backend, which builds problems, compares, and names the place in errors."""

    def __init__(self, make: Make, tolerance: float | None) -> None:
        self._make, self._tolerance = make, tolerance
        self.place = ""
        self.refused: list[str] = []

    def problem(self, form: ClosedForm, watch: Watch = lambda state: None) -> "Subject":
        """Build the backend's problem of a copy of a closed form, whose arrays are watched."""
        self.place = f"{form.name}: "
        given = form.copy()
        watch(given.arrays)
        return Subject(self._make(given, watch), form, self)

    def require(self, holds: bool, sentence: str) -> None:
        """Raise `ConformanceError` with the sentence unless the condition holds."""
        if not holds:
            raise ConformanceError(self.place + sentence)

    @contextmanager
    def may_be_refused(self, what: str) -> Iterator[None]:
        """Note a `LayerError` as something that the backend does not offer."""
        try:
            yield
        except LayerError as error:
            self.refused.append(f"{what}: {error.reason}")

    def refuses(self, call: Callable[[], Any], what: str, *words: str) -> None:
        """Require an `InputError` whose message has these words in it."""
        try:
            found = call()
        except InputError as error:
            missing = [word for word in words if word not in str(error)]
            self.require(
                not missing,
                f"{what} is refused with the message {str(error)!r}; expected "
                f"{', '.join(map(repr, missing))} in it too",
            )
            return
        except LayerError as error:
            self.refused.append(f"{what}: {error.reason}")
            return
        except Exception as error:
            raise ConformanceError(
                f"{self.place}{what} raised {type(error).__name__} ({error}); expected an "
                "InputError that names the argument, the value and the remedy"
            ) from error
        raise ConformanceError(
            f"{self.place}{what} was taken, and gave {_shown(found)}; expected an InputError"
        )

    def tolerance_for(self, problem: Any) -> float:
        """Return the tolerance of values of a problem."""
        if self._tolerance is not None:
            return self._tolerance
        dtype = problem.describe().get("dtype", "float64")
        return ROUNDINGS * float(np.finfo(np.dtype(dtype)).eps)


class Subject:
    """A problem under test beside its closed form; layers are numbered, values are NumPy arrays."""

    def __init__(self, problem: Any, form: ClosedForm, trial: Trial) -> None:
        self.problem, self.form, self._trial = problem, form, trial
        self._tolerance = trial.tolerance_for(problem)

    @property
    def names(self) -> list[str]:
        """Names of the layers, one for each matrix of the form."""
        found = [layer.name for layer in self.problem.layers()]
        self._trial.require(
            len(found) == len(self.form.matrices),
            f"found layers {found}; expected one for each of {len(self.form.matrices)} matrices",
        )
        return found

    def in_its_library(self, *arrays: Array) -> list[Any]:
        """Return arrays in the library, dtype and on the device of the problem's gradients."""
        name = self.names[0]
        like = self.problem.gradients([name])[name]
        xp = array_api_compat.array_namespace(like)
        return [as_like(xp, np.ascontiguousarray(array), like) for array in arrays]

    def curvatures(self, layer: int, u: Array, v: Array, kind: Any) -> Array:
        """Return the problem's curvatures, on the host."""
        found = self.problem.curvatures(self.names[layer], *self.in_its_library(u, v), kind)
        return self.values(f"{kind} curvatures of {self.names[layer]!r}", found, (u.shape[1],))

    def values(self, what: str, found: Any, shape: Sequence[int]) -> Array:
        """Return an array on the host, after a check of its shape and type."""
        require = self._trial.require
        require(
            array_api_compat.is_array_api_obj(found),
            f"{what}: found a {type(found).__name__}; expected an array",
        )
        require(
            tuple(found.shape) == tuple(shape),
            f"{what}: found shape {tuple(found.shape)}; expected {tuple(shape)}",
        )
        xp = array_api_compat.array_namespace(found)
        require(
            xp.isdtype(found.dtype, "real floating"),
            f"{what}: found dtype {found.dtype}; expected a real floating one",
        )
        array: Array = to_numpy(found).astype(np.float64)
        return array

    def compare(self, what: str, found: Any, expected: Array, largest: float = 0.0) -> None:
        """Require values of that shape, near the expected ones.

        Errors are relative to `largest` if it is more than the size of the values.
        """
        found = self.values(what, found, expected.shape)
        size = max(float(np.max(np.abs(expected))), largest)
        off = np.abs(found - expected)
        good = bool(np.all(off <= self._tolerance * size))  # NaN is not
        place = np.unravel_index(int(np.argmax(np.where(np.isnan(off), np.inf, off))), off.shape)
        at = f" at {tuple(map(int, place))}" if off.ndim else ""
        self._trial.require(
            good,
            f"{what}: found {found[place]:.10g}{at}, expected {expected[place]:.10g}; off by "
            f"{float(off[place]) / size:.2g} of the largest, and {self._tolerance:.2g} is allowed",
        )

    def compare_factors(self, fisher_type: Any, kfac_approx: Any) -> None:
        """Compare the Kronecker factors of all layers, which are asked for together."""
        found = by_new_names(self.problem.kronecker_factors)(
            self.names, fisher_type=fisher_type, kfac_approx=kfac_approx
        )
        for layer, name in enumerate(self.names):
            c_delta, c_a = self.form.factors(layer, fisher_type, kfac_approx)
            what = f"of {name!r} with fisher_type={fisher_type!r}, kfac_approx={kfac_approx!r}"
            self.compare(f"output_covariance {what}", found[name].output_covariance, c_delta)
            self.compare(f"input_covariance {what}", found[name].input_covariance, c_a)

    def compare_curvatures(self, layer: int, kind: Any) -> None:
        """Compare curvatures along singular directions of the gradient, and others."""
        u, v = directions(self.form, layer)
        found = self.curvatures(layer, u, v, kind)
        self.compare(
            f"{kind} curvatures of {self.names[layer]!r}",
            found,
            self.form.curvature(layer, u, v, kind),
        )

    def compare_totals(self) -> None:
        """Compare all sums over data: gradients, factors, and curvatures of the first layer."""
        gradients = self.problem.gradients(self.names)
        for layer, name in enumerate(self.names):
            self.compare(f"gradient of {name!r}", gradients[name], self.form.gradient(layer))
        for kind in ("hessian", "ggn"):
            with self._trial.may_be_refused(f"{kind} curvatures"):
                self.compare_curvatures(0, kind)
        for fisher_type in ("ggn", "empirical"):
            with self._trial.may_be_refused(f"factors with fisher_type={fisher_type!r}"):
                self.compare_factors(fisher_type, "expand")


def directions(form: ClosedForm, layer: int) -> tuple[Array, Array]:
    """Return singular directions of a gradient and two that have nothing to do with it."""
    u, sigma, vh = np.linalg.svd(form.gradient(layer), full_matrices=False)
    count = min(3, int(np.sum(sigma > 1e-10 * sigma[0])))  # beyond the rank they are rounding
    generator = np.random.default_rng(layer)
    more = [generator.standard_normal((k, 2)) for k in form.matrices[layer].shape]
    more = [d / np.linalg.norm(d, axis=0) for d in more]
    return np.hstack([u[:, :count], more[0]]), np.hstack([vh[:count].T, more[1]])


def frozen(value: Any) -> Any:
    """Return a value that can be compared later: arrays by their bytes, the rest by its text."""
    if array_api_compat.is_array_api_obj(value):
        array = to_numpy(value)
        return str(array.dtype), array.shape, array.tobytes()
    if isinstance(value, Mapping):
        return {key: frozen(each) for key, each in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: frozen(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, list | tuple):
        return [frozen(each) for each in value]
    return repr(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 200 else f"a {type(value).__name__}"
