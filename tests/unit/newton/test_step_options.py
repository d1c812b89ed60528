"""The options of a step: what is refused at the door of an optimizer is what a step refuses."""

import inspect
from dataclasses import fields, replace

import numpy as np
import pytest

import spectral_core as sc
from spectral_core.newton import StepOptions
from spectral_core.preconditioning.gram import smallest_shift

DOUBLE = 2.0**-52


def step(alpha, options):
    g = np.eye(2)
    own = {field.name: getattr(options, field.name) for field in fields(options)}
    return sc.spectral_newton_step(g, g, g, alpha=alpha, **own)


def test_the_options_are_those_of_a_step_with_its_defaults():
    takes = inspect.signature(sc.spectral_newton_step).parameters
    for field in fields(StepOptions):
        if field.name != "lr":  # which has no default
            assert getattr(StepOptions(0.1), field.name) == takes[field.name].default
    apart = {"alpha", "matrices"} | {field.name for field in fields(StepOptions)}
    assert apart == set(takes) - {"weight", "gradient", "momentum"}


@pytest.mark.parametrize(
    ("alpha", "wrong"),
    [
        (2.0, {"lr": -1.0}), (2.0, {"lr": None}), (2.0, {"beta": 1.0}), (2.0, {"weight_decay": -0.1}),
        (2.0, {"scale": "max"}), (5.0, {}), (2.0, {"damping": 0.0}), (2.0, {"damping": "x"}),
        (2.0, {"damping_mode": "x"}), (2.0, {"method": "qr"}), (1.0, {"method": "closed"}),
        (2.0, {"tolerance": 0}), (2.0, {"tolerance": 1e-15, "method": "svd"}), (2.0, {"precision": "x"}),
        (np.asarray(1.0), {"method": "shifts"}), (1.0, {"damping": 1e-4, "method": "shifts", "tolerance": 1e-11}),
    ],
)  # fmt: skip
def test_the_door_refuses_in_the_words_of_the_step(alpha, wrong):
    options = replace(StepOptions(0.1), **wrong)
    with pytest.raises(sc.InputError) as inside:
        step(alpha, options)
    with pytest.raises(sc.InputError) as door:
        options.check_all(alpha, DOUBLE)
    assert str(door.value) == str(inside.value)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"lr": None}, "lr: None is no number; pass one, or an array of the standard."),
        ({"beta": np.ones(2)}, "beta: has shape (2,), the weight (2, 3); pass a number, or an array that "
         "broadcasts against it."),
        ({"weight_decay": np.ones((4, 2, 3))}, "weight_decay: has shape (4, 2, 3), the weight (2, 3); pass a "
         "number, or an array that broadcasts against it."),
        ({"lr": np.inf}, "lr: inf is not a learning rate of 0 or more; 1e-3 is usual."),
        ({"weight_decay": np.inf}, "weight_decay: inf is not a number of 0 or more; 0.01 is usual."),
        ({"beta": 1}, "beta: 1 is outside [0, 1); 0.95 is the default."),
    ],
)  # fmt: skip
def test_each_option_is_refused_by_its_name(wrong, words):
    with pytest.raises(sc.InputError) as caught:
        replace(StepOptions(0.1), **wrong).check((2, 3))
    assert str(caught.value) == words


def test_the_door_knows_which_methods_multiply_in_bfloat16():
    options = StepOptions(0.1, precision="bfloat16", method="eigh")
    with pytest.raises(sc.InputError, match="'bfloat16' is for methods 'polynomial' and 'auto'"):
        options.check_all(2.0, 2.0**-23)


def test_a_step_refuses_shapes_that_differ_and_options_that_do_not_fit():
    weight = np.ones((2, 3))
    with pytest.raises(sc.InputError) as caught:
        sc.spectral_newton_step(weight, np.ones((3, 3)), np.ones((3, 2)), lr=0.1, alpha=2.0)
    assert str(caught.value) == (
        "weight, gradient and momentum have shapes (2, 3), (3, 3) and (3, 2); pass three of one "
        "shape, zeros as the first momentum."
    )
    with pytest.raises(sc.InputError, match=r"lr: has shape \(2,\), the weight \(2, 3\)"):
        sc.spectral_newton_step(weight, weight, weight, lr=np.ones(2), alpha=2.0)


def test_options_that_broadcast_against_the_weight():
    StepOptions(np.ones((2, 1)), beta=np.zeros(3), weight_decay=np.ones(())).check((2, 3))
    StepOptions(0, beta=0, weight_decay=0).check((2, 3))


def test_what_a_step_takes_passes_the_door():
    for alpha, given in [
        (2.0, {}),
        (1.0, {"damping": 0.0}),
        (np.asarray(1.0), {"method": "eigh"}),
        (0.5, {"lr": np.asarray(0.1)}),
        (2.0, {"method": "closed", "damping": 1.01 * smallest_shift(2, DOUBLE)}),
    ]:
        options = replace(StepOptions(0.1), **given)
        step(alpha, options)
        options.check_all(alpha, DOUBLE)
    StepOptions(0.1, damping=0.1, precision="bfloat16").check_all(2.0, 2.0**-23)
