"""Layers by name, glob, several globs or predicate; what matches nothing is said with what there is."""

import pytest

import spectral_core as sc


def layers(count):
    return [sc.LayerInfo(f"layer{i}", "linear", (i + 2, 3)) for i in range(count)]


@pytest.mark.parametrize(
    ("selection", "chosen"),
    [
        ("*", [0, 1, 2]),
        ("layer1", [1]),
        ("*[02]", [0, 2]),
        (["layer2", "layer0", "*0"], [0, 2]),
        ((name for name in ("layer2", "layer1")), [1, 2]),
        (lambda layer: layer.shape[0] > 2, [1, 2]),
    ],
)
def test_the_order_is_that_of_the_layers(selection, chosen):
    found = sc.select_layers(layers(3), selection)
    assert [layer.name for layer in found] == [f"layer{i}" for i in chosen]


def test_a_name_with_the_signs_of_a_glob_is_that_name():
    both = [sc.LayerInfo(name, "linear", (3, 3)) for name in ("blocks[0]", "blocks0")]
    assert sc.select_layers(both, "blocks[0]") == both
    assert sc.select_layers(both, "blocks[[]0]") == both[:1]


def test_case_counts():
    with pytest.raises(sc.InputError, match="'Layer0' matches none of the 3 layers"):
        sc.select_layers(layers(3), "Layer0")


@pytest.mark.parametrize(
    ("count", "listed"),
    [
        (2, "layer0, layer1"),
        (8, "layer0, layer1, layer2, layer3, layer4, layer5, layer6, layer7"),
        (9, "layer0, layer1, layer2, layer3, layer4, layer5, layer6, layer7, … (9 in all)"),
    ],
)
def test_eight_layers_are_listed_and_the_others_counted(count, listed):
    with pytest.raises(sc.InputError) as caught:
        sc.select_layers(layers(count), lambda layer: False)
    assert str(caught.value) == (
        f"layers: the predicate accepted none of the {count} layers; there are: {listed}."
    )
    with pytest.raises(sc.InputError) as caught:
        sc.select_layers(layers(count), ["*", "?"])
    assert str(caught.value) == (
        f"layers: '?' matches none of the {count} layers; did you mean: {listed}?"
    )


def test_the_three_nearest_names_are_proposed():
    names = ["head", "encoder.proj", "encoder.prob", "encoder.prod", "encoder.prom"]
    there = [sc.LayerInfo(name, "linear", (3, 3)) for name in names]
    with pytest.raises(sc.InputError, match=r"did you mean: encoder\.pro.(, encoder\.pro.){2}\?$"):
        sc.select_layers(there, "encoder.pro")


def test_what_was_skipped_is_said_with_the_reason():
    """Also the layer of that name may be wanted: a glob that matches both selects the layers."""
    skipped = {"layer3": "frozen; thaw it.", "head": "has three axes", "tail": "a", "end": "b"}
    with pytest.raises(sc.InputError) as caught:
        sc.select_layers(layers(3), ["layer0", "?ea*"], skipped=skipped)
    assert str(caught.value) == (
        "layers: '?ea*' matches none of the 3 layers, only parameters that were skipped: 'head' "
        "(has three axes)."
    )
    found = sc.select_layers(layers(3), "layer[23]", skipped=skipped)
    assert [layer.name for layer in found] == ["layer2"]
    with pytest.raises(sc.InputError, match="did you mean: layer0, layer1, layer2"):
        sc.select_layers(layers(3), "foot", skipped=skipped)


@pytest.mark.parametrize("selection", ["*", "head", ["head"], lambda layer: True])
def test_where_all_were_skipped_the_first_reasons_are_given(selection):
    skipped = {"head": "frozen; thaw it.", "body": "has three axes", "tail": "a", "end": "b"}
    with pytest.raises(sc.InputError) as caught:
        sc.select_layers([], selection, skipped=skipped)
    assert str(caught.value) == (
        "layers: the problem has no layer to select; skipped: 'head' (frozen; thaw it), 'body' "
        "(has three axes), 'tail' (a), … (4 in all)."
    )
    with pytest.raises(sc.InputError, match=r"no layer to select; it has no weight matrix\.$"):
        sc.select_layers([], selection)
