"""Arguments of any library: where they lie, in what precision, and what a library lacks."""

from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from array_api_compat import array_namespace

import spectral_core as sc
from spectral_core.arrays.namespace import as_like, at_least, device_key, linear_algebra, to_numpy


class Bare:
    """An array of a library that has not all of the standard."""

    def __init__(self, **there):
        self._namespace = ModuleType("tiny")
        vars(self._namespace).update(there)

    def __array_namespace__(self, api_version=None):
        return self._namespace


Bare.__module__ = "tiny.core.arrays"
SOME = SimpleNamespace(svd=1, eigh=1, inv=1, trace=1)


@pytest.mark.parametrize(
    ("there", "lacks"),
    [({}, "eigh, svd, solve, inv, diagonal, trace"), ({"linalg": SOME}, "solve, diagonal")],
)
def test_a_library_without_linear_algebra_is_named_with_what_it_lacks(there, lacks):
    with pytest.raises(sc.InputError) as caught:
        linear_algebra("covariance", Bare(**there))
    assert str(caught.value) == (
        f"covariance: is an array of tiny, which lacks {lacks} of the standard's linear algebra; "
        "convert it, for instance with numpy.asarray."
    )


def test_numbers_and_arrays_become_like_another(xp):
    like = xp.array([1.0, 2.0])
    space = array_namespace(like)
    for value in (2.5, xp.array([2.5])):
        found = as_like(space, value, like)
        xp.check_kind(found, like)
        assert xp.numpy(found).ravel().tolist() == [2.5]


def test_another_precision_and_device_are_taken_on():
    strict = pytest.importorskip("array_api_strict")
    device = strict.Device("device1")
    like = strict.ones(3, dtype=strict.float32, device=device)
    for value in (0.1, strict.asarray(0.1, dtype=strict.float64, device=device)):
        found = as_like(strict, value, like)
        assert found.dtype == strict.float32 and found.device == device


def test_keys_tell_devices_apart():
    strict = pytest.importorskip("array_api_strict")
    here, there, again = (
        device_key(strict.ones(n, device=strict.Device(name)))
        for n, name in ((1, "CPU_DEVICE"), (1, "device1"), (2, "device1"))
    )
    assert there == again != here and len({here, there}) == 2


def test_at_least_keeps_nan(xp):
    values = xp.array([-np.inf, -1.0, 0.25, 0.5, 7.0, np.inf, np.nan])
    found = at_least(array_namespace(values), values, 0.25)
    xp.check_kind(found, values)
    np.testing.assert_array_equal(xp.numpy(found), [0.25, 0.25, 0.25, 0.5, 7.0, np.inf, np.nan])


def test_values_come_to_the_host():
    torch = pytest.importorskip("torch")
    for value in (2.5, [2.5], np.asarray([2.5]), torch.tensor([2.5])):
        found = to_numpy(value)
        assert type(found) is np.ndarray and found.ravel().tolist() == [2.5]
