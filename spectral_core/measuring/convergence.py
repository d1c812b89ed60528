"""`converge`: the exponents of every layer against the sample size."""

import platform
import re
from collections.abc import Mapping, Sequence
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
from spectral_core.measuring.curvature_source import curvatures_of
from spectral_core.measuring.directions import Decomposition, Window
from spectral_core.measuring.grouped_problem import GroupedProblem
from spectral_core.measuring.layer_selection import LayerSelection, select_layers
from spectral_core.measuring.measurement import (
    _check_arguments,
    _check_choice,
    _nothing_measured,
    _windows,
)
from spectral_core.measuring.own_directions import (
    exponents_of_each,
    further_directions,
    means_over_subsamples,
    own_windows,
)
from spectral_core.measuring.progress import ProgressCallback, reporting
from spectral_core.measuring.resampling import divided
from spectral_core.measuring.sample_sizes import SampleSizes, sizes_in_groups
from spectral_core.measuring.subsamples import Subsample, Subsamples
from spectral_core.reporting.convergence import Convergence, LayerConvergence
from spectral_core.reporting.spectrum import Provenance
from spectral_core.sampling import jackknife
from spectral_core.sampling.sample_groups import check_group_count

__all__ = ["converge"]

Values = npt.NDArray[np.float64]


def converge(
    problem: CurvatureProblem,
    layers: LayerSelection = "*",
    *,
    sizes: Sequence[int] | None = None,
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
    error of the jackknife (11.4).

    From some size on the drift ``θ(n/2) − θ(n)`` lies within the standard error, and more data would
    tell little more; or it does not, and the number is still one of the sample size
    (`LayerConvergence.sentence`).

    Parameters
    ----------
    problem : CurvatureProblem
        A problem that divides its samples, as those of the backends do.
    layers : str, iterable of str, or callable
        A glob, several globs, or a predicate of a `LayerInfo`.
    sizes : sequence of int, optional
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
        The number of blocks of groups that the jackknife leaves out in turn, 4 or more.
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
    ``sampling − 1`` subsamples of the jackknife: 12 K directions by default, where `measure` needs
    K.

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
    _check_arguments(top_k, curvature, 0.95, 2, progress)
    own: tuple[str, ...] = getattr(problem, "engine_names", ())
    _check_choice("engine", engine, tuple(dict.fromkeys((*get_args(Engine), *own))))
    _check_choice("svd", svd, get_args(Decomposition))
    check_group_count(sampling)
    described = checked_description(problem)
    n_terms = _n_terms(described)
    plan = sizes_in_groups(sizes, n_terms, sampling)
    skipped = dict(problem.skipped())
    selected = select_layers(checked_layers(problem), layers, skipped=skipped)
    failures: dict[str, str] = {}
    found: dict[str, LayerConvergence] = {}
    with reporting(progress, len(selected)) as report_progress:

        def tell(text: str) -> None:
            report_progress(len(found) + len(failures), len(selected), text)

        tell("groups of samples")
        groups = _groups(problem, plan.n_groups)
        tell("gradients")
        windows = _windows(problem, selected, top_k, svd, described.get("precision"), failures)
        subsamples = _subsamples(plan, groups, sampling)
        parts = _windows_of_parts(selected, windows, groups, subsamples, top_k, svd, failures)
        directions = {name: (windows[name].u, windows[name].v) for name in parts}
        more = [further_directions(parts, subsamples, group) for group in range(plan.n_groups)]
        grouped = GroupedProblem(problem, groups, more, "own")
        request = CurvatureRequest(directions, curvature, engine, progress_callback=tell)
        for each in curvatures_of(grouped, request, windows, described.get("precision")):
            if isinstance(each, LayerError):
                failures[each.layer] = each.reason
            elif not each.parts:
                failures[each.name] = f"its curvatures do not come by groups: {_reason(each)}"
            else:
                of_layer = windows[each.name], parts[each.name]
                found[each.name] = _layer(each, *of_layer, plan, subsamples, n_terms, sampling)
        report_progress(len(selected), len(selected), "")
    if not found:
        raise _nothing_measured(len(selected), failures)
    return Convergence(
        provenance=Provenance(
            problem=described,
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
        ),
        layers=tuple(found[layer.name] for layer in selected if layer.name in found),
        skipped=skipped | failures,
    )


def _n_terms(described: Mapping[str, Any]) -> float:
    count = described.get("n_terms")
    if not count:
        raise InputError(
            "problem: describe() does not say how many terms there are; give the problem a weight=, "
            "or 'n_terms' in its description."
        )
    return float(count)


def _groups(problem: CurvatureProblem, count: int) -> list[SampleGroup]:
    try:
        return divided(problem, count)
    except InputError as error:
        reason = re.sub(r",? or (pass )?sampling=None", "", str(error).removeprefix("sampling: "))
        raise InputError(f"sizes: {count} groups are needed, and {reason}") from error


def _subsamples(plan: SampleSizes, groups: Sequence[SampleGroup], blocks: int) -> Subsamples:
    """Return all data without each block, and then the parts of each size."""
    parts = [part for size in plan.sizes for part in plan.parts(size)]
    shares = tuple(group.share for group in groups)
    return Subsamples(shares, (*plan.without_each(blocks), *parts))


def _windows_of_parts(
    layers: Sequence[LayerInfo],
    windows: Mapping[str, Window],
    groups: Sequence[SampleGroup],
    subsamples: Subsamples,
    top_k: int,
    svd: Decomposition,
    failures: dict[str, str],
) -> dict[str, tuple[Window, ...]]:
    """Return the directions of each subsample by layer; layers without go to `failures`."""
    known = [layer for layer in layers if layer.name in windows]
    gradients = [dict(group.problem.gradients([layer.name for layer in known])) for group in groups]
    found = {}
    for layer in known:
        of_groups = [checked_gradient(layer, each.pop(layer.name, None)) for each in gradients]
        try:
            found[layer.name] = own_windows(layer, of_groups, subsamples, top_k, svd)
        except LayerError as error:
            failures[layer.name] = f"on a part of the data {error.reason}"
    return found


def _reason(found: LayerCurvature) -> str:
    return found.certificate.reason or f"engine {found.certificate.engine!r}"


def _layer(
    found: LayerCurvature,
    window: Window,
    own: Sequence[Window],
    plan: SampleSizes,
    subsamples: Subsamples,
    n_terms: float,
    blocks: int,
) -> LayerConvergence:
    """Return the numbers of a layer at each size."""
    sigma = [*(each.sigma for each in own), window.sigma]
    h = means_over_subsamples(own, subsamples, [part.more for part in found.parts])
    numbers = exponents_of_each(sigma, [*h, found.values])
    weights = np.asarray([1 - subsamples.share(each) for each in subsamples.sets[:blocks]])
    places = _places(plan, blocks)
    rows = _rows(sigma, len(window.sigma))
    values = {name: [np.mean(each[p]) for p in places] for name, each in numbers.items()}
    errors = {
        name: [
            *(np.std(each[p], ddof=1) for p in places[:-1]),
            float(jackknife(each[:blocks], weights=weights).stderr),
        ]
        for name, each in numbers.items()
    }
    return LayerConvergence(
        name=found.name,
        sizes=np.asarray([*(_terms(plan, n, subsamples, n_terms) for n in plan.sizes), n_terms]),
        parts=tuple(p.stop - p.start for p in places),
        **{name: np.asarray(each) for name, each in values.items()},
        stderr={name: np.asarray(each) for name, each in errors.items()},
        sigma=tuple(np.mean(rows[p], axis=0) for p in places),
        blocks=blocks,
    )


def _places(plan: SampleSizes, blocks: int) -> list[slice]:
    """Return where the parts of each size are among the subsamples; all data are the last."""
    counts = [*(len(plan.parts(size)) for size in plan.sizes), 1]
    ends = blocks + np.cumsum(counts)
    return [slice(int(end) - count, int(end)) for end, count in zip(ends, counts, strict=True)]


def _terms(plan: SampleSizes, size: int, subsamples: Subsamples, n_terms: float) -> float:
    """Return the mean number of terms of the parts of a size, which are whole numbers."""
    counts: list[Subsample] = plan.parts(size)
    return float(np.mean([round(n_terms * subsamples.share(part), 6) for part in counts]))


def _rows(sigma: Sequence[Values], width: int) -> Values:
    """Return the first singular values of each subsample, with NaN behind where it has fewer."""
    return np.stack(
        [np.pad(s[:width], (0, max(0, width - len(s))), constant_values=np.nan) for s in sigma]
    )
