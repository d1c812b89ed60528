"""AdamW beside Spectral Newton: its formula in numbers, its defaults, and what it refuses."""

import numpy as np
import pytest

import spectral_core as sc
from spectral_core.newton.adamw import adamw_options, adamw_step

WEIGHT, GRADIENT = np.asarray([2.0, -1.0]), np.asarray([3.0, -0.5])
MEAN, SQUARE = np.asarray([0.5, 1.0]), np.asarray([4.0, 0.25])


def test_a_step_in_numbers():
    """With β = (0.5, 0.75), the third step, for each element by itself."""
    step, mean, square = adamw_step(
        WEIGHT, GRADIENT, MEAN, SQUARE, 3, lr=0.1, betas=(0.5, 0.75), eps=0.125, weight_decay=0.2
    )
    np.testing.assert_allclose(mean, [1.75, 0.25], rtol=1e-15)
    np.testing.assert_allclose(square, [5.25, 0.25], rtol=1e-15)
    for i, (m, v, w) in enumerate([(1.75, 5.25, 2.0), (0.25, 0.25, -1.0)]):
        update = m / (1 - 1 / 8) / ((v / (1 - 27 / 64)) ** 0.5 + 0.125)
        assert step[i] == pytest.approx(-0.1 * (update + 0.2 * w), rel=1e-14)


def test_the_first_step_moves_each_element_by_the_learning_rate():
    zeros = np.zeros(2)
    step, mean, square = adamw_step(WEIGHT, GRADIENT, zeros, zeros, 1, lr=0.1)
    np.testing.assert_allclose(step, [-0.1, 0.1], rtol=1e-7)
    np.testing.assert_allclose(mean, 0.1 * GRADIENT, rtol=1e-14)
    np.testing.assert_allclose(square, 1e-3 * GRADIENT**2, rtol=1e-12)


@pytest.mark.parametrize("spoiled", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_moves_nothing(spoiled):
    gradient = np.asarray([1.0, spoiled])
    step, mean, square = adamw_step(
        WEIGHT, gradient, MEAN, SQUARE, 3, lr=0.1, weight_decay=0.2
    )  # fmt: skip
    for found, expected in ((step, [0.0, 0.0]), (mean, MEAN), (square, SQUARE)):
        np.testing.assert_array_equal(found, expected)


def test_moments_keep_their_dtype_and_a_step_has_that_of_its_weight():
    weight = WEIGHT.astype(np.float32)
    step, mean, square = adamw_step(weight, GRADIENT.astype(np.float32), MEAN, SQUARE, 3, lr=0.1)
    assert [a.dtype for a in (step, mean, square)] == [np.float32, np.float64, np.float64]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"mean": np.zeros(3)}, "weight, gradient, mean and square have shapes (2,), (2,), (3,), (2,); "
         "pass four of one shape, zeros as the first moments."),
        ({"betas": (0.9, 1)}, "betas: (0.9, 1) are not two numbers in [0, 1); (0.9, 0.999) is usual."),
        ({"betas": (0.9,)}, "betas: (0.9,) are not two numbers in [0, 1); (0.9, 0.999) is usual."),
        ({"betas": (-0.1, 0.9)}, "betas: (-0.1, 0.9) are not two numbers in [0, 1); (0.9, 0.999) is usual."),
        ({"eps": 0.0}, "eps: 0.0 is not positive; 1e-8 is usual."),
    ],
)  # fmt: skip
def test_what_is_refused(changed, words):
    given = {"mean": MEAN, "square": SQUARE, "count": 1, "lr": 0.1} | changed
    with pytest.raises(sc.InputError) as caught:
        adamw_step(WEIGHT, GRADIENT, **given)
    assert str(caught.value) == words


def test_betas_of_zero_keep_nothing():
    found = adamw_step(WEIGHT, GRADIENT, MEAN, SQUARE, 1, lr=0.1, betas=(0.0, 0.0))
    np.testing.assert_allclose(found[1:], [GRADIENT, GRADIENT**2])


def test_options_beside_a_scale():
    assert adamw_options({"eps": 1e-6}, "rms") == {"eps": 1e-6}
    assert adamw_options({"eps": 1e-6}, "spectral") == {"lr": 1e-3, "eps": 1e-6}
    assert adamw_options({"lr": 0.1}, "none") == {"lr": 0.1}
    with pytest.raises(sc.InputError) as caught:
        adamw_options({"momentum": 0.9, "beta": 0.9}, "rms")
    assert str(caught.value) == (
        "adamw: ['beta', 'momentum'] are none of lr, betas, eps, weight_decay."
    )
    with pytest.raises(sc.InputError, match="^adamw: "):
        adamw_options([("lr", 0.1)], "rms")
