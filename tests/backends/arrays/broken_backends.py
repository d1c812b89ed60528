"""A correct backend, of NumPy, and one for each clause of the conformance suite that breaks it."""

import random
from dataclasses import dataclass, replace
from typing import Any

import array_forms
import numpy as np

from spectral_core.curvature.certificate import Certificate, LayerCurvature
from spectral_core.testing import Batch


def drawn(found):
    """Return a Monte-Carlo estimate of a factor as `fisher_type="fisher-mc"` would, by a fixed seed."""
    c_delta = found.output_covariance
    root = np.linalg.cholesky(c_delta + 1e-12 * np.eye(len(c_delta)))
    rows = np.random.default_rng(0).standard_normal((400, len(c_delta))) @ root.T
    halves = [r.T @ r / len(rows) for r in (rows[::2], rows[1::2])]
    noise = halves[0] - halves[1]
    return replace(found, output_covariance=sum(halves), output_noise=noise)


class Correct:
    """Hands everything on; draws its factors, so that it offers all that there is."""

    def __init__(self, problem, form):
        self.problem, self.form = problem, form

    def layers(self):
        return self.problem.layers()

    def skipped(self):
        return self.problem.skipped()

    def describe(self):
        return self.problem.describe()

    def gradients(self, layers):
        return self.problem.gradients(layers)

    def curvatures(self, layer, u, v, kind="hessian"):
        return self.problem.curvatures(layer, u, v, kind)

    def sample_groups(self, count):
        return self.problem.sample_groups(count)

    def kronecker_factors(self, layers, *, fisher_type="ggn", kfac_approx="expand"):
        of = "ggn" if fisher_type == "fisher-mc" else fisher_type
        found = self.problem.kronecker_factors(layers, fisher_type=of, kfac_approx=kfac_approx)
        return {n: drawn(f) for n, f in found.items()} if fisher_type == "fisher-mc" else found

    def layer_curvatures(
        self,
        directions,
        kind="hessian",
        *,
        engine="auto",
        mc_samples=64,
        done=(),
        progress_callback=None,
    ):
        for name, (u, v) in directions.items():
            if name not in done:
                yield LayerCurvature(
                    name, self.curvatures(name, u, v, kind), Certificate("complex-step")
                )


def correct(form, watch, problem=Correct):
    return problem(array_forms.make(form, watch), form)


# Problems that go wrong


class NoSkipped(Correct):
    skipped = None


class InputsByOutputs(Correct):
    def layers(self):
        return [replace(layer, shape=layer.shape[::-1]) for layer in super().layers()]


class OneTermTooMany(Correct):
    def describe(self):
        return super().describe() | {"n_terms": self.form.n_terms + 1}


class NamesInAnotherOrder(Correct):
    """Values come in the order of the forward pass, names in that asked for."""

    def gradients(self, layers):
        ordered = [layer.name for layer in self.layers() if layer.name in layers]
        found = super().gradients([*ordered, *(set(layers) - set(ordered))])
        return dict(zip(layers, found.values(), strict=True))


class GaussNewtonForTheHessian(Correct):
    def curvatures(self, layer, u, v, kind="hessian"):
        return super().curvatures(layer, u, v, "ggn" if kind == "hessian" else kind)


class HessianForGaussNewton(Correct):
    def curvatures(self, layer, u, v, kind="hessian"):
        return super().curvatures(layer, u, v, "hessian" if kind == "ggn" else kind)


class OddPart(Correct):
    """Differs between D and −D, in differences of two coordinates alone."""

    def curvatures(self, layer, u, v, kind="hessian"):
        found = super().curvatures(layer, u, v, kind)
        two = np.sum(np.abs(u) > 0, axis=0) == 2
        return found * np.where(two & (np.min(u, axis=0) < 0), 1.01, 1)


class Squeezed(Correct):
    def curvatures(self, layer, u, v, kind="hessian"):
        return np.squeeze(super().curvatures(layer, u, v, kind))


class AllLayersAgain(Correct):
    """Does not hear what is done."""

    def layer_curvatures(self, directions, kind="hessian", *, done=(), **options):
        return super().layer_curvatures(directions, kind, **options)


class ReducedGradients(Correct):
    """δ of the mean loss and not of its terms: C_δ is 1/N of what it should be."""

    def kronecker_factors(self, layers, *, fisher_type="ggn", kfac_approx="expand"):
        found = super().kronecker_factors(layers, fisher_type=fisher_type, kfac_approx=kfac_approx)
        return {
            name: replace(f, output_covariance=f.output_covariance / self.form.n_terms)
            for name, f in found.items()
        }


class ExpandForReduce(Correct):
    def kronecker_factors(self, layers, *, fisher_type="ggn", kfac_approx="expand"):
        kfac_approx = "expand" if kfac_approx == "reduce" else kfac_approx
        return super().kronecker_factors(layers, fisher_type=fisher_type, kfac_approx=kfac_approx)


class TooSure(Correct):
    def kronecker_factors(self, layers, *, fisher_type="ggn", kfac_approx="expand"):
        found = super().kronecker_factors(layers, fisher_type=fisher_type, kfac_approx=kfac_approx)
        if fisher_type != "fisher-mc":
            return found
        return {n: replace(f, output_noise=f.output_noise / 100) for n, f in found.items()}


class OtherBits(Correct):
    calls = 0

    def gradients(self, layers):
        type(self).calls += 1
        found = super().gradients(layers)
        return {name: g * (1 + 1e-15 * self.calls) for name, g in found.items()}


class GlobalDraws(Correct):
    def gradients(self, layers):
        random.random()
        return super().gradients(layers)


class UnknownLeftOut(Correct):
    def gradients(self, layers):
        known = [layer.name for layer in self.layers()]
        return super().gradients([name for name in layers if name in known])


class ColumnsCut(Correct):
    def curvatures(self, layer, u, v, kind="hessian"):
        if u.ndim == v.ndim == 2:
            k = min(u.shape[1], v.shape[1])
            u, v = u[:, :k], v[:, :k]
        return super().curvatures(layer, u, v, kind)


class AnyKind(Correct):
    def curvatures(self, layer, u, v, kind="hessian"):
        return super().curvatures(layer, u, v, "ggn" if kind == "ggn" else "hessian")


class TellsNobody(Correct):
    """Has no place for what `measure` passes besides."""

    def layer_curvatures(self, directions, kind="hessian", *, done=()):
        return super().layer_curvatures(directions, kind, done=done)


class DoneMatters(Correct):
    def layer_curvatures(self, directions, kind="hessian", *, done=(), **options):
        for found in super().layer_curvatures(directions, kind, done=done, **options):
            yield replace(found, values=found.values * (1 + 1e-13 * len(done)))


# Data that are read in the wrong way


def with_batches(change):
    def make(form, watch):
        return correct(replace(form, batches=tuple(change(form.batches))), watch)

    return make


def last_dropped(batches):
    """Leave out batches smaller than the first, as ``drop_last`` does."""
    return [b for b in batches if len(b.inputs) >= len(batches[0].inputs)]


def weights_of_one(batches):
    return [replace(b, weights=(b.weights > 0).astype(float)) for b in batches]


def masks_ignored(batches):
    return [b if b.weights.any() else replace(b, weights=np.ones(len(b.inputs))) for b in batches]


def cut_short(batches, most=16):
    return [Batch(b.inputs[:most], b.targets[:most], b.weights[:most]) for b in batches]


def nan_to_zero(batches):
    return [replace(b, inputs=np.nan_to_num(b.inputs)) for b in batches]


def something_for_nothing(batches):
    return batches or [Batch(np.ones((1, 5)), np.ones((1, 3)), np.ones(1))]


def of(problem):
    return lambda form, watch: correct(form, watch, problem)


@dataclass(frozen=True)
class Broken:
    """How a backend is built, and the clauses that it breaks besides its own."""

    make: Any
    also: tuple[str, ...] = ()


class EqualShares(Correct):
    def sample_groups(self, count):
        return [replace(group, share=1 / count) for group in super().sample_groups(count)]


SUMS = ("batch sizes", "sample weights", "batch without terms", "repetition", "no data")
"""Clauses that look at everything that is summed over data."""

BROKEN = {
    "members": Broken(of(NoSkipped), ("no side effects", "measure", "resumption")),
    "layers": Broken(of(InputsByOutputs), ("no side effects", "measure", "resumption")),
    "description": Broken(of(OneTermTooMany)),
    "gradients": Broken(of(NamesInAnotherOrder)),
    "hessian": Broken(
        of(GaussNewtonForTheHessian),
        ("bilinear form", "number of directions", "many layers", "measure"),
    ),
    "ggn": Broken(of(HessianForGaussNewton), ("bilinear form", "many layers", "measure")),
    "bilinear form": Broken(of(OddPart)),
    "number of directions": Broken(of(Squeezed)),
    "many layers": Broken(of(AllLayersAgain)),
    "factors": Broken(
        of(ReducedGradients),
        ("shared positions", "drawn factors", *SUMS, "measure"),
    ),
    "shared positions": Broken(of(ExpandForReduce)),
    "drawn factors": Broken(of(TooSure)),
    "batch sizes": Broken(with_batches(last_dropped), ("not a number", "measure", "sample groups")),
    "sample weights": Broken(with_batches(weights_of_one), ("sample groups",)),
    "batch without terms": Broken(with_batches(masks_ignored)),
    "sample groups": Broken(of(EqualShares)),
    "repetition": Broken(with_batches(cut_short)),
    "determinism": Broken(of(OtherBits), ("resumption",)),
    "no side effects": Broken(of(GlobalDraws)),
    "unknown layer": Broken(of(UnknownLeftOut)),
    "direction shapes": Broken(of(ColumnsCut)),
    "options": Broken(of(AnyKind)),
    "not a number": Broken(with_batches(nan_to_zero)),
    "no data": Broken(with_batches(something_for_nothing)),
    "measure": Broken(of(TellsNobody), ("no side effects", "resumption")),
    "resumption": Broken(of(DoneMatters), ("many layers",)),
}
