"""Masks and units are no numbers: a plain result from them would be silently wrong."""

import array_api_compat
import numpy as np
import pytest

import spectral_core as sc
from spectral_core.arrays.plain import plain

RNG = np.random.default_rng(0)
X = np.exp(RNG.normal(size=20))
Y = X**1.9
G = RNG.normal(size=(5, 6))
EYE, ONE, HERE = np.eye(6)[:, :5], np.asarray(1.0), X > 0
ALIGNMENT = sc.spectral_alignment(EYE, EYE, np.diag(np.arange(6.0, 0, -1)), np.eye(6))
STEP = {"lr": 0.1, "alpha": 1.0}

CALLS = {
    "fit_power_law": [(X, Y), (X, Y, {"weights": X, "where": HERE})],
    "exponent_over_window": [(X, Y, {"weights": X, "where": HERE})],
    "check_line": [(X, Y, {"where": HERE})],
    "fit_rank_profiles": [(X, {"where": HERE})],
    "exponent_triangle": [(X, Y)],
    "decompose_exponent": [(X[:5], X[:5], X[:5], ALIGNMENT)],
    "spectral_alignment": [(EYE, EYE, np.eye(6), np.eye(6))],
    "effective_rank": [(np.eye(5),)],
    "noise_null": [(np.eye(5), np.eye(6), 100, {"c_delta": np.eye(5), "n_draws": 4, "top_k": 4})],
    "participation_ratio": [(X,)],
    "entropy_rank": [(X,)],
    "certified_exponent": [(X,)],
    "window_bound": [(X, 5)],
    "zeta_bound": [(X,)],
    "zeta": [(X,)],
    "exponential_participation": [(X,)],
    "log_normal_participation": [(X, X, 5)],
    "slope_bound": [(X, 3.0)],
    "residual_prediction": [(X, X)],
    "transfer": [(X, ONE, ONE)],
    "precondition": [(G, ONE, ONE)],
    "spectral_newton_step": [
        (G, G, G, STEP | {"beta": 0.5 * ONE, "weight_decay": ONE, "lr": ONE, "alpha": ONE})
    ],
}
NO_ARRAYS = {
    "as_matrices", "converge", "explain", "layernorm_band", "measure", "precondition_method", "select_layers",
    "softmax_head_rank", "transfer_bound",
}  # fmt: skip


def places():
    """Yield every array argument of every function as ``(label, call)``, a call of that array."""
    for name, given in CALLS.items():
        for call in given:
            options = call[-1] if isinstance(call[-1], dict) else {}
            arguments = dict(enumerate(call[: len(call) - bool(options)])) | options
            for key, value in arguments.items():
                if isinstance(value, np.ndarray):
                    yield pytest.param(name, arguments, key, id=f"{name}-{key}")


def called(name, arguments, key, change):
    changed = arguments | {key: change(arguments[key])}
    positional = [value for place, value in changed.items() if isinstance(place, int)]
    return getattr(sc, name)(
        *positional, **{k: v for k, v in changed.items() if isinstance(k, str)}
    )


def masked(array, somewhere=True):
    mask = np.zeros(array.shape, dtype=bool)
    mask.flat[0] = somewhere
    return np.ma.array(array, mask=mask)


class Length(np.ndarray):
    """As `astropy.units.Quantity`."""

    unit = "m"


class Duck:
    """As `pint.Quantity`: no array, but NumPy would make one of it."""

    units = "metre"

    def __init__(self, array):
        self.magnitude = array

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.magnitude, dtype=dtype)


CARRIERS = {
    "masked": (masked, "masked values"),
    "unit": (lambda a: a.view(Length), "the unit 'm'"),
    "duck": (Duck, "the unit 'metre'"),
    "list": (lambda a: [masked(a), masked(a)] if a.ndim else [masked(a)], "masked values"),
    "list of ducks": (lambda a: [Duck(a)], "the unit 'metre'"),
}
LIBRARIES = {
    "astropy.units": (lambda units, a: a * units.m, "has the unit 'm'"),
    "astropy.utils.masked": (lambda masked, a: masked.Masked(a, mask=a > 1), "masked values"),
    "pint": (lambda pint, a: pint.Quantity(a, "m"), "has the unit 'meter'"),
    "unyt": (lambda unyt, a: unyt.unyt_array(a, "m"), "has the unit 'm'"),
}


def test_every_public_function_that_takes_arrays_is_here():
    functions = {name for name in sc.__all__ if name.islower() and callable(getattr(sc, name))}
    assert functions == set(CALLS) | NO_ARRAYS


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize(("name", "arguments", "key"), places())
def test_masks_and_units_are_refused_by_name(name, arguments, key, carrier):
    change, says = CARRIERS[carrier]
    with pytest.raises(sc.InputError, match=says):
        called(name, arguments, key, change)


@pytest.mark.parametrize(("name", "arguments", "key"), places())
def test_a_mask_without_a_masked_value_changes_nothing(name, arguments, key):
    expected = called(name, arguments, key, lambda a: a)
    found = called(name, arguments, key, lambda a: masked(a, somewhere=False))
    assert repr(found) == repr(expected)


@pytest.mark.parametrize("library", LIBRARIES)
def test_of_the_libraries_themselves(library):
    make, says = LIBRARIES[library]
    array = make(pytest.importorskip(library), X)
    for call in (sc.participation_ratio, lambda x: sc.fit_power_law(X, x), sc.zeta):
        for given in (array, [array, array]):
            with pytest.raises(sc.InputError, match=says):
                call(given)


def test_other_subclasses_work(tmp_path):
    on_disk = np.memmap(tmp_path / "h", dtype=np.float64, mode="w+", shape=X.shape)
    on_disk[:] = X
    for like in (on_disk, X.view(np.recarray), X.view(type("Own", (np.ndarray,), {}))):
        assert sc.participation_ratio(like) == sc.participation_ratio(X)


def test_remedies_hold():
    y = Y.copy()
    y[3] = 1e9
    data = np.ma.array(y, mask=np.arange(20) == 3)
    fit = sc.fit_power_law(X, data.filled(1.0), where=~data.mask)
    assert abs(fit.exponent - 1.9) < 1e-12 and fit.n_dropped == 1
    assert sc.participation_ratio(data.compressed()) == sc.participation_ratio(np.delete(Y, 3))
    with pytest.raises(sc.InputError, match=r"y: a numpy.MaskedArray .* where=~x.mask"):
        sc.fit_power_law(X, data)


def test_matrices_of_a_parameter_have_no_mask():
    layout = sc.as_matrices(G.shape)
    for call in (layout.split, lambda array: layout.merge([array[None]])):
        with pytest.raises(sc.InputError, match="masked values"):
            call(masked(G))
    assert type(layout.split(masked(G, somewhere=False))[0]) is np.ndarray


@pytest.mark.filterwarnings("ignore:The PyTorch API of MaskedTensors:UserWarning")
def test_tensors():
    torch = pytest.importorskip("torch")
    from torch.masked import masked_tensor

    x = torch.asarray(X)
    with pytest.raises(sc.InputError, match=r"h: a MaskedTensor has masked values"):
        sc.participation_ratio(masked_tensor(x, x > 1))
    expected = sc.participation_ratio(x)
    assert sc.participation_ratio(torch.nn.Parameter(x)) == expected
    assert torch.func.vmap(sc.participation_ratio)(torch.stack([x, x])).tolist() == [expected] * 2


def test_arrays_of_other_libraries_pass_as_they_are(xp):
    array = xp.array(X)
    assert plain("x", array) is array
    assert array_api_compat.is_array_api_obj(plain("x", array))
