"""Bad arguments for the functions of arrays and numbers."""

from types import SimpleNamespace

import numpy as np
import torch
from case import gives, refused

import spectral_core as sc
from spectral_backends.numpy import DenseNetwork
from spectral_core.curvature import argument_checks
from spectral_core.curvature.factor_options import FactorOptions, check_factor_size
from spectral_core.losses.protocols import Fit
from spectral_core.losses.recognition import find_form

NAN, INF = float("nan"), float("inf")
A = np.arange(5.0, 0, -1)
EYE = np.eye(3)
U = EYE[:, :2]
KERNEL = np.ones((8, 3, 3, 3))
OBJECTS = np.asarray([1.0, None, "x"], dtype=object)
LAYERS = [sc.LayerInfo("a", "linear", (3, 3)), sc.LayerInfo("b", "linear", (3, 3))]
STRICT = torch.asarray(A)


def nan(value):
    return np.isnan(np.asarray(value, dtype=float)).all()


def alignment():
    return sc.spectral_alignment(np.eye(5), np.eye(5), np.diag(A), np.diag(A))


def read_only(values):
    values = np.array(values)
    values.flags.writeable = False
    return values


# One spectrum as the first argument: the same is said by all that take one.
SPECTRUM = {
    "fit_power_law": (lambda x: sc.fit_power_law(x, A), "x"),
    "exponent_over_window": (lambda x: sc.exponent_over_window(x, A), "x"),
    "check_line": (lambda x: sc.check_line(x, A), "x"),
    "exponent_triangle": (lambda x: sc.exponent_triangle(x, A), "sigma"),
    "fit_rank_profiles": (sc.fit_rank_profiles, "sigma"),
    "participation_ratio": (sc.participation_ratio, "h"),
    "entropy_rank": (sc.entropy_rank, "h"),
    "certified_exponent": (sc.certified_exponent, "h"),
    "decompose_exponent": (lambda x: sc.decompose_exponent(x, A, A, alignment()), "sigma"),
    "transfer": (lambda x: sc.transfer(x, 2.0), "sigma"),
}
NO_SPECTRUM = {
    "int array": (np.arange(5), ("int64", "convert it to a real floating point type")),
    "bool array": (np.ones(5, dtype=bool), ("bool", "convert it to a real floating point type")),
    "complex array": (A * 1j, ("complex128", "convert it to a real floating point type")),
    "object array": (OBJECTS, ("object", "convert it to a real floating point type")),
    "array of str": (np.asarray(list("abcde")), ("<U1", "convert it to a real floating point type")),
    "str": ("12345", ("a str is no array", "pass an array or numbers")),
    "bytes": (b"12345", ("a bytes is no array", "pass an array or numbers")),
    "None": (None, ("a NoneType is no array", "pass an array or numbers")),
    "set": ({1.0, 2.0}, ("a set is no array", "pass an array or numbers")),
    "generator": ((x for x in A), ("a generator is no array", "pass an array or numbers")),
    "list of complex": ([1j] * 5, ("complex", "pass numbers")),
    "ragged list": ([[1.0], [1.0, 2.0]], ("no regular sequence", "of one length")),
    "beyond any float": ([10**400] * 5, ("too large", "pass numbers")),
}  # fmt: skip
EMPTY = {
    "empty": (np.ones(0), ("(0,)", "along the last axis")),
    "empty rows": (np.ones((3, 0)), ("(3, 0)", "along the last axis")),
    "no axis": (np.asarray(1.0), ("()", "along the last axis")),
}

# One exponent as the first argument, of any shape.
EXPONENT = {
    "zeta": (sc.zeta, "s"),
    "zeta_bound": (sc.zeta_bound, "s"),
    "window_bound": (lambda s: sc.window_bound(s, 5), "s"),
    "exponential_participation": (sc.exponential_participation, "b"),
    "log_normal_participation": (lambda a: sc.log_normal_participation(a, 1.0, 5), "a"),
}

# α, and so δ: a number or an array without axes.
ALPHA = {
    "transfer": lambda **k: sc.transfer(A, **{"alpha": 2.0} | k),
    "transfer_bound": lambda **k: sc.transfer_bound(**{"alpha": 2.0} | k),
    "precondition": lambda **k: sc.precondition(EYE, **{"alpha": 2.0} | k),
    "spectral_newton_step": lambda **k: sc.spectral_newton_step(
        EYE, EYE, EYE, **{"lr": 0.1, "alpha": 2.0} | k
    ),
}
NO_NUMBER = {
    "str": ("2", "no number"), "None": (None, "no number"), "complex": (2j, "no number"),
    "list": ([2.0], "no number"), "array of three": (np.ones(3), "has shape (3,)"),
    "complex array": (np.asarray(2j), "has dtype complex128"),
    "bool array": (np.asarray(True), "has dtype bool"),
}  # fmt: skip
OUTSIDE = {"NaN": NAN, "negative": -1.0, "infinite": INF}


def step(**options):
    return sc.spectral_newton_step(EYE, EYE, EYE, **{"lr": 0.1, "alpha": 1.0} | options)


def form(shape=(8, 3), most=64, **found):
    """Find the form of a loss, of which each form that is tried says this."""
    fit = Fit(**{"misfit": 0.0, "least": 1.0, "largest": 1.0, "slope": 1.0} | found)
    return find_form(shape, 2.0**-52, lambda forms: [fit] * len(forms), most)


def factor_options(**options):
    FactorOptions(
        **{"fisher_type": "ggn", "kfac_approx": "expand", "mc_samples": 2, "max_columns": 0}
        | options
    ).check()


def dense():
    """A problem of 48 samples that divides them."""
    network, rng = DenseNetwork((6, 8, 5), activation="tanh"), np.random.default_rng(0)
    return network.problem(network.init(), [(rng.normal(size=(48, 6)), rng.integers(0, 5, 48))])


def measured(**changed):
    """Measure one layer whose curvatures are ones, of a problem in which something is changed."""
    methods = {
        "layers": lambda: [sc.LayerInfo("w", "linear", (3, 2))],
        "skipped": dict,
        "gradients": lambda layers: {"w": np.diag(A[:3])[:, :2]},
        "curvatures": lambda layer, u, v, kind: np.ones(u.shape[1]),
        "describe": dict,
    } | changed
    problem = SimpleNamespace(**{name: method for name, method in methods.items() if method})
    return sc.measure(problem, top_k=2)


def checked(name, *arguments):
    """A case of one of the checks that backends share."""
    return f"spectral_core.curvature.argument_checks:{name}", lambda: getattr(
        argument_checks, name
    )(*arguments)


EIGHT = dict.fromkeys("abcdefgh", 1)
LAYOUT = sc.as_matrices((6, 4))

CASES = [
    *(
        refused(of, what, lambda call=call, value=value: call(value), name, *words)
        for of, (call, name) in SPECTRUM.items()
        for what, (value, words) in NO_SPECTRUM.items()
    ),
    *(
        refused(of, what, lambda call=call, value=value: call(value), name, words[0], "pass")
        for of, (call, name) in SPECTRUM.items()
        for what, (value, words) in EMPTY.items()
    ),
    *(
        refused(of, what, lambda call=call, value=value: call(value), name, *words)
        for of, (call, name) in EXPONENT.items()
        for what, (value, words) in NO_SPECTRUM.items()
    ),
    *(
        refused(of, f"alpha {what}", lambda call=call, v=value: call(alpha=v), "alpha", seen, "pass")
        for of, call in ALPHA.items()
        for what, (value, seen) in NO_NUMBER.items()
    ),
    *(
        refused(of, f"damping {what}", lambda call=call, v=value: call(damping=v), "damping", seen, "pass")
        for of, call in ALPHA.items()
        for what, (value, seen) in NO_NUMBER.items()
    ),
    *(
        refused(of, f"alpha {what}", lambda call=call, v=value: call(alpha=v), "alpha", str(value), "pass")
        for of, call in ALPHA.items()
        for what, value in OUTSIDE.items()
    ),
    *(
        refused(of, f"damping {what}", lambda call=call, v=value: call(damping=v), "damping", str(value), "0.1 is")
        for of, call in ALPHA.items()
        for what, value in OUTSIDE.items()
    ),
    *(
        refused(of, f"damping mode {mode!r}", lambda call=call, m=mode: call(damping_mode=m), "damping_mode", repr(mode), "spectral, absolute")
        for of, call in ALPHA.items()
        for mode in ("relative", None, [])
    ),
    *(
        refused(of, "zero damping over 1", lambda call=call: call(damping=0), "damping", "alpha = 2", "positive damping")
        for of, call in ALPHA.items()
    ),
    *(
        refused(of, f"confidence {value!r}", lambda call=call, v=value: call(v), "confidence", repr(value), "for instance 0.95")
        for of, call in {
            "fit_power_law": lambda c: sc.fit_power_law(A, A, confidence=c),
            "exponent_over_window": lambda c: sc.exponent_over_window(A, A, confidence=c),
            "check_line": lambda c: sc.check_line(A, A, confidence=c),
            "exponent_triangle": lambda c: sc.exponent_triangle(A, A, confidence=c),
            "decompose_exponent": lambda c: sc.decompose_exponent(A, A, A, alignment(), confidence=c),
        }.items()
        for value in (95, 0, 1, -0.5, NAN, "0.95", None, True, 1 - 1e-16)
    ),
    *(
        refused(of, f"where {what}", lambda call=call, v=value: call(v), "where", seen, remedy)
        for of, call in {
            "fit_power_law": lambda w: sc.fit_power_law(A, A, where=w),
            "exponent_over_window": lambda w: sc.exponent_over_window(A, A, where=w),
            "check_line": lambda w: sc.check_line(A, A, where=w),
            "fit_rank_profiles": lambda w: sc.fit_rank_profiles(A, where=w),
        }.items()
        for what, value, seen, remedy in (
            ("of ints", np.ones(5, dtype=int), "int64", "pass booleans"),
            ("of another length", np.ones(4, dtype=bool), "(4,)", "pass booleans"),
            ("a str", "yes", "a str", "pass booleans"),
            ("ragged", [[True], [True, False]], "no regular", "pass booleans"),
            ("of another library", torch.asarray([True] * 5), "torch", "to one"),
        )
    ),
    refused("fit_power_law", "lengths differ", lambda: sc.fit_power_law(A, A[:4]), "x (5,), y (4,)", "differ in length", "one value per"),
    refused("fit_power_law", "batches differ", lambda: sc.fit_power_law(np.ones((2, 5)), np.ones((3, 5))), "x (2, 5), y (3, 5)", "broadcast", "equal shapes"),
    refused("fit_power_law", "libraries differ", lambda: sc.fit_power_law(A, STRICT), "x: numpy", "y: torch", "convert them to one"),
    refused("fit_power_law", "weights of another length", lambda: sc.fit_power_law(A, A, weights=A[:2]), "weights (2,)", "differ in length", "one value per"),
    gives("fit_power_law", "negative weights", lambda: sc.fit_power_law(A, A, weights=-A), lambda f: nan(f.exponent) and "fewer" in f.reason),
    gives("fit_power_law", "NaN and infinity left out", lambda: sc.fit_power_law([1.0, 2, 3, NAN, INF], A), lambda f: (f.n, f.n_dropped) == (3, 2)),
    gives("fit_power_law", "read-only and not contiguous", lambda: sc.fit_power_law(read_only(A), np.repeat(A, 2)[::2]), lambda f: abs(f.exponent - 1) < 1e-12),
    gives("fit_power_law", "a million points", lambda: sc.fit_power_law(np.arange(1.0, 1e6), np.arange(1.0, 1e6) ** -1.5), lambda f: abs(f.exponent + 1.5) < 1e-9),
    gives("fit_power_law", "denormal and huge", lambda: sc.fit_power_law([1e-310, 1.0, 1e308], [1e-310, 1.0, 1e308]), lambda f: abs(f.exponent - 1) < 1e-9),
    refused("fit_power_law", "unknown estimator", lambda: sc.fit_power_law(A, A, estimator="poisson"), "estimator", "'poisson'", "choose"),
    refused("exponent_triangle", "unknown order", lambda: sc.exponent_triangle(A, A, order="rank"), "order", "'rank'", "choose"),
    refused("exponent_triangle", "order None", lambda: sc.exponent_triangle(A, A, order=None), "order", "None", "choose"),
    refused("exponent_triangle", "libraries differ", lambda: sc.exponent_triangle(A, STRICT), "sigma: numpy", "curvature: torch", "convert them"),
    gives("exponent_triangle", "nothing positive", lambda: sc.exponent_triangle(A, -A), lambda t: nan(t.alpha.exponent) and "fewer" in t.alpha.reason),
    gives("exponent_triangle", "all NaN", lambda: sc.exponent_triangle(A * NAN, A * NAN), lambda t: nan(t.defect) and t.gamma.n_dropped == 5),
    refused("decompose_exponent", "alignment a number", lambda: sc.decompose_exponent(A, A, A, 5), "alignment", "a int", "spectral_alignment"),
    refused("decompose_exponent", "alignment of fewer", lambda: sc.decompose_exponent(A[:4], A[:4], A[:4], alignment()), "kron (5,)", "differ in length", "one value per"),
    gives("decompose_exponent", "NaN in the Gauss-Newton part", lambda: sc.decompose_exponent(A, A, A * NAN, alignment()), lambda d: nan(d.alpha.exponent) and nan(d.chi)),
    gives("participation_ratio", "nothing positive", lambda: sc.participation_ratio(-A), nan),
    gives("participation_ratio", "infinity left out", lambda: sc.participation_ratio([INF, 1.0, 1.0]), lambda r: r == 2),
    gives("entropy_rank", "the largest floats", lambda: sc.entropy_rank([1.7e308] * 4), lambda r: abs(r - 4) < 1e-9),
    gives("certified_exponent", "one value", lambda: sc.certified_exponent([1.0]), nan),
    gives("fit_rank_profiles", "three ranks", lambda: sc.fit_rank_profiles(A[:3]), lambda f: f.winner == "undecided"),
    gives("fit_rank_profiles", "all NaN", lambda: sc.fit_rank_profiles(A * NAN), lambda f: f.winner == "undecided"),
    *(
        refused(of, f"k {value!r}", lambda call=call, v=value: call(v), "k:", repr(value), "pass")
        for of, call in {
            "window_bound": lambda k: sc.window_bound(2.0, k),
            "exponential_participation": lambda k: sc.exponential_participation(2.0, k),
            "log_normal_participation": lambda k: sc.log_normal_participation(1.0, 1.0, k),
        }.items()
        for value in (0, -3, 2.5, NAN, "5", True, 10**13)
    ),
    refused("window_bound", "k None", lambda: sc.window_bound(2.0, None), "k:", "None", "pass"),
    gives("window_bound", "NaN", lambda: sc.window_bound(np.asarray(NAN), 5), nan),
    gives("window_bound", "infinite", lambda: sc.window_bound(np.asarray([INF, -INF]), 5), lambda b: (b == 1).all()),
    gives("zeta", "where it diverges", lambda: sc.zeta(np.asarray([0.5, -3.0, NAN])), nan),
    gives("zeta", "at its pole and at infinity", lambda: sc.zeta(np.asarray([1.0, INF])), lambda z: list(z) == [INF, 1.0]),
    gives("zeta_bound", "below 1", lambda: sc.zeta_bound(np.asarray([0.0, -INF])), lambda b: np.isinf(b).all()),
    gives("exponential_participation", "not positive", lambda: sc.exponential_participation(np.asarray([0.0, -1.0, NAN])), nan),
    gives("exponential_participation", "denormal rate", lambda: sc.exponential_participation(np.asarray(1e-320), 7), lambda r: abs(r - 7) < 1e-9),
    refused("log_normal_participation", "shapes differ", lambda: sc.log_normal_participation(np.ones(3), np.ones(4), 5), "a (3,), b (4,)", "broadcast", "equal shapes"),
    *(
        refused("effective_rank", what, lambda v=value: sc.effective_rank(v), "covariance", seen, remedy)
        for what, value, seen, remedy in (
            ("a vector", A, "(5,)", "pass a square matrix"), ("not square", np.ones((2, 3)), "(2, 3)", "pass a square matrix"),
            ("empty", np.ones((0, 0)), "(0, 0)", "pass a square matrix"), ("ints", np.eye(3, dtype=int), "int64", "convert"),
            ("a str", "abc", "a str", "pass an array"),
        )
    ),
    gives("effective_rank", "NaN", lambda: sc.effective_rank(EYE * NAN), nan),
    gives("effective_rank", "infinite", lambda: sc.effective_rank(np.full((3, 3), INF)), nan),
    gives("effective_rank", "zeros", lambda: sc.effective_rank(0 * EYE), nan),
    gives("effective_rank", "the largest floats", lambda: sc.effective_rank(1.7e308 * EYE), lambda r: abs(r - 3) < 1e-9),
    *(
        refused("spectral_alignment", what, lambda a=arguments, o=options: sc.spectral_alignment(*a, **o), *words)
        for what, arguments, options, words in (
            ("u of the factor's other side", (np.ones((2, 2)), U, EYE, EYE), {}, ("u", "(2, 2)", "pass (3, K)")),
            ("v of the factor's other side", (U, np.ones((2, 2)), EYE, EYE), {}, ("v", "(2, 2)", "pass (3, K)")),
            ("more directions than dimensions", (np.ones((3, 4)), np.ones((3, 4)), EYE, EYE), {}, ("u", "4 directions of 3", "at most")),
            ("unequal numbers", (U, EYE, EYE, EYE), {}, ("u and v", "2 and 3", "pass as many")),
            ("unequal numbers in a batch", (np.ones((4, 3, 2)), np.ones((4, 3, 1)), EYE, EYE), {}, ("u and v", "2 and 1", "pass as many")),
            ("u of the other side in a batch", (np.ones((2, 2)), U, np.ones((4, 5, 3, 3)), EYE), {}, ("u", "(2, 2)", "pass (3, K)")),
            ("no directions", (np.ones((3, 0)), U, EYE, EYE), {}, ("u", "(3, 0)", "pass (3, K)")),
            ("factor not square", (U, U, np.ones((3, 2)), EYE), {}, ("c_delta", "(3, 2)", "pass a square")),
            ("batches differ", (np.ones((2, 3, 2)), U, np.ones((5, 3, 3)), EYE), {}, ("u (2,)", "broadcast", "equal shapes")),
            ("batches of v differ", (U, np.ones((2, 3, 2)), EYE, np.ones((5, 3, 3))), {}, ("v (2,)", "broadcast", "equal shapes")),
            ("libraries differ", (torch.asarray(U), U, EYE, EYE), {}, ("u: torch", "v: numpy", "convert them")),
            ("rtol a str", (U, U, EYE, EYE), {"rtol": "x"}, ("rtol", "'x'", "say 1e-3")),
            ("rtol of one", (U, U, EYE, EYE), {"rtol": 1}, ("rtol", "1", "say 1e-3")),
            ("rtol NaN", (U, U, EYE, EYE), {"rtol": NAN}, ("rtol", "nan", "say 1e-3")),
            ("gap negative", (U, U, EYE, EYE), {"gap_tolerance": -1}, ("gap_tolerance", "-1", "say 1e-3")),
        )
    ),
    gives("spectral_alignment", "NaN in a factor", lambda: sc.spectral_alignment(U, U, EYE * NAN, EYE), lambda a: nan(a.phi) and not nan(a.rho_a)),
    gives("spectral_alignment", "zero factor", lambda: sc.spectral_alignment(U, U, 0 * EYE, EYE), lambda a: nan(a.rho_delta) and a.delta.rank == 0),
    *(
        refused("noise_null", what, lambda a=arguments, o=options: sc.noise_null(*a, **o), *words)
        for what, arguments, options, words in (
            ("not square", (np.ones((2, 3)), EYE, 9), {}, ("c_delta_gradient", "(2, 3)", "pass a square matrix")),
            ("negative", (EYE, -EYE, 9), {}, ("c_a", "eigenvalue -1", "Pass a factor as")),
            ("NaN", (EYE, EYE * NAN, 9), {}, ("c_a", "not finite", "look at")),
            ("zeros", (0 * EYE, EYE, 9), {}, ("c_delta_gradient", "is zero", "a layer without")),
            ("ints", (EYE, np.eye(3, dtype=int), 9), {}, ("c_a", "int64", "convert")),
            ("of another layer", (EYE, EYE, 9), {"c_delta": np.eye(2)}, ("c_delta", "(2, 2)", "of one layer")),
            ("no terms", (EYE, EYE, 0), {}, ("n_terms", "0", "whole number of 1")),
            ("half a direction", (EYE, EYE, 9), {"top_k": 0.5}, ("top_k", "0.5", "whole number of 1")),
            ("a str of draws", (EYE, EYE, 9), {"n_draws": "5"}, ("n_draws", "'5'", "whole number of 1")),
            ("negative seed", (EYE, EYE, 9), {"seed": -1}, ("seed", "-1", "whole number of 0")),
        )
    ),
    gives("noise_null", "two directions", lambda: sc.noise_null(EYE, EYE, 9, top_k=2, n_draws=3), lambda r: nan(r.exponents["alpha"]) and nan(r.p_value("alpha", 2.0))),
    gives("noise_null", "the largest floats", lambda: sc.noise_null(1.7e308 * EYE, 1.7e308 * EYE, 9, n_draws=3), lambda r: np.isfinite(r.sigma).all()),
    gives("noise_null", "tiny factors", lambda: sc.noise_null(1e-300 * EYE, 1e-300 * EYE, 9, n_draws=3), lambda r: (r.sigma > 0).all()),
    refused("NoiseNull.interval", "an unknown name", lambda: sc.noise_null(EYE, EYE, 9, n_draws=3).interval("kappa"), "name", "'kappa'", "choose one of"),
    refused("NoiseNull.p_value", "an unknown name", lambda: sc.noise_null(EYE, EYE, 9, n_draws=3).p_value(5, 2.0), "name", "5", "choose one of"),
    *(
        refused("layernorm_band", f"{pair!r}", lambda p=pair: sc.layernorm_band(*p), "n and batch", repr(pair[0]), "positive")
        for pair in ((0, 5), (5, -1), (NAN, 5), (3, NAN), ("3", 5), (None, 5), (INF, 5))
    ),
    gives("layernorm_band", "fewer samples than features", lambda: sc.layernorm_band(5, 5), lambda b: b == INF),
    *(
        refused("softmax_head_rank", repr(value), lambda v=value: sc.softmax_head_rank(v), "classes", repr(value), "whole number of 2")
        for value in (1, 0, -5, 2.5, NAN, "2", None)
    ),
    *(
        refused("slope_bound", what, lambda v=value: sc.slope_bound(v, 3.0), "sigma", seen, "pass")
        for what, value, seen in (
            ("infinite", [1.0, INF], "(2,)"), ("NaN", [1.0, NAN], "(2,)"), ("negative", [1.0, -1.0], "(2,)"),
            ("constant", [2.0, 2.0], "(2,)"), ("a matrix", EYE + 1, "(3, 3)"), ("a str", "abc", "a str"),
        )
    ),
    refused("slope_bound", "empty", lambda: sc.slope_bound([], 3.0), "sigma", "(0,)", "pass"),
    *(refused("slope_bound", f"band {b!r}", lambda b=b: sc.slope_bound(A, b), "band", repr(b), "pass a condition") for b in (0.5, NAN, "3", None)),
    gives("slope_bound", "band infinite", lambda: sc.slope_bound(A, INF), lambda b: b == INF),
    *(
        refused("residual_prediction", what, lambda a=arguments: sc.residual_prediction(*a), *words)
        for what, arguments, words in (
            ("fewer eigenvalues", (A, A[:2]), ("eigenvalues", "(5,) and (2,)", "m of at least K")),
            ("infinite eigenvalue", (A[:2], [INF, 1.0]), ("eigenvalues", "finite", "shorten")),
            ("NaN beyond the window", (A[:2], [2.0, 1.0, NAN]), ("eigenvalues", "finite", "shorten")),
            ("σ NaN", ([NAN, 1.0], A), ("sigma", "(2,)", "finite")),
            ("complex", ([1j, 2.0], A), ("sigma", "complex", "pass numbers")),
        )
    ),
    gives("transfer", "NaN spoils its row alone", lambda: sc.transfer([[NAN, 2.0], [1.0, 2.0]], 2), lambda t: nan(t[0]) and np.isfinite(t[1]).all()),
    gives("transfer", "negative", lambda: sc.transfer([-1.0, 2.0], 2.0, damping_mode="absolute"), lambda t: nan(t[0]) and np.isfinite(t[1])),
    gives("transfer", "infinite", lambda: sc.transfer([INF, 2.0], 2.0), nan),
    gives("transfer", "zeros", lambda: sc.transfer([0.0, 0.0], 2.0), lambda t: (t == 0).all()),
    *(refused("transfer_bound", f"sigma_max {v!r}", lambda v=v: sc.transfer_bound(2.0, sigma_max=v), "sigma_max", s, "pass") for v, s in ((0, "0"), (-1, "-1"), (NAN, "nan"), (INF, "inf"), ("1", "a str"), (None, "a NoneType"))),
    refused("transfer_bound", "alpha an array", lambda: sc.transfer_bound(np.asarray(2.0)[None][0:1].reshape(())), "alpha", "a ndarray", "pass a number"),
    gives("transfer_bound", "beyond the floats", lambda: sc.transfer_bound(4.0, sigma_max=1e-300), lambda b: b == INF),
    gives("transfer_bound", "σ^α beyond the floats", lambda: sc.transfer_bound(4.0, damping_mode="absolute", sigma_max=1e-300), lambda b: abs(b / 1e-299 - 1) < 1e-9),
    *(
        refused("precondition", what, lambda g=value: sc.precondition(g, 2.0), "gradient", seen, remedy)
        for what, value, seen, remedy in (
            ("a vector", A, "(5,)", "pass a matrix"), ("empty", np.ones((0, 3)), "(0, 3)", "pass a matrix"), ("ints", np.eye(3, dtype=int), "int64", "convert"),
            ("bool", EYE > 0, "bool", "convert"), ("complex", EYE * 1j, "complex128", "convert"), ("None", None, "a NoneType", "pass an array"),
            ("a kernel", KERNEL, "(8, 3, 3, 3)", "by matrices="),
        )
    ),
    *(refused("precondition", f"{name} {value!r}", lambda n=name, v=value: sc.precondition(EYE, 2.0, **{n: v}), name, str(value), remedy) for name, value, remedy in (
        ("method", "lu", "closed"), ("method", None, "closed"), ("tolerance", 0, "0.01 is"), ("tolerance", 1.0, "0.01 is"), ("tolerance", NAN, "0.01 is"), ("tolerance", "x", "0.01 is"),
        ("normalize", "max", "rms"), ("precision", "float8", "working"), ("precision", "bfloat16", "use 'working'"),
    )),
    *(refused("precondition", f"matrices {m!r} of {len(g.shape)} axes", lambda g=g, m=m: sc.precondition(g, 2.0, matrices=m), "matrices", seen, remedy) for g, m, seen, remedy in (
        (KERNEL, "matrix", "'matrix'", "pass the spec"), (KERNEL, "conv groups=3", "3 groups", "pass the spec"), (EYE, "conv", "(3, 3)", "pass the spec"), (EYE, "kernel", "'kernel'", "write for instance"), (EYE, 2, "2", "write for instance"), (A, "matrix", "(5,)", "pass the spec"), (KERNEL[:0], "conv", "(0, 3, 3, 3)", "pass the spec"),
    )),
    refused("precondition", "method that does not serve", lambda: sc.precondition(EYE, 1.5, method="closed"), "method", "1.5", "use 'auto'"),
    *(refused("precondition", what, lambda a=arguments, o=options: sc.precondition(*a, **o), name, seen, remedy) for what, arguments, options, name, seen, remedy in (
        ("shifts for α = 3", (EYE, 3.0), {"method": "shifts"}, "method", "3.0", "use 'auto' or 'eigh'"),
        ("shifts with absolute damping", (EYE, 1.0), {"method": "shifts", "damping_mode": "absolute"}, "method", "absolute damping", "use 'eigh' or 'svd'"),
        ("polar for α = 2", (EYE, 2.0), {"method": "polar"}, "method", "alpha = 2.0 and damping = 0.1", "use 'auto'"),
        ("polynomial with absolute damping", (EYE, 1.0), {"method": "polynomial", "damping_mode": "absolute"}, "method", "absolute damping 0.1", "use 'auto'"),
        ("a damping below rounding", (EYE, 2.0, 1e-17), {"method": "closed"}, "method", "1e-17", "use 'svd'"),
        ("a polynomial that does not reach the tolerance", (EYE, 1.0, 1e-4), {"method": "polynomial"}, "method", "0.0001", "raise the tolerance"),
        ("a Gram matrix that rounds", (EYE, 0.5, 1e-3), {"method": "eigh", "tolerance": 1e-8}, "method", "1e-08", "use 'svd' or float64"),
        ("singular values that round", (EYE, 0.5), {"method": "svd", "tolerance": 1e-15}, "method", "1e-15", "use float64"),
        ("eigenvalues in bfloat16", (torch.ones(3, 4), 1.0), {"method": "eigh", "precision": "bfloat16"}, "precision", "'eigh'", "use 'working'"),
        ("bfloat16 of α = 1 in closed form", (torch.ones(3, 4), 1.0), {"method": "closed", "precision": "bfloat16"}, "precision", "'closed'", "use 'working'"),
    )),
    *(refused("precondition_method", f"{name} {value!r}", lambda n=name, v=value: sc.precondition_method(**{"shape": (3, 4), "dtype": "float32", "alpha": 2.0} | {n: v}), name, seen, remedy) for name, value, seen, remedy in (
        ("shape", 5, "5", "tuple of lengths"), ("shape", "ab", "'ab'", "tuple of lengths"), ("shape", (3, -4), "(3, -4)", "tuple of lengths"), ("shape", (3.0, 4.0), "(3.0, 4.0)", "tuple of lengths"),
        ("shape", (5,), "(5,)", "pass a matrix"), ("shape", (8, 3, 3, 3), "(8, 3, 3, 3)", "by matrices="), ("dtype", "int32", "'int32'", "float32"), ("dtype", "x", "'x'", "float32"),
        ("alpha", 5.0, "5.0", "[0, 4]"), ("damping", 0.0, "0 with alpha", "positive damping"), ("method", "qr", "'qr'", "closed, shifts"), ("method", "polar", "'polar'", "use 'auto'"), ("tolerance", 2, "2", "0.01 is"), ("precision", "half", "'half'", "bfloat16"), ("matrices", "conv", "(3, 4)", "3 or more axes"),
    )),
    gives("precondition_method", "α an array", lambda: sc.precondition_method((3, 4), "float32", np.asarray(2.0)), lambda c: c.name == "svd" and nan(c.error)),
    refused("precondition", "α an array for closed", lambda: sc.precondition(EYE, np.asarray(2.0), method="closed"), "method", "arrays", "use 'eigh'"),
    *(gives("precondition", f"{name} by {method}", lambda g=g, m=method: sc.precondition(g, 2.0, method=m), check) for method in ("closed", "eigh", "svd") for name, g, check in (
        ("NaN", EYE * NAN, nan), ("infinite", np.full((3, 3), INF), nan), ("zeros", 0 * EYE, lambda r: (r == 0).all()),
        ("read-only, not contiguous", read_only(np.ones((6, 6)))[::2, ::3], lambda r: np.isfinite(r).all()),
    )),
    gives("precondition", "one NaN matrix of a batch", lambda: sc.precondition(np.stack([EYE, EYE * NAN]), 2.0), lambda r: np.isfinite(r[0]).all() and nan(r[1])),
    *(refused("spectral_newton_step", f"{name} {what}", lambda n=name, v=value: step(**{n: v}), name, seen, remedy) for name, remedy in (("lr", "1e-3 is"), ("beta", "0.95 is"), ("weight_decay", "0.01 is")) for what, value, seen in (("negative", -1.0, "-1.0"), ("NaN", NAN, "nan"), ("infinite", INF, "inf"))),
    *(refused("spectral_newton_step", f"{name} {what}", lambda n=name, v=value: step(**{n: v}), name, seen, "pass") for name in ("lr", "beta", "weight_decay") for what, value, seen in (("None", None, "None"), ("a str", "x", "'x'"), ("complex", np.asarray(1j), "complex128"), ("of another shape", np.ones(7), "(7,)"), ("of more axes", np.ones((2, 3, 3)), "(2, 3, 3)"))),
    refused("spectral_newton_step", "a kernel", lambda: sc.spectral_newton_step(KERNEL, KERNEL, KERNEL, lr=0.1, alpha=1), "weight", "(8, 3, 3, 3)", "by matrices="),
    refused("spectral_newton_step", "a vector", lambda: sc.spectral_newton_step(A, A, A, lr=0.1, alpha=1), "weight", "(5,)", "pass a matrix"),
    refused("spectral_newton_step", "matrices that do not fit", lambda: step(matrices="conv"), "matrices", "(3, 3)", "pass the spec"),
    refused("spectral_newton_step", "unknown scale", lambda: step(scale="max"), "scale", "'max'", "rms"),
    refused("spectral_newton_step", "shapes differ", lambda: sc.spectral_newton_step(EYE, EYE, U, lr=0.1, alpha=1), "weight, gradient and momentum", "(3, 2)", "pass three of one shape"),
    refused("spectral_newton_step", "libraries differ", lambda: sc.spectral_newton_step(EYE, torch.asarray(EYE), EYE, lr=0.1, alpha=1), "gradient: torch", "weight: numpy", "convert"),
    gives("spectral_newton_step", "NaN gradient", lambda: sc.spectral_newton_step(EYE, EYE * NAN, U @ U.T, lr=0.1, alpha=1), lambda r: (r[0] == 0).all() and (r[1] == U @ U.T).all()),
    *(refused("as_matrices", f"shape {shape!r}", lambda s=shape: sc.as_matrices(s), "shape", seen, "pass") for shape, seen in (((2.7, 3), "2.7"), ((-1, 3), "-1"), ("ab", "'ab'"), (None, "None"), (5, "5"), ((True, 3), "True"), ((3,), "(3,)"), ((0, 3), "(0, 3)"), (((1, 2), 3), "(1, 2)"))),
    *(refused("as_matrices", f"spec {spec!r}", lambda s=spec: sc.as_matrices((6, 4), s), "spec", seen, remedy) for spec, seen, remedy in (
        (5, "5", "write for instance"), (None, "None", "write for instance"), ("", "''", "write for instance"), ("conv groups", "'conv groups'", "write for instance"),
        ("matrix rows=x", "rows=x", "write for instance"), ("matrix rows=0", "0", "write for instance"), ("matrix rows=2 rows=3", "twice", "write for instance"),
        ("matrix rows=7", "6 rows", "pass the spec"), ("conv", "3 or more axes", "pass the spec"),
    )),
    *(refused("MatrixSpec", f"{name} {value!r}", lambda n=name, v=value: sc.MatrixSpec(**{n: v}), name, repr(value)[:9], remedy) for name, value, remedy in (
        ("kind", "dense", "conv"), ("kind", None, "conv"), ("stack", -1, "leading axes"), ("stack", 1.5, "leading axes"), ("groups", 0, "positive number"),
        ("groups", 2, "positive number"), ("rows", "3", "pass for instance"), ("rows", (2, 2.5), "pass for instance"), ("columns", (), "pass for instance"), ("columns", None, "pass for instance"),
    )),
    refused("MatrixSpec", "parse a number", lambda: sc.MatrixSpec.parse(5), "spec", "a int", "write for instance"),
    refused("MatrixLayout", "a str for a shape", lambda: sc.MatrixLayout("ab", sc.MatrixSpec()), "shape", "'ab'", "pass that"),
    refused("MatrixLayout", "a str for a spec", lambda: sc.MatrixLayout((2, 3), "conv"), "spec", "'conv'", "write"),
    *(refused("MatrixLayout", what, lambda c=call: c(), name, seen, remedy) for what, call, name, seen, remedy in (
        ("split a number", lambda: LAYOUT.split(5), "array", "a int", "pass an array"), ("split lists", lambda: LAYOUT.split([[1.0]]), "array", "a list", "pass an array"),
        ("split another shape", lambda: LAYOUT.split(EYE), "array", "(3, 3)", "(6, 4)"), ("merge None", lambda: LAYOUT.merge(None), "matrices", "a NoneType", "pass the list"),
        ("merge numbers", lambda: LAYOUT.merge([5]), "matrices", "a int", "pass an array"), ("merge nothing", lambda: LAYOUT.merge([]), "matrices", "[]", "this layout is for"),
    )),
    *(refused("select_layers", repr(selection), lambda s=selection: sc.select_layers(LAYERS, s), "layers", seen, remedy) for selection, seen, remedy in (
        (5, "5", "pass for instance"), (None, "None", "pass for instance"), ([5], "[5]", "pass for instance"), (b"*", "b'*'", "pass for instance"), ([], "empty", "pass '*'"),
        ("x*", "'x*'", "did you mean"), ("[", "'['", "did you mean"), (["a", "c"], "'c'", "did you mean"), ("*" * 60 + "x", "x'", "did you mean"),
    )),
    *(refused("spectral_core.curvature.factor_options:FactorOptions", f"{name} {value!r}", lambda n=name, v=value: factor_options(**{n: v}), name, repr(value), remedy) for name, value, remedy in (
        ("fisher_type", "fisher", "choose"), ("kfac_approx", "sum", "choose"), ("mc_samples", 4.0, "even number of 2 or more"), ("mc_samples", "4", "even number of 2 or more"), ("mc_samples", 0, "even number of 2 or more"),
        ("mc_samples", 3, "even number of 2 or more"), ("max_columns", -1, "a number of columns"), ("max_columns", 64.0, "a number of columns"),
    )),
    *(refused("spectral_core.curvature.factor_options:check_factor_size", f"{shape}", lambda s=shape: check_factor_size(sc.LayerInfo("a", "linear", s)), "layer 'a'", seen, "leave it out", error=sc.LayerError) for shape, seen in (
        ((16385, 3), "16385×3"), ((3, 40000), "12 GiB"),
    )),
    *(refused("measure", f"{what} {value!r}", lambda w=what, v=value: sc.measure(dense(), progress=False, **{w: v}), what, seen, remedy) for what, value, seen, remedy in (
        ("sampling", 3, "3 is no number of groups", "4 or more"), ("sampling", True, "True is no number", "or None"), ("sampling_directions", "both", "'both' is unknown", "choose 'auto'"),
        ("noise_draws", 0.5, "0.5 is no number of draws", "or 0 for none"), ("noise_draws", 9, "made of Kronecker factors", "pass decompose=True"), ("directions_from", 7, "a int has no layers", "pass a"),
    )),
    *(refused("converge", f"{what} {value!r}", lambda w=what, v=value: sc.converge(dense(), progress=False, **{w: v}), what, seen, remedy) for what, value, seen, remedy in (
        ("sizes", 5, "5 is no list of numbers", "pass for instance"), ("sizes", [10**6], "1000000 is more than all", "use more data"), ("sizes", [40], "there is no second part", "choose sizes up to"),
        ("sizes", [48], "none is below all", "pass for instance"), ("sizes", [2], "do not have", "choose larger sizes"), ("top_k", 0, "0 is not a positive whole number", "of directions"),
    )),
    refused("Convergence.from_dict", "a list", lambda: sc.Convergence.from_dict([]), "convergence", "is not a complete convergence", "save it again", error=sc.ReportError),
    gives("LayerConvergence", "no drift at the smallest size", lambda: sc.converge(dense(), sizes=[24], top_k=3, progress=False)["0"].drift("alpha"), lambda drift: np.isnan(drift[0]) and np.isfinite(drift[-1])),
    gives("measure", "a problem with five methods", measured, lambda report: list(report) == ["w"]),
    *(refused("measure", f"a problem {what}", lambda c=changed: measured(**c), "problem: ", seen, remedy) for what, changed, seen, remedy in (
        ("without two methods", {"skipped": None, "describe": None}, "has no skipped, describe", "pass a CurvatureProblem"), ("whose layers are numbers", {"layers": lambda: [5]}, "a int", "return LayerInfo"),
        ("with a name twice", {"layers": lambda: LAYERS + LAYERS[:1]}, "'a'", "name each layer differently"), ("that describes itself by a number", {"describe": lambda: 5}, "'int' object is not iterable", "return numbers, texts"),
        *((f"whose gradient is {what}", {"gradients": lambda layers, g=gradient: {"w": g}}, seen, "of shape (3, 2)") for what, gradient, seen in (
            ("None", None, "nothing"), ("a list", [[1.0]], "a list"), ("of another shape", U.T, "shape (2, 3)"), ("of ints", np.ones((3, 2), dtype=int), "int64"),
        )),
        *((f"whose curvatures are {what}", {"curvatures": lambda *_, c=curvatures: c}, seen, "of shape (2,)") for what, curvatures, seen in (
            ("None", None, "NoneType"), ("of another number", A, "shape (5,)"), ("of ints", np.ones(2, dtype=int), "int64"),
        )),
    )),
    *(refused(of, what, call, name, seen, remedy) for what, (of, call), name, seen, remedy in (
        ("one that is not there", checked("find_layer", "x", EIGHT, {}), "layer 'x'", "there is none of that name", "layers are: a, b, c, d, e, f, g, h."),
        ("one that was skipped, of nine", checked("find_layer", "x", EIGHT | {"i": 1}, {"x": "it is a vector"}), "layer 'x'", "it is a vector", "layers are: a, b, c, d, e, f, g, h, …."),
        *(((f"shapes {u} and {v}"), checked("check_direction_shapes", LAYERS[0], u, v), "layer 'a'", f"{u} and {v}", "(3, K) and (3, K)") for u, v in (((3,), (3, 2)), ((3, 2), (3,)), ((2, 2), (3, 2)), ((3, 2), (4, 2)), ((3, 2), (3, 1)))),
        *((f"{value!r}", checked("check_kind", value), "kind", repr(value), "choose 'hessian' or 'ggn'") for value in ("hesse", None)),
        *((f"{value!r}", checked("check_reduction", value), "reduction", repr(value), "choose 'mean' or 'sum'") for value in ("none", 1)),
        *((f"{value!r}", checked("check_chunk_size", value), "chunk_size", repr(value), "a positive number") for value in (0, 1.0, True, "8")),
        *((f"{value!r}", checked("check_seed", value), "seed", repr(value), "from 0 to 2**32 - 2") for value in (-1, 2**32 - 1, 1.0, None, False)),
        *((what, checked("check_reiterable", value), "batches", seen, remedy) for what, value, seen, remedy in (
            ("an array", A, "a ndarray", "pass a list of batches"), ("a number", 5, "a int", "pass a list of batches"), ("an iterator", iter([]), "a list_iterator", "pass list(batches)"),
        )),
        *((f"{value!r}", checked("checked_count", value), "weight", repr(value), "return the batch's number") for value in (-1, NAN, INF, "many", None)),
    )),
    *(gives(of, what, call, check) for what, (of, call), check in (
        ("a layer", checked("find_layer", "a", EIGHT, {}), lambda layer: layer == 1), ("fitting shapes", checked("check_direction_shapes", LAYERS[0], [3, 2], [3, 2]), lambda none: none is None),
        *((f"{value!r}", checked("check_reduction", value), lambda none: none is None) for value in (None, "mean", "sum")),
        *((f"{value!r}", checked("check_chunk_size", value), lambda none: none is None) for value in (None, 1)),
        *((f"{value!r}", checked("check_seed", value), lambda none: none is None) for value in (0, 2**32 - 2)),
        *((f"{value!r} of terms", checked("checked_count", value), lambda count, v=value: count == float(v)) for value in (0, 2.5, "3", np.ones(()))),
    )),
    *(refused("spectral_core.losses.recognition:find_form", what, call, "loss_fn", seen, remedy) for what, call, seen, remedy in (
        ("linear in the outputs", lambda: form((8, 1), least=0.0, largest=0.0), "it is linear", "return logits"), ("not convex", lambda: form((8, 1), least=-0.123456), "-0.123", "choose fisher_type"),
        ("too many outputs without a form", lambda: form(most=2, misfit=1.0), "3 outputs", "raise max_columns"), ("samples compared", lambda: form(misfit=1.0), "it compares the samples", "axis of samples in front"),
    )),
    refused("select_layers", "what was skipped", lambda: sc.select_layers(LAYERS, "x*", skipped={"x.w": "frozen; thaw it"}), "layers", "'x*'", "thaw it"),
    refused("select_layers", "no layers at all", lambda: sc.select_layers([], skipped={"x.w": "frozen; thaw it"}, selection="*"), "layers", "'x.w'", "thaw it"),
    refused("select_layers", "a predicate that accepts none", lambda: sc.select_layers(LAYERS, lambda layer: False), "layers", "2 layers", "there are: a, b"),
    *(refused("explain", what, lambda v=value: sc.explain(v), "layer", seen, "pass one of a report") for what, value, seen in (("a number", 5, "a int"), ("None", None, "a NoneType"))),
    *(refused(of, "plain numbers of a batch", call, name, "(2,)", "index it first") for of, name, call in (
        ("PowerLawFit", "exponent", lambda: sc.fit_power_law(np.stack([A, A]), A).to_floats()),
        ("LineCheck", "quadratic", lambda: sc.check_line(np.stack([A, A]), A).to_floats()),
        ("ExponentTriangle", "exponent", lambda: sc.exponent_triangle(np.stack([A, A]), np.stack([A, A])).to_floats()),
        ("RankProfileFits", "gamma", lambda: sc.fit_rank_profiles(np.stack([A, A])).to_floats()),
        ("RankProfile", "gamma", lambda: sc.fit_rank_profiles(np.stack([A, A])).power_law.to_floats()),
    )),
    *(refused(of, "plain numbers of a batch", call, name, "(2,", "index it first") for of, name, call in (
        ("SpectralAlignment", "eigenvalues", lambda: sc.spectral_alignment(np.stack([U, U]), U, EYE, EYE).to_floats()),
        ("FactorSpectrum", "eigenvalues", lambda: sc.spectral_alignment(np.stack([U, U]), U, EYE, EYE).delta.to_floats()),
        ("ExponentDecomposition", "exponent", lambda: sc.decompose_exponent(np.stack([A, A]), A, A, alignment()).to_floats()),
    )),
]  # fmt: skip
