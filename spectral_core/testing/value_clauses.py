"""Clauses on values: every number that a problem returns is exact."""

from typing import Any

import numpy as np

from spectral_core._renamed import by_new_names
from spectral_core.arrays.namespace import to_numpy
from spectral_core.curvature.problem import CurvatureKind, ManyLayers
from spectral_core.errors import LayerError
from spectral_core.testing.clause import Clause, Subject, Trial, directions, frozen
from spectral_core.testing.closed_form import Array
from spectral_core.testing.forms import closed_forms

__all__ = ["CLAUSES"]

DRAWN_ERRORS = 5
"""Standard errors within which a Monte-Carlo estimate must lie, over many directions."""


def _gradients(trial: Trial) -> None:
    for form in closed_forms().values():
        subject = trial.problem(form)
        for names in (subject.names, subject.names[::-1], subject.names[-1:]):
            found = subject.problem.gradients(names)
            trial.require(
                list(found) == names, f"found gradients of {list(found)}; expected {names}"
            )
            for name in names:
                expected = form.gradient(subject.names.index(name))
                subject.compare(f"gradient of {name!r}", found[name], expected)


def _curvatures(trial: Trial, kind: CurvatureKind) -> None:
    for form in closed_forms().values():
        subject = trial.problem(form)
        with trial.may_be_refused(f"{kind} curvatures"):
            for layer in range(len(form.matrices)):
                subject.compare_curvatures(layer, kind)


def _hessian(trial: Trial) -> None:
    _curvatures(trial, "hessian")


def _ggn(trial: Trial) -> None:
    _curvatures(trial, "ggn")


def _bilinear_form(trial: Trial) -> None:
    """Polarisation: for orthonormal a, b it is half of h((a + b)/√2) − h((a − b)/√2)."""
    for name in ("quadratic", "curved network"):
        form = closed_forms()[name]
        subject = trial.problem(form)
        for layer, matrix in enumerate(form.matrices):
            us, vs = (np.eye(size) for size in matrix.shape)
            for kind in ("hessian", "ggn"):
                with trial.may_be_refused(f"{kind} curvatures"):
                    _compare_products(subject, layer, kind, us, vs)


def _compare_products(
    subject: Subject, layer: int, kind: CurvatureKind, us: Array, vs: Array
) -> None:
    name, form = subject.names[layer], subject.form
    for fixed, moving, swapped in ((vs[0], us, False), (us[0], vs, True)):
        pairs = [(i, j) for i in range(len(moving)) for j in range(i)]
        a, b = (np.stack([moving[pair[side]] for pair in pairs], axis=1) for side in (0, 1))
        kept = np.repeat(fixed[:, None], len(pairs), axis=1)

        def along(d: Array, kept: Array = kept, swapped: bool = swapped) -> Array:
            return subject.curvatures(layer, *((kept, d) if swapped else (d, kept)), kind)

        found = (along((a + b) / np.sqrt(2)) - along((a - b) / np.sqrt(2))) / 2
        one, other = (
            np.einsum("ik,jk->kij", *((kept, d) if swapped else (d, kept))) for d in (a, b)
        )
        expected = form.second_derivative(layer, one, other, kind)
        largest = float(np.max(np.abs(form.second_derivative(layer, one, one, kind))))
        subject.compare(
            f"{kind} products <D, H[E]> of {name!r} by polarisation", found, expected, largest
        )


def _any_number_of_directions(trial: Trial) -> None:
    form = closed_forms()["curved network"]
    subject = trial.problem(form)
    for layer in range(len(form.matrices)):
        u, v = directions(form, layer)
        whole = form.curvature(layer, u, v)
        for chosen in ([0], [-1], [*range(u.shape[1])] * 3):
            found = subject.curvatures(layer, u[:, chosen], v[:, chosen], "hessian")
            subject.compare(
                f"curvatures of {subject.names[layer]!r} along {len(chosen)} directions",
                found,
                whole[chosen],
                float(np.max(np.abs(whole))),
            )


def _many_layers(trial: Trial) -> None:
    for name in ("linear network", "curved network", "positions"):
        subject = trial.problem(closed_forms()[name])
        if not isinstance(subject.problem, ManyLayers):
            trial.refused.append("layer_curvatures: there is no such method, which may be so")
            return
        for kind in ("hessian", "ggn"):
            _compare_together(trial, subject, kind)


def _compare_together(trial: Trial, subject: Subject, kind: CurvatureKind) -> None:
    form, names = subject.form, subject.names
    given = {}
    for layer, name in enumerate(names):
        given[name] = tuple(subject.in_its_library(*directions(form, layer)))
    found: dict[str, Any] = {}
    for each in subject.problem.layer_curvatures(given, kind):
        if isinstance(each, LayerError):
            trial.refused.append(f"{kind} curvatures: {each.reason}")
            return
        trial.require(each.name not in found, f"found {each.name!r} twice; expected it once")
        found[each.name] = each
    trial.require(found.keys() == given.keys(), f"found layers {list(found)}; expected {names}")
    for layer, name in enumerate(names):
        (u, v), each = directions(form, layer), found[name]
        what = f"of {name!r}, with those of all layers"
        subject.compare(f"{kind} curvatures {what}", each.values, form.curvature(layer, u, v, kind))
        if each.ggn is not None:
            subject.compare(f"ggn curvatures {what}", each.ggn, form.curvature(layer, u, v, "ggn"))
        if each.derivative is not None:
            slopes = np.sum(u * (form.gradient(layer) @ v), axis=0)
            subject.compare(f"derivatives along D_k {what}", each.derivative, slopes)
    rest = {
        each.name: each for each in subject.problem.layer_curvatures(given, kind, done=names[:1])
    }
    trial.require(
        list(rest) == [name for name in found if name != names[0]],
        f"found layers {list(rest)} with done={names[:1]}; expected those that are not done",
    )
    for name, each in rest.items():
        trial.require(
            frozen(each.values) == frozen(found[name].values),
            f"found other bits of {name!r} where {names[0]!r} was done; expected the same",
        )


def _factors(trial: Trial) -> None:
    for name in ("quadratic", "linear network", "softmax regression", "curved network"):
        subject = trial.problem(closed_forms()[name])
        for fisher_type in ("ggn", "empirical"):
            with trial.may_be_refused(f"factors with fisher_type={fisher_type!r}"):
                subject.compare_factors(fisher_type, "expand")


def _shared_positions(trial: Trial) -> None:
    subject = trial.problem(closed_forms()["positions"])
    for kfac_approx in ("expand", "reduce"):
        for fisher_type in ("ggn", "empirical"):
            what = f"factors with fisher_type={fisher_type!r}, kfac_approx={kfac_approx!r}"
            with trial.may_be_refused(what):
                subject.compare_factors(fisher_type, kfac_approx)


def _drawn_factors(trial: Trial) -> None:
    form = closed_forms()["softmax regression"]
    subject = trial.problem(form)
    (name,) = subject.names
    with trial.may_be_refused("factors with fisher_type='fisher-mc'"):
        factors = by_new_names(subject.problem.kronecker_factors)
        found = factors([name], fisher_type="fisher-mc")[name]
        exact, c_a = form.factors(0)
        subject.compare(f"input_covariance of {name!r}", found.input_covariance, c_a)
        drawn = subject.values("output_covariance", found.output_covariance, exact.shape)
        trial.require(
            found.output_noise is not None,
            "found no output_noise; expected one, as targets are drawn",
        )
        noise = subject.values("output_noise", found.output_noise, exact.shape)
        u = np.random.default_rng(0).standard_normal((len(exact), 200))
        off, told = (_root_mean_square(u, c) for c in (drawn - exact, noise))
        trial.require(
            off <= DRAWN_ERRORS * told < DRAWN_ERRORS * _root_mean_square(u, exact),
            f"found C_δ off by {off:.3g} with a standard error of {told:.3g} stated; expected an "
            f"estimate of that of fisher_type='ggn' within {DRAWN_ERRORS} of them",
        )


def _root_mean_square(u: Array, matrix: Array) -> float:
    return float(np.sqrt(np.mean(np.sum(u * (to_numpy(matrix) @ u), axis=0) ** 2)))


CLAUSES = (
    Clause("gradients", "G is exact, of shape (m, n), under the name asked for", _gradients),
    Clause("hessian", "h_k of the Hessian is exact along singular and other directions", _hessian),
    Clause("ggn", "h_k of the Gauss-Newton part is exact along the same directions", _ggn),
    Clause(
        "bilinear form",
        "h_k is the value of a symmetric bilinear form whose products <D, H[E]> are exact",
        _bilinear_form,
    ),
    Clause(
        "number of directions",
        "K may be any number from 1, and no direction changes what another one gives",
        _any_number_of_directions,
    ),
    Clause(
        "many layers",
        "layer_curvatures, where offered, yields each layer that is not done once, exactly",
        _many_layers,
    ),
    Clause("factors", "C_δ and C_A, where offered, are exact and normalised", _factors),
    Clause(
        "shared positions",
        "positions that share a weight enter the factors as the KFAC approximation says",
        _shared_positions,
    ),
    Clause(
        "drawn factors",
        "C_δ of drawn targets estimates the exact one, within the error that it states",
        _drawn_factors,
    ),
)
