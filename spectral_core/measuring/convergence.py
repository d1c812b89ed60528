"""`converge`: the exponents of every layer against the sample size."""

import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from spectral_core._version import __version__
from spectral_core.curvature.certificate import Engine, LayerCurvature
from spectral_core.curvature.engine import CurvatureRequest
from spectral_core.curvature.problem import (
    CurvatureKind,
    CurvatureProblem,
    LayerInfo,
    SampleGroup,
)
from spectral_core.curvature.result_checks import (
    check_problem,
    checked_description,
    checked_gradient,
    checked_layers,
)
from spectral_core.errors import InputError, LayerError
from spectral_core.measuring.argument_checks import (
    check_arguments,
    check_choice,
    nothing_measured,
)
from spectral_core.measuring.curvature_source import curvatures_of
from spectral_core.measuring.directions import Decomposition, Window
from spectral_core.measuring.layer_selection import LayerSelection, select_layers
from spectral_core.measuring.progress import ProgressCallback, reporting
from spectral_core.measuring.subsampling.grouped_problem import GroupedProblem
from spectral_core.measuring.subsampling.own_directions import (
    exponents_of_each,
    further_directions,
    means_over_subsamples,
    own_windows,
)
from spectral_core.measuring.subsampling.resampling import divided
from spectral_core.measuring.subsampling.sample_sizes import SampleSizes, sizes_in_groups
from spectral_core.measuring.subsampling.subsamples import Subsamples
from spectral_core.measuring.windows import windows_of
from spectral_core.reporting.convergence import Convergence, LayerConvergence
from spectral_core.reporting.spectrum import Provenance
from spectral_core.sampling import sampling_error
from spectral_core.sampling.sample_groups import check_group_count

__all__ = ["converge"]

Values = npt.NDArray[np.float64]


def converge(
    problem: CurvatureProblem,
    layers: LayerSelection = "*",
    *,
    sizes: Iterable[int] | None = None,
    top_k: int = 20,
    curvature: CurvatureKind = "hessian",
    engine: Engine = "auto",
    sampling: int = 8,
    svd: Decomposition = "exact",
    progress: ProgressCallback | bool | None = None,
) -> Convergence:
    """Measure α, γ, s and the participation ratio against the sample size (Theory 11.5).

    The samples are divided once into groups. At each size n below N the data are cut into disjoint
    parts of whole groups. Each part is measured along the singular directions of its own gradient,
    as `measure` would if it were all the data: θ(n) is the mean over the parts, and the standard
    error of one measurement on n terms is their standard deviation. All data have the standard
    error of `measure` with ``sampling=`` (11.4).

    If from some size on the drift ``θ(n/2) − θ(n)`` lies within the standard error, so many terms
    are enough for a measurement. If it does not, the number still depends on the sample size;
    `LayerConvergence.sentence` says which.

    Parameters
    ----------
    problem : CurvatureProblem
        A problem that divides its samples, as those of the backends do.
    layers : str, iterable of str, or callable
        A glob, several globs, or a predicate of a `LayerInfo`.
    sizes : iterable of int, optional
        The sizes in terms, each at most N/2; N itself is always measured. By default N/16, N/8, N/4
        and N/2. A size is rounded to whole groups, which are as many as the smallest size asks for.
        The drift of a size is known if half of it is among them.
    top_k : int
        The window K, the largest number of directions of each part.
    curvature : {"hessian", "ggn"}
        The exact Hessian of the loss, or its Gauss-Newton part.
    engine : {"auto", "columns", "tangents", "double-backward", "monte-carlo"}
        The way in which curvatures are computed, see `Engine`.
    sampling : int
        The number of blocks of groups from which the sampling error of all data is estimated, 4 or
        more.
    svd : {"exact", "randomized"}
        The algorithm that finds the directions.
    progress : callable, bool or None
        A function that is called as ``progress(done, total, name)``. True shows a bar and False
        shows nothing. None shows a bar on a terminal and nothing in a pipe.

    Returns
    -------
    Convergence
        A mapping from layer name to `LayerConvergence`. A layer that cannot be measured on all data
        and on each part is in ``skipped`` with the reason.

    Raises
    ------
    InputError
        If an argument is out of range, a pattern matches no layer, the samples cannot be divided,
        or `problem` does not say how many terms it has.
    SpectralError
        If not one of the selected layers could be measured.

    Notes
    -----
    Each group computes curvatures along the directions of all data, of one part of each size and of
    ``2·sampling − 2`` subsamples of the sampling error: 19 K directions by default, where `measure`
    needs K.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> from spectral_backends.numpy import DenseNetwork
    >>> rng = np.random.default_rng(0)
    >>> network = DenseNetwork((6, 8, 5), activation="tanh", loss="squared")
    >>> data = [(rng.normal(size=(128, 6)), rng.normal(size=(128, 5)))]
    >>> problem = network.problem(network.init(), data)
    >>> layer = sc.converge(problem, "head", top_k=5, progress=False)["head"]
    >>> layer.sizes, layer.parts
    (array([  8.,  16.,  32.,  64., 128.]), (16, 8, 4, 2, 1))
    """
    check_problem(problem)
    _check(problem, top_k, curvature, engine, sampling, svd, progress)
    description = checked_description(problem)
    n_terms = _n_terms(description)
    plan = sizes_in_groups(sizes, n_terms, sampling)
    skipped = dict(problem.skipped())
    selected = select_layers(checked_layers(problem), layers, skipped=skipped)
    found: dict[str, LayerConvergence] = {}
    failures: dict[str, str] = {}
    with reporting(progress, len(selected)) as report_progress:

        def tell(text: str) -> None:
            report_progress(len(found) + len(failures), len(selected), text)

        tell("groups of samples")
        groups = _groups(problem, plan.n_groups)
        tell("gradients")
        precision = description.get("precision")
        windows = windows_of(problem, selected, top_k, svd, precision, failures)
        subsamples = plan.subsamples(tuple(group.share for group in groups))
        known = [layer for layer in selected if layer.name in windows]
        parts = _windows_of_parts(known, groups, subsamples, top_k, svd, failures)
        directions = {name: (windows[name].u, windows[name].v) for name in parts}
        more = [further_directions(parts, subsamples, group) for group in range(plan.n_groups)]
        grouped = GroupedProblem(problem, groups, more, "own")
        request = CurvatureRequest(directions, curvature, engine, progress_callback=tell)
        for each in curvatures_of(grouped, request, windows, precision):
            try:
                measured = _measured(each, windows, parts, subsamples)
            except LayerError as error:
                failures[error.layer] = error.reason
                continue
            found[measured.name] = _converged(measured, plan, subsamples, n_terms)
        report_progress(len(selected), len(selected), "")
    if not found:
        raise nothing_measured(len(selected), failures)
    return Convergence(
        _provenance(description, top_k, curvature, engine, sampling, svd),
        tuple(found[layer.name] for layer in selected if layer.name in found),
        skipped | failures,
    )


@dataclass(frozen=True)
class _Measured:
    """The singular values and curvatures of each subsample of a layer, all data behind them."""

    name: str
    sigma: list[Values]
    h: list[Values]


def _check(
    problem: CurvatureProblem,
    top_k: int,
    curvature: CurvatureKind,
    engine: Engine,
    sampling: int,
    svd: Decomposition,
    progress: Any,
) -> None:
    check_arguments(top_k, curvature, 0.95, 2, progress)
    own: tuple[str, ...] = getattr(problem, "engine_names", ())
    check_choice("engine", engine, tuple(dict.fromkeys((*get_args(Engine), *own))))
    check_choice("svd", svd, get_args(Decomposition))
    check_group_count(sampling)


def _provenance(
    description: dict[str, Any],
    top_k: int,
    curvature: CurvatureKind,
    engine: Engine,
    sampling: int,
    svd: Decomposition,
) -> Provenance:
    return Provenance(
        problem=description,
        versions={
            "spectral_core": __version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        top_k=int(top_k),
        curvature=curvature,
        confidence=float("nan"),  # there are standard errors alone
        engine=engine,
        svd=svd,
        sampling=sampling,
        sampling_directions="own",
    )


def _n_terms(described: Mapping[str, Any]) -> float:
    count = described.get("n_terms")
    if not count:
        raise InputError(
            "problem: describe() does not say how many terms there are; give the problem a "
            "weight=, or 'n_terms' in its description."
        )
    return float(count)


def _groups(problem: CurvatureProblem, count: int) -> list[SampleGroup]:
    try:
        return divided(problem, count)
    except InputError as error:
        reason = re.sub(r",? or (pass )?sampling=None", "", str(error).removeprefix("sampling: "))
        raise InputError(f"sizes: {count} groups are needed, and {reason}") from error


def _windows_of_parts(
    layers: Sequence[LayerInfo],
    groups: Sequence[SampleGroup],
    subsamples: Subsamples,
    top_k: int,
    svd: Decomposition,
    failures: dict[str, str],
) -> dict[str, tuple[Window, ...]]:
    """Return the directions of each subsample by layer; layers without go to `failures`."""
    names = [layer.name for layer in layers]
    gradients = [dict(group.problem.gradients(names)) for group in groups]
    found = {}
    for layer in layers:
        of_groups = [checked_gradient(layer, each.pop(layer.name, None)) for each in gradients]
        try:
            found[layer.name] = own_windows(layer, of_groups, subsamples, top_k, svd)
        except LayerError as error:
            failures[layer.name] = f"on a part of the data {error.reason}"
    return found


def _measured(
    found: LayerCurvature | LayerError,
    windows: Mapping[str, Window],
    parts: Mapping[str, Sequence[Window]],
    subsamples: Subsamples,
) -> _Measured:
    """Return what was measured of a layer.

    Raises
    ------
    LayerError
        If its curvatures are not known, or not by groups.
    """
    if isinstance(found, LayerError):
        raise found
    name, own = found.name, parts[found.name]
    if not found.parts:
        reason = found.certificate.reason or f"engine {found.certificate.engine!r}"
        raise LayerError(name, f"its curvatures do not come by groups: {reason}.")
    h = means_over_subsamples(own, subsamples, [part.more for part in found.parts])
    sigma = [*(window.sigma for window in own), windows[name].sigma]
    return _Measured(name, sigma, [*h, found.values])


def _converged(
    measured: _Measured, plan: SampleSizes, subsamples: Subsamples, n_terms: float
) -> LayerConvergence:
    """Return the numbers of a layer at each size."""
    numbers = exponents_of_each(measured.sigma, measured.h)
    places, sigma = plan.places(), _as_long_as_the_last(measured.sigma)
    return LayerConvergence(
        name=measured.name,
        sizes=_terms(plan, subsamples, n_terms),
        parts=tuple(p.stop - p.start for p in places),
        **{name: np.asarray([np.mean(each[p]) for p in places]) for name, each in numbers.items()},
        stderr={name: _standard_errors(each, plan, subsamples) for name, each in numbers.items()},
        sigma=tuple(np.mean(sigma[p], axis=0) for p in places),
        blocks=plan.blocks,
    )


def _standard_errors(values: Values, plan: SampleSizes, subsamples: Subsamples) -> Values:
    """Return the standard error at each size: the spread of the parts, and that of 11.4 at N."""
    without, halves = plan.of_error()
    blocks = np.asarray([1 - subsamples.share(each) for each in subsamples.sets[without]])
    of_halves = np.reshape(values[halves], (-1, 2))
    of_all = sampling_error(values[without], of_halves, weights=blocks).to_floats().stderr
    return np.asarray([*(np.std(values[p], ddof=1) for p in plan.places()[:-1]), of_all])


def _terms(plan: SampleSizes, subsamples: Subsamples, n_terms: float) -> Values:
    """Return the mean number of terms of the parts of each size."""
    shares = [np.mean([subsamples.share(p) for p in plan.parts(size)]) for size in plan.sizes]
    # Shares are quotients: their rounding is taken out of what are whole numbers.
    return np.asarray([*(round(float(n_terms * share), 6) for share in shares), n_terms])


def _as_long_as_the_last(rows: Sequence[Values]) -> Values:
    """Return singular values as one array: cut, or with NaN where a subsample has fewer."""
    width = len(rows[-1])
    return np.stack([np.append(r[:width], np.full(max(0, width - len(r)), np.nan)) for r in rows])
