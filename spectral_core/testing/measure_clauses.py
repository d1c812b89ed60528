"""Clauses on measurements: the reports of `measure` on a backend's problem."""

import json
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from spectral_core.curvature.problem import CurvatureKind
from spectral_core.exponents.transfer_identity import exponent_triangle
from spectral_core.measuring.measurement import measure
from spectral_core.reporting.spectrum import LayerSpectrum
from spectral_core.testing.clause import Clause, Subject, Trial
from spectral_core.testing.forms import closed_forms

__all__ = ["CLAUSES"]

TOP_K = 3


def _measure(trial: Trial) -> None:
    for form in (closed_forms()["curved network"].cut([5, 2]), closed_forms()["positions"]):
        subject = trial.problem(form)
        kinds: list[CurvatureKind] = ["hessian"]
        with trial.may_be_refused("ggn curvatures"):
            subject.compare_curvatures(0, "ggn")
            kinds.append("ggn")
        for kind in kinds:
            report = measure(
                subject.problem, top_k=TOP_K, curvature=kind, decompose=True, progress=False
            )
            trial.require(
                list(report) == subject.names and not report.skipped,
                f"found a report of {list(report)}, without {report.skipped}; expected all of "
                f"{subject.names}",
            )
            for layer, spectrum in enumerate(report.values()):
                _compare(subject, layer, spectrum, kind)


def _compare(subject: Subject, layer: int, spectrum: LayerSpectrum, kind: CurvatureKind) -> None:
    form, name = subject.form, spectrum.name
    u, sigma, vh = np.linalg.svd(form.gradient(layer), full_matrices=False)
    count = len(spectrum.sigma)
    u, sigma, v = u[:, :count], sigma[:count], vh[:count].T
    h = form.curvature(layer, u, v, kind)
    subject.compare(f"σ of {name!r}", spectrum.sigma, sigma)
    subject.compare(f"{kind} curvatures of {name!r} in the report", spectrum.curvature, h)
    alpha = exponent_triangle(sigma, h).to_floats().alpha.exponent
    if np.isfinite(alpha):
        found = np.asarray(spectrum.alpha.exponent)
        subject.compare(f"α of {name!r}", found, np.asarray(alpha), 1.0)
    if spectrum.ggn is not None:
        expected = form.curvature(layer, u, v, "ggn")
        subject.compare(f"ggn curvatures of {name!r} in the report", spectrum.ggn, expected)
    if spectrum.alignment is not None:
        c_delta, c_a = form.factors(layer)
        kron = np.sum(u * (c_delta @ u), axis=0) * np.sum(v * (c_a @ v), axis=0)
        subject.compare(f"h^Kron of {name!r}", spectrum.alignment.kron, kron)


class _Stopped(Exception):
    """An exception that interrupts a measurement."""


def _resumption(trial: Trial) -> None:
    form = closed_forms()["linear network"]
    problem = trial.problem(form).problem

    def stop(done: int, total: int, name: str) -> None:
        if done == 1:
            raise _Stopped

    with TemporaryDirectory() as folder:
        journal = Path(folder) / "journal"
        with suppress(_Stopped):
            measure(problem, top_k=TOP_K, progress=stop, resume=journal)
        again = trial.problem(form).problem
        found = measure(again, top_k=TOP_K, progress=False, resume=journal)
    expected = measure(problem, top_k=TOP_K, progress=False)
    trial.require(
        json.dumps(found.to_dict()) == json.dumps(expected.to_dict()),
        "found another report where a measurement was stopped and resumed; expected the same bytes",
    )


CLAUSES = (
    Clause("measure", "a report has the σ, h, h^GGN, h^Kron and α of the closed form", _measure),
    Clause("resumption", "a measurement that was stopped ends in the same bytes", _resumption),
)
