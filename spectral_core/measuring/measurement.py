"""`measure`: the spectrum of every layer of a problem, one after the other."""

import platform
from pathlib import Path
from typing import get_args

import numpy as np

from spectral_core._renamed import renamed_arguments
from spectral_core._version import __version__
from spectral_core.curvature.certificate import Engine
from spectral_core.curvature.engine import CurvatureRequest
from spectral_core.curvature.problem import (
    CurvatureKind,
    CurvatureProblem,
    FisherType,
    KfacApprox,
)
from spectral_core.curvature.result_checks import (
    check_problem,
    checked_description,
    checked_layers,
)
from spectral_core.errors import InputError, LayerError
from spectral_core.measuring.argument_checks import (
    check_arguments,
    check_choice,
    check_noise_draws,
    check_other,
    nothing_measured,
)
from spectral_core.measuring.curvature_source import curvatures_of
from spectral_core.measuring.directions import Decomposition
from spectral_core.measuring.factor_source import FactorSource
from spectral_core.measuring.journal import Journal
from spectral_core.measuring.layer_selection import LayerSelection, select_layers
from spectral_core.measuring.layer_spectrum import measured_spectrum, with_note
from spectral_core.measuring.other_directions import along_gradients
from spectral_core.measuring.progress import ProgressCallback, reporting
from spectral_core.measuring.subsampling.grouped_problem import DirectionsOfGroups
from spectral_core.measuring.subsampling.resampling import resampling_of
from spectral_core.measuring.windows import windows_of
from spectral_core.reporting.report import SpectralReport
from spectral_core.reporting.spectrum import Provenance
from spectral_core.sampling.sample_groups import check_group_count

__all__ = ["measure"]


@renamed_arguments
def measure(
    problem: CurvatureProblem,
    layers: LayerSelection = "*",
    *,
    top_k: int = 20,
    curvature: CurvatureKind = "hessian",
    engine: Engine = "auto",
    mc_samples: int = 64,
    svd: Decomposition = "exact",
    decompose: bool = False,
    fisher_type: FisherType = "ggn",
    kfac_approx: KfacApprox = "expand",
    noise_draws: int = 0,
    confidence: float = 0.95,
    sampling: int | None = None,
    sampling_directions: DirectionsOfGroups = "auto",
    directions_from: CurvatureProblem | None = None,
    progress: ProgressCallback | bool | None = None,
    resume: str | Path | None = None,
) -> SpectralReport:
    """Measure how curvature follows the gradient's singular values, layer by layer.

    For each layer the function computes the thin SVD ``G = U Σ Vᵀ`` of its gradient and the
    curvatures ``h_k = <u_k v_kᵀ, H[u_k v_kᵀ]>`` of the top directions. From these it fits the
    exponents ``h ∝ σ^α``, ``σ ∝ k^−γ``, ``h ∝ k^−s`` with the exact transfer identity (Theory 1-3),
    the participation ratio with its bounds (Theory 7) and the rank profile (Theory 8).

    Parameters
    ----------
    problem : CurvatureProblem
        A problem of a backend, for instance ``spectral_backends.torch.CurvatureProblem``.
    layers : str, iterable of str, or callable
        A glob (``"layer2.*.conv*"``), several globs, or a predicate of a `LayerInfo`.
    top_k : int
        The window K, the largest number of directions. It is cut at the numerical rank of the
        gradient, and the layer's notes then say so.
    curvature : {"hessian", "ggn"}
        The exact Hessian of the loss, or its Gauss-Newton part.
    engine : {"auto", "columns", "tangents", "double-backward", "monte-carlo"}
        The way in which curvatures are computed: by GGN columns, in forward mode, by Hessian-vector
        products, or by random estimates, see `Engine`. ``"auto"`` takes, layer by layer, the
        cheapest that is exact; each layer's `Certificate` names the engine and the evidence that
        its result is right.
    mc_samples : int
        The number of random draws of ``engine="monte-carlo"`` for each batch.
    svd : {"exact", "randomized"}
        The algorithm that finds the directions. The randomized one is for layers thousands wide on
        both sides; its error is stated in the layer's notes.
    decompose : bool
        Whether to measure also the Gauss-Newton curvatures and the Kronecker factors, and to split
        α into ``β + φ + κ + ν`` (Theory 5). This takes about twice the time. A layer whose factors
        cannot be had keeps its spectrum, with the reason among its notes.
    fisher_type : {"ggn", "fisher-mc", "empirical"}
        The output gradients that make ``C_δ`` (Theory 4.4).
    kfac_approx : {"expand", "reduce"}
        The treatment of positions that share a weight in the factors (Theory 4.3).
    noise_draws : int
        The number of draws of a gradient of nothing but sampling noise, from the factors of each
        layer, with ``decompose=True`` (Theory 11.3): where the layer's exponents lie among theirs
        is in `LayerSpectrum.noise`. 100 or more are of use. It takes one more pass over the data,
        and an eigendecomposition of the smaller side for each draw.
    confidence : float
        The confidence level of every interval, in (0, 1).
    sampling : int or None
        The number of groups of samples, 4 or more, from which the sampling errors in
        `LayerSpectrum.sampling` are estimated (Theory 11). A layer of which they cannot be had says
        why in its notes. None estimates none.
    sampling_directions : {"auto", "own", "fixed"}
        The directions along which parts of the data are measured: ``"own"`` are those of each
        part's own gradient, as if it were all the data; ``"fixed"`` are those of all data, which
        costs no more directions and leaves out a part of the error. ``"auto"`` takes their own
        where the engine gets further directions for little.
    directions_from : CurvatureProblem, optional
        Another problem of the same model, on other data, whose gradient's singular directions are
        taken (Theory 11.9). Everything else is measured on `problem`, which did not choose them.
        `sigma` is then that of the other problem, and `LayerSpectrum.derivative` the derivative
        of the measured loss along its directions. It does not go with `sampling`.
    progress : callable, bool or None
        A function that is called as ``progress(done, total, name)``. True shows a bar and False
        shows nothing. None shows a bar on a terminal and nothing in a pipe.
    resume : path, optional
        A journal to which each finished layer is appended. If it holds layers of the same
        measurement they are not measured again, and the report is the same to the byte. Only one
        process at a time can use it: each process or rank needs a file of its own.

    Returns
    -------
    SpectralReport
        A mapping from layer name to `LayerSpectrum`. A layer that cannot be measured (no gradient,
        not differentiable twice, non-finite) is in ``skipped`` with the reason.

    Raises
    ------
    InputError
        If an argument is out of range, a pattern matches no layer, or `problem` is none or does not
        keep to its protocol.
    SpectralError
        If not one of the selected layers could be measured.
    ReportError
        If `resume` cannot be written, belongs to another measurement, or another process is
        writing to it.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> from spectral_backends.numpy import DenseNetwork
    >>> rng = np.random.default_rng(0)
    >>> network = DenseNetwork((6, 8, 5), activation="tanh", loss="squared")
    >>> data = [(rng.normal(size=(64, 6)), rng.normal(size=(64, 5)))]
    >>> problem = network.problem(network.init(), data)
    >>> report = sc.measure(problem, top_k=5, progress=False)
    >>> list(report), report["head"].alpha.n
    (['0', 'head'], 5)
    """
    check_problem(problem)
    check_arguments(top_k, curvature, confidence, mc_samples, progress)
    own: tuple[str, ...] = getattr(problem, "engine_names", ())
    check_choice("engine", engine, tuple(dict.fromkeys((*get_args(Engine), *own))))
    check_choice("svd", svd, get_args(Decomposition))
    check_choice("fisher_type", fisher_type, get_args(FisherType))
    check_choice("kfac_approx", kfac_approx, get_args(KfacApprox))
    check_choice("sampling_directions", sampling_directions, get_args(DirectionsOfGroups))
    if sampling is not None:
        check_group_count(sampling)
    check_noise_draws(noise_draws, decompose)
    if directions_from is not None:
        check_other(directions_from, problem, sampling)
    mc_samples = int(mc_samples)
    out = dict(problem.skipped())
    selected = select_layers(checked_layers(problem), layers, skipped=out)
    provenance = Provenance(
        problem=checked_description(problem),
        versions={
            "spectral_core": __version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        top_k=int(top_k),
        curvature=curvature,
        confidence=confidence,
        factors={"delta": fisher_type, "sharing": kfac_approx} if decompose else None,
        engine=engine if engine != "monte-carlo" else f"{engine}, {mc_samples} draws",
        svd=svd,
        sampling=sampling,
        sampling_directions=sampling_directions if sampling else None,
        noise_draws=int(noise_draws),
        directions_from=None if directions_from is None else checked_description(directions_from),
    )
    with (
        Journal(resume, provenance, {layer.name: layer.shape for layer in selected}) as journal,
        reporting(progress, len(selected)) as report_progress,
    ):
        skipped: dict[str, str] = {}

        def tell(text: str) -> None:
            report_progress(len(journal.spectra) + len(skipped), len(selected), text)

        if any(layer.name not in journal for layer in selected):
            tell("gradients")
            precision = provenance.problem.get("precision")
            chooser = problem if directions_from is None else directions_from
            windows = windows_of(chooser, selected, top_k, svd, precision, skipped)
            if directions_from is not None:
                windows = along_gradients(problem, selected, windows)
            layers = {layer.name: layer for layer in selected if layer.name in windows}
            directions = {name: (window.u, window.v) for name, window in windows.items()}
            todo = [layer for name, layer in layers.items() if name not in journal]
            resampling, reason = None, ""
            if sampling is not None:
                tell("groups of samples")
                options = windows, sampling, svd, sampling_directions
                try:
                    resampling = resampling_of(problem, list(layers.values()), *options)
                except InputError as error:
                    reason = f"no sampling errors: {str(error).removeprefix('sampling: ')}"
            measured = problem if resampling is None else resampling.problem
            source = None
            if decompose:
                source = FactorSource(
                    measured, todo, directions, fisher_type, kfac_approx, resampling,
                    noise_draws,
                )  # fmt: skip
                source.prepare()
            done = set(journal.spectra)
            request = CurvatureRequest(
                directions, curvature, engine, {"mc_samples": mc_samples}, done, tell
            )
            for found in curvatures_of(measured, request, windows, precision):
                if isinstance(found, LayerError):
                    skipped[found.layer] = found.reason
                    continue
                layer, window = layers[found.name], windows[found.name]
                tell(layer.name)
                spectrum = measured_spectrum(
                    problem, layer, window, found, provenance, source, resampling
                )
                journal.add(with_note(spectrum, reason))
        report_progress(len(selected), len(selected), "")
    if not journal.spectra:
        raise nothing_measured(len(selected), skipped)
    return SpectralReport(
        provenance=provenance,
        spectra=tuple(journal.spectra[s.name] for s in selected if s.name in journal.spectra),
        skipped=out | skipped,
    )
