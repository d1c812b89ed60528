"""Slices of a parameter: which elements they hold, held against views of NumPy."""

import numpy as np
import pytest

from spectral_core.matrices.strides import ParameterSlice

WHOLE = np.arange(2 * 3 * 4 * 6, dtype=np.int64).reshape(2, 3, 4, 6)
VIEWS = {
    "a block": (WHOLE[1, 2], 1),
    "transposed": (WHOLE[1, 2].T, 1),
    "half": (WHOLE[0, 0, :, 3:], 1),
    "each second column": (WHOLE[0, 0, :, ::2], 1),
    "a kernel": (WHOLE[0].transpose(2, 0, 1), 1),
    "two axes of outputs": (WHOLE[:, 1], 2),
    "one element": (WHOLE[1:, 2, 1:2, 3], 1),
}


def slice_of(view, out_axes):
    steps = tuple(step // 8 for step in view.strides)
    return ParameterSlice(view.shape, steps, int(view.ravel()[0]), out_axes)


@pytest.mark.parametrize("name", VIEWS)
def test_rows_and_columns_are_those_of_the_view(name):
    view, out_axes = VIEWS[name]
    found = slice_of(view, out_axes)
    matrix = view.reshape(found.shape)
    assert found.row_offsets == list(matrix[:, 0])
    assert found.column_offsets == list(matrix[0] - matrix[0, 0])
    assert (found.extent.start, found.extent.stop - 1) == (view.min(), view.max())


def test_elements_are_equal_whatever_the_order_of_axes():
    one, two = slice_of(*VIEWS["a block"]), slice_of(*VIEWS["transposed"])
    assert one.elements == two.elements and one.order != two.order
    assert one.order == two.order[::-1]
    assert one.elements != slice_of(*VIEWS["half"]).elements
    shifted = ParameterSlice(one.size, one.stride, one.offset + 1, one.out_axes)
    assert shifted.elements != one.elements and shifted.order == one.order


def test_axes_that_are_one_in_memory_are_joined():
    kernel = slice_of(WHOLE.reshape(6, 4, 6), 1)
    flat = slice_of(WHOLE.reshape(6, 24), 1)
    assert kernel.order == flat.order and kernel.elements == flat.elements
    assert kernel.shape == flat.shape == (6, 24)
    # An axis of one element takes part in nothing.
    assert slice_of(WHOLE.reshape(6, 1, 24), 1).order == flat.order
