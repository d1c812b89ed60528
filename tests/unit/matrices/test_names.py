"""What layers are called, and which parameter a layer is of, both ways."""

from typing import NamedTuple

import pytest

from spectral_core.matrices import names
from spectral_core.matrices.names import (
    ARRAY_ENDING,
    MODULE_ENDING,
    TREE_ENDING,
    block_name,
    distinct_name,
    layer_names,
    match_layers,
    parameter_name,
    path_name,
)


class Dict(NamedTuple):  # as keys of `jax.tree_util` are told: by their one attribute
    key: object


class Index:
    def __init__(self, idx):
        self.idx = idx


class Attribute:
    def __init__(self, name):
        self.name = name


def of(parameters, layers, stacks=None):
    """Names and slices of the layers of each parameter."""
    matches = match_layers(parameters, layers, stacks or [()] * len(parameters))
    return [[(each.name, each.index) for each in own] for own in matches.layers]


def test_every_public_name_is_there():
    assert all(hasattr(names, name) for name in names.__all__)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ((Dict("blocks"), Index(0), Dict("up"), Dict("kernel")), "blocks.0.up.kernel"),
        ((Attribute("layers"), Index(3), Attribute("weight")), "layers.3.weight"),
        ((Dict(7), Dict((1, 2))), "7.(1, 2)"),
        ((Attribute("up"), Attribute("kernel"), Attribute("value")), "up.kernel"),
        ((Dict("attention"), Dict("value")), "attention.value"),
        ((Attribute("value"),), "value"),
        (("['odd']",), "odd"),
        ((), ""),
    ],
)
def test_the_name_of_a_path(path, name):
    assert path_name(path) == name


def test_the_name_of_a_parameter_of_haiku():
    assert parameter_name((Dict("mlp/~/linear_0"), Dict("w"))) == "mlp.linear_0.w"
    assert parameter_name(()) == "params"


@pytest.mark.parametrize(
    ("ending", "parameters", "layers"),
    [
        (MODULE_ENDING, ["fc.weight", "a.in_proj_weight", "weight"], ["fc", "a.in_proj", "weight"]),
        (MODULE_ENDING, ["a.w", "a.w_weight", "up.kernel"], ["a.w", "a.w_weight", "up.kernel"]),
        (TREE_ENDING, ["up.kernel", "kernel.kernel", "kernel"], ["up", "kernel.kernel", "kernel"]),
        (TREE_ENDING, ["a.weight", "a.kernel", "b.w"], ["a.weight", "a.kernel", "b"]),
        (ARRAY_ENDING, ["a.weight", "a", "b.weight", ".weight"], ["a.weight", "a", "b", ".weight"]),
        (TREE_ENDING, ["a.b", "a.b"], ["a.b", "a.b"]),
    ],
)
def test_the_name_of_a_layer(ending, parameters, layers):
    assert layer_names(parameters, ending) == layers


def test_names_of_vectors_are_no_reason_to_keep_an_ending():
    names = ["norm.weight", "norm.kernel"]
    assert layer_names(names, TREE_ENDING, [False, True])[1] == "norm"


def test_the_name_of_a_block():
    assert block_name("blocks.up", 2, ["blocks.up", "blocks.down"]) == "blocks.2.up"
    assert block_name("blocks.up", 2, ["blocks.up"]) == "blocks.up.2"
    assert block_name("up", 0, ["up", "down"]) == "up.0"


def test_a_name_that_is_taken():
    assert distinct_name("a", {"b"}) == "a"
    assert distinct_name("a", {"a"}, ["a_"]) == "a__"


def test_layers_of_one_framework_are_parameters_of_another():
    layers = ["layers.0.up", "layers.0.down", "head"]
    wanted = [[(layer, None)] for layer in layers]
    for parameters in (
        ["layers.0.up.weight", "layers.0.down.weight", "head.weight"],
        ["layers.0.up.kernel", "layers.0.down.kernel", "head.kernel"],
        ["params.layers_0.up.kernel", "params.layers_0.down.kernel", "params.head.kernel"],
        ["layers_0/~/up.w", "layers_0/~/down.w", "head.w"],
        layers,
    ):
        assert of(parameters, layers) == wanted
    kept = ["up.kernel", "params.down.weight"]  # as a backend for arrays names them
    assert of(["down.weight", "up.weight"], kept) == [[(kept[1], None)], [(kept[0], None)]]


def test_parts_of_a_parameter():
    layers = ["a.in_proj.q", "a.in_proj.k", "a.in_proj.v", "conv.group0", "conv.group1"]
    layers += ["qkv.part0_", "qkv.part1", "qkv.part0", "e.part0.group1"]
    found = of(["a.in_proj_weight", "conv.weight", "qkv.weight", "qkv.part0.weight", "e"], layers)
    assert [[name for name, _ in own] for own in found] == [
        layers[:3], layers[3:5], ["qkv.part0_", "qkv.part1"], ["qkv.part0"], layers[8:],
    ]  # fmt: skip
    assert all(index is None for own in found for _, index in own)


def test_blocks_of_a_stack():
    layers = ["blocks.0.up", "blocks.2.up", "blocks.1.up", "stack.1", "blocks.3.up"]
    found = of(["blocks.up.kernel", "stack"], layers, [(3,), (2,)])
    assert found == [[("blocks.0.up", 0), ("blocks.2.up", 2), ("blocks.1.up", 1)], [("stack.1", 1)]]
    assert of(["blocks.up.kernel"], layers) == [[]], "it is no stack"
    assert of(["blocks.up.kernel"], ["blocks_1.up"], [(3,)]) == [[("blocks_1.up", 1)]]
    assert of(["blocks.up.kernel"], ["blocks.1_.up"], [(3,)]) == [[("blocks.1_.up", 1)]]
    assert of(["e"], ["e.group1", "e.group9"], [(3,)]) == [[("e.group1", 1), ("e.group9", None)]]
    nested = [f"e.{i}.group{j}" for i in range(2) for j in range(3)] + ["e.1"]
    assert [index for _, index in of(["e"], nested, [(2, 3)])[0]] == [0, 1, 2, 3, 4, 5, None]
    grouped = of(["conv.kernel"], ["conv.1.group0", "conv.1.group1"], [(2,)])[0]
    assert [index for _, index in grouped] == [1, 1], "groups of a convolution are of one block"


def test_numbers_are_blocks_only_where_no_parameter_has_them():
    parameters = ["blocks", "blocks.0.weight"]
    assert of(parameters, ["blocks.0", "blocks.1"], [(3,), ()]) == [
        [("blocks.1", 1)], [("blocks.0", None)],
    ]  # fmt: skip
    assert of(["0", "1"], ["0", "1", "2"]) == [[("0", None)], [("1", None)]]
    assert of(["0"], ["0.0"], [(3,)]) == [[("0.0", 0)]]
    assert of([""], ["1"], [(3,)]) == [[]], "a number alone is no block of a tree that is one array"


@pytest.mark.parametrize(
    ("parameters", "layers"),
    [
        (["a.weight", "a.kernel"], ["a"]),
        (["a.b", "a.b"], ["a.b"]),
        (["a.weight"], ["a.kernel", "a.w"]),
        (["blocks.0", "0.blocks"], ["0.blocks.0.q"]),
        (["", ""], ["params"]),
    ],
)
def test_what_may_be_of_two_is_of_none(parameters, layers):
    matches = match_layers(parameters, layers, [(3,) for _ in parameters])
    assert matches.layers == [[] for _ in parameters]
    assert set(matches.doubts) <= set(layers)


def test_an_exact_name_is_no_doubt():
    assert of(["a.weight", "a.kernel"], ["a.kernel", "a.weight"]) == [
        [("a.weight", None)], [("a.kernel", None)],
    ]  # fmt: skip
    assert of(["up.kernel"], ["up", "up.kernel", "up.part0"]) == [[("up.kernel", None)]]


def test_names_that_match_nothing():
    assert of(["a", "b"], ["c", "", ".", "a.bias", "0", "params"]) == [[], []]
    assert of([], ["a"]) == [] and of(["a", ""], []) == [[], []]
    assert of([""], ["params"]) == [[("params", None)]], "a tree that is one array"
