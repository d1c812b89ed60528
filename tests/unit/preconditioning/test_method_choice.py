"""What "auto" takes, as the docstring of `precondition` says, for hosts with and without a GPU."""

from dataclasses import replace

import numpy as np
import pytest

from spectral_core.errors import InputError
from spectral_core.preconditioning.choice import choose
from spectral_core.preconditioning.damped_power import DampedPower
from spectral_core.preconditioning.gram import smallest_shift
from spectral_core.preconditioning.methods.polynomial import polynomial_of
from spectral_core.preconditioning.methods.shifts import poles_of
from spectral_core.preconditioning.request import Request
from spectral_core.preconditioning.tables.poles import pole_table

SINGLE, DOUBLE = 2.0**-23, 2.0**-52


def request(alpha, damping=0.1, mode="spectral", tolerance=None, rows=257, epsilon=SINGLE, **more):
    function = DampedPower(alpha, damping, mode)
    return Request(function, "auto", tolerance, rows, rows, epsilon, **more)


@pytest.mark.parametrize(
    ("asked", "on_cpu", "on_gpu"),
    [
        # arrays, whose values nobody knows
        (request(np.asarray(2.0)), "svd", "svd"),
        (request(2.0, np.asarray(0.1)), "svd", "svd"),
        (request(np.asarray(1.0), 0.0), "svd", "svd"),
        # the polar factor, and what lies beside it
        (request(1.0, 0.0), "svd", "polar"),
        (request(0.5, 0.0), "svd", "svd"),
        (request(1.0, 0.0, tolerance=31 * SINGLE), "svd", "svd"),
        (request(1.0, 1.0), "shifts", "shifts"),
        # α = 0 needs no σ_max
        (request(0.0), "closed", "closed"),
        (request(0.0, mode="absolute"), "closed", "closed"),
        # absolute damping, and rounding above the tolerance
        (request(2.0, mode="absolute"), "svd", "svd"),
        (request(2.0, 1e-5), "svd", "svd"),
        (request(2.0, 1e-5, epsilon=DOUBLE), "closed", "closed"),
        (request(2.0, 1e-3, tolerance=request(2.0, 1e-3).rounding()), "closed", "closed"),
        # closed forms, however few rows
        (request(2.0), "closed", "closed"),
        (request(4.0, rows=3), "closed", "closed"),
        # two poles, three poles, none for any number
        (request(1.5), "shifts", "shifts"),
        (request(1.5, rows=256), "eigh", "shifts"),
        (request(1.0), "eigh", "shifts"),
        (request(3.0), "eigh", "eigh"),
        (request(1.5, tolerance=1e-7, epsilon=DOUBLE), "eigh", "eigh"),
    ],
)
def test_what_auto_takes(asked, on_cpu, on_gpu):
    assert choose(asked) == on_cpu
    assert choose(replace(asked, on_cpu=False)) == on_gpu


def test_the_cases_have_as_many_poles_as_they_say():
    assert [len(poles_of(request(alpha)).poles) for alpha in (1.5, 1.0)] == [2, 3]


@pytest.mark.parametrize(("rows", "of"), [(1, 1), (16, 16), (17, 64), (64, 64), (65, 256)])
@pytest.mark.parametrize(("epsilon", "floor"), [(SINGLE, 5e-3), (DOUBLE, 1e-3)])
def test_sizes_share_tables(rows, of, epsilon, floor):
    asked = request(1.5, rows=rows, epsilon=epsilon)
    smallest = smallest_shift(of, epsilon)
    assert poles_of(asked) == pole_table(1.5, 0.1, 1e-2, floor=floor, smallest=smallest)


@pytest.mark.parametrize("alpha", [0.0, 2.0, 4.0])
def test_shifts_are_for_exponents_between_0_and_2(alpha):
    with pytest.raises(InputError, match=f"is for alpha between 0 and 2, not {alpha}"):
        choose(replace(request(alpha), method="shifts"))


@pytest.mark.parametrize("method", ["closed", "shifts", "polar", "polynomial"])
@pytest.mark.parametrize(("alpha", "damping"), [(np.asarray(1.0), 0.1), (1.0, np.asarray(0.1))])
def test_arrays_are_for_decompositions(method, alpha, damping):
    with pytest.raises(InputError, match="needs alpha and damping as numbers, not arrays"):
        choose(replace(request(alpha, damping), method=method))


def test_poles_that_do_not_reach_the_tolerance():
    asked = replace(request(1.0, 1e-4, tolerance=1e-11, epsilon=DOUBLE), method="shifts")
    assert poles_of(asked).error > 1e-11
    with pytest.raises(InputError, match=r"reaches .* for alpha = 1.0 and damping = 0.0001, not"):
        choose(asked)


@pytest.mark.parametrize(
    ("method", "alpha"), [("closed", 2.0), ("closed", 4.0), ("shifts", 1.5), ("shifts", 0.5)]
)
def test_a_damping_below_the_rounding_is_refused(method, alpha):
    shift = request(alpha).shift
    with pytest.raises(InputError, match="needs a damping above the rounding of the Gram matrix"):
        choose(replace(request(alpha, 0.99 * shift), method=method))
    asked = replace(request(alpha, 1.01 * shift), method=method)
    assert method == "shifts" or choose(asked) == method


def test_a_multiple_of_the_gradient_needs_no_damping():
    assert choose(replace(request(0.0, 0.0), method="closed")) == "closed"


def test_rounding_is_unknown_where_the_damping_is():
    unknown = [request(2.0, mode="absolute"), request(np.asarray(2.0)), request(2.0, np.asarray(1))]
    assert [asked.rounding() for asked in unknown] == [0, 0, 0] < [request(2.0).rounding()]


def test_a_polynomial_needs_damping():
    with pytest.raises(InputError, match="alpha above 0 and spectral damping above 0, not alpha"):
        choose(replace(request(2.0, 0.0), method="polynomial"))


def test_an_error_that_just_reaches_the_tolerance_reaches_it():
    for method, table in (("shifts", poles_of), ("polynomial", polynomial_of)):
        asked = replace(request(1.5), method=method)
        asked = replace(asked, tolerance=table(asked).error)
        assert choose(asked) == method
        with pytest.raises(InputError, match="not the tolerance"):
            choose(replace(request(1.0, tolerance=1e-4), method=method))


@pytest.mark.parametrize(
    ("method", "alpha", "damping"),
    [("closed", 2.0, 0.01), ("eigh", 1.0, 0.01), ("closed", 4.0, 0.1)],
)
def test_a_tolerance_below_the_rounding_of_a_gram_matrix_is_refused(method, alpha, damping):
    asked = replace(request(alpha, damping), method=method)
    choose(replace(asked, tolerance=1.01 * asked.rounding()))
    with pytest.raises(InputError, match="rounds to"):
        choose(replace(asked, tolerance=0.99 * asked.rounding()))


def test_a_multiple_of_the_gradient_rounds_little():
    asked = replace(request(0.0, 0.1), method="closed")
    assert choose(replace(asked, tolerance=32 * SINGLE)) == "closed"
    with pytest.raises(InputError, match="rounds to 3.8e-06"):
        choose(replace(asked, tolerance=31 * SINGLE))


@pytest.mark.parametrize(("epsilon", "least"), [(SINGLE, 1.0e-3), (2.0**-52, 1.9e-12)])
def test_polar_rounds_by_its_gain(epsilon, least):
    asked = replace(request(1.0, 0.0), method="polar", epsilon=epsilon)
    assert choose(replace(asked, tolerance=1.1 * least)) == "polar"
    with pytest.raises(InputError, match=f"rounds to {least:.1e}"):
        choose(replace(asked, tolerance=0.9 * least))


@pytest.mark.parametrize("on_cpu", [True, False])
def test_what_auto_takes_in_bfloat16(on_cpu):
    low = {"precision": "bfloat16", "on_cpu": on_cpu, "rows": 20}
    assert choose(request(0.0, **low)) == "closed"
    for alpha in (0.5, 1.0, 2.0):
        assert choose(request(alpha, **low)) == "polynomial"
