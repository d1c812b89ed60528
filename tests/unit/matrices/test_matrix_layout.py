"""Splitting parameters into matrices and back: exactly, and block by block as one would by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import spectral_core as sc

settings.register_profile("project", deadline=None, max_examples=150)
settings.load_profile("project")

RNG = np.random.default_rng(0)


def by_hand(kind, x, groups):
    """The matrices of one layer, written out group by group."""
    if kind == "matrix":
        return [x]
    if kind == "conv":  # (out, in / groups, k…)
        return [part.reshape(part.shape[0], -1) for part in np.split(x, groups, axis=0)]
    if kind == "conv-transpose":  # (in, out / groups, k…)
        parts = np.split(x, groups, axis=0)
        return [np.moveaxis(p, 1, 0).reshape(p.shape[1], -1) for p in parts]
    return [p.reshape(-1, p.shape[-1]).T for p in np.split(x, groups, axis=-1)]


CASES = [
    ((6, 5), "matrix"), ((4, 3, 2, 3), "conv"), ((6, 3, 5), "conv groups=3"),
    ((4, 3, 2, 3), "conv-transpose"), ((6, 2, 5), "conv-transpose groups=2"),
    ((2, 3, 4, 6), "conv-last"), ((3, 2, 6), "conv-last groups=3"),
    ((2, 6, 5), "matrix stack=1"), ((2, 3, 6, 5), "stack"),
    ((2, 4, 3, 3, 2), "conv stack=1 groups=2"), ((2, 6, 3, 2), "conv-transpose stack=1 groups=3"),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "spec"), CASES)
def test_split_is_what_one_writes_by_hand(xp, shape, spec):
    layout = sc.as_matrices(shape, spec)
    x = RNG.normal(size=shape)
    (found,) = layout.split(xp.array(x))
    layers = x.reshape((-1, *shape[layout.spec.stack :]))
    matrices = [m for layer in layers for m in by_hand(layout.spec.kind, layer, layout.spec.groups)]
    expected = np.stack(matrices).astype(xp.dtype)
    assert np.array_equal(xp.numpy(found), expected)
    assert layout.matrices == (expected.shape,)
    xp.check_kind(found, xp.array(x))


def test_fused_projections_and_heads(xp):
    x = RNG.normal(size=(12, 5)).astype(xp.dtype)
    for spec in ("qkv", "matrix rows=3", sc.MatrixSpec(rows=3)):
        (found,) = sc.as_matrices(x.shape, spec).split(xp.array(x))
        assert np.array_equal(xp.numpy(found), np.stack(np.split(x, 3)))
    q, kv = sc.as_matrices(x.shape, "matrix rows=6,3,3").split(xp.array(x))
    assert np.array_equal(xp.numpy(q), x[None, :6])
    assert np.array_equal(xp.numpy(kv), np.stack([x[6:9], x[9:]]))
    (heads,) = sc.as_matrices((5, 12), sc.MatrixSpec(columns=4)).split(xp.array(x.T))
    assert np.array_equal(xp.numpy(heads), np.stack(np.split(x.T, 4, axis=1)))
    grid = sc.as_matrices(x.shape, sc.MatrixSpec(rows=(8, 4), columns=(3, 2)))
    assert grid.matrices == ((1, 8, 3), (1, 8, 2), (1, 4, 3), (1, 4, 2))
    scanned = sc.as_matrices((2, 12, 5), "matrix stack=1 rows=6,3,3")
    y = RNG.normal(size=(2, 12, 5)).astype(xp.dtype)
    q, kv = scanned.split(xp.array(y))
    assert np.array_equal(xp.numpy(q), y[:, :6])
    assert np.array_equal(xp.numpy(kv), np.concatenate([y[:, 6:9], y[:, 9:]]))


@pytest.mark.parametrize(
    ("shape", "spec"),
    [*CASES, ((12, 5), "matrix rows=6,3,3 columns=2,3"), ((2, 12, 4), "matrix stack=1 rows=5,5,2 columns=2"),
     ((8, 3, 2), "conv groups=2 rows=2"), ((4, 6, 3), "conv-transpose rows=1,2,3 columns=3")],
)  # fmt: skip
def test_merge_undoes_split(xp, shape, spec):
    layout = sc.as_matrices(shape, spec)
    x = xp.array(RNG.normal(size=shape))
    back = xp.run(lambda array: layout.merge(layout.split(array)), x)
    assert np.array_equal(xp.numpy(back), xp.numpy(x))
    assert tuple(tuple(part.shape) for part in layout.split(x)) == layout.matrices
    xp.check_kind(back, x)


@st.composite
def layouts(draw):
    sizes = st.integers(1, 3)
    kind = draw(st.sampled_from(["matrix", "conv", "conv-transpose", "conv-last"]))
    stack = draw(st.lists(sizes, max_size=2))
    rows, columns = draw(st.lists(sizes, min_size=1, max_size=3)), draw(st.integers(1, 3))
    groups = 1 if kind == "matrix" else draw(sizes)
    m, kernel = sum(rows), draw(st.lists(sizes, min_size=1, max_size=2))
    channels = columns * draw(sizes)
    shape = {
        "matrix": [m, channels],
        "conv": [groups * m, channels, *kernel],
        "conv-transpose": [groups * channels, m, *kernel],
        "conv-last": [*kernel, channels, groups * m],
    }[kind]
    spec = sc.MatrixSpec(kind, stack=len(stack), groups=groups, rows=tuple(rows), columns=columns)
    return tuple(stack + shape), spec


@given(layouts())
def test_any_spec_is_undone_and_written(drawn):
    shape, spec = drawn
    layout = sc.as_matrices(shape, spec)
    x = np.arange(float(np.prod(shape))).reshape(shape)
    parts = layout.split(x)
    assert np.array_equal(layout.merge(parts), x)
    assert len({m.shape[1:] for m in parts}) == len(parts)
    assert sc.MatrixSpec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    ("shape", "spec", "said"),
    [
        ((4, 3, 2), "matrix", "2 axes are needed behind 0"),
        ((4, 3), "conv", "3 or more axes"),
        ((4, 3, 2), "conv groups=3", "does not divide into 3 groups"),
        ((3, 2, 4), "conv-last groups=3", "axis 2 does not divide"),
        ((10, 3), "qkv", "10 rows"),
        ((10, 3), "matrix rows=4,5", "10 rows"),
        ((10, 3), "matrix columns=2", "3 columns"),
        ((0, 3), "matrix", "empty"),
        ((3,), "stack", "2 axes"),
    ],
)
def test_a_shape_that_does_not_fit_is_named(shape, spec, said):
    with pytest.raises(sc.InputError, match=said) as caught:
        sc.as_matrices(shape, spec)
    assert str(shape) in str(caught.value)
    assert spec == "stack" or str(sc.MatrixSpec.parse(spec)) in str(caught.value)


def test_lists_of_sizes_are_tuples():
    spec = sc.MatrixSpec(rows=[6, 3, 3], columns=[2, 3])
    assert spec == sc.MatrixSpec(rows=(6, 3, 3), columns=(2, 3)) and hash(spec)
    assert str(spec) == "matrix rows=6,3,3 columns=2,3"


@pytest.mark.parametrize("text", ["", "cnov", "conv groups", "conv groups=x", "conv rows=0",
                                  "matrix groups=2", "conv stack=-1", "conv sides=2", "matrix rows="])  # fmt: skip
def test_a_text_that_is_no_spec_is_refused(text):
    with pytest.raises(sc.InputError, match=r"spec:|kind:|groups:|rows:|stack:"):
        sc.as_matrices((4, 4), text)


def test_shapes_are_tuples():
    with pytest.raises(sc.InputError, match=r"shape: \[6, 4\] is no tuple of lengths"):
        sc.MatrixLayout([6, 4], sc.MatrixSpec())


def test_a_stack_of_one_matrix():
    assert sc.as_matrices((6, 4), "stack").matrices == ((1, 6, 4),)


def test_arrays_of_two_libraries_are_refused():
    strict = pytest.importorskip("array_api_strict")
    layout = sc.as_matrices((6, 4), "matrix rows=2,4")
    arrays = [np.zeros((1, 2, 4)), strict.zeros((1, 4, 4))]
    with pytest.raises(sc.InputError, match="^matrices: are arrays of different libraries"):
        layout.merge(arrays)


def test_other_shapes_are_refused_by_split_and_merge():
    layout = sc.as_matrices((6, 4), "qkv")
    with pytest.raises(sc.InputError, match=r"\(4, 6\); this layout is for \(6, 4\)"):
        layout.split(np.zeros((4, 6)))
    with pytest.raises(sc.InputError, match=r"layout is for \[\(3, 2, 4\)\]"):
        layout.merge([np.zeros((2, 3, 4))])
    with pytest.raises(sc.InputError, match=r"^matrices: a dict was passed; pass the list from sp"):
        layout.merge({})


def test_what_is_no_array_is_refused_by_its_kind():
    layout = sc.as_matrices((2, 3))
    with pytest.raises(sc.InputError, match=r"^array: a str is no array; pass an array\.$"):
        layout.split("ab")
    with pytest.raises(sc.InputError, match=r"^matrices: a dict is no array; pass an array\.$"):
        layout.merge([{}])


def test_masks_are_refused_by_the_name_of_the_argument():
    layout, masked = sc.as_matrices((2, 3)), np.ma.masked_equal(np.eye(2, 3), 1.0)
    with pytest.raises(sc.InputError, match=r"^array: a numpy\.MaskedArray has masked values"):
        layout.split(masked)
    with pytest.raises(sc.InputError, match=r"^matrices: a numpy\.MaskedArray has masked values"):
        layout.merge([masked[None]])
