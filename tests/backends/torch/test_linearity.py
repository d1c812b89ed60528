"""The table of piecewise linear operations against their second derivatives."""

import pytest
import torch
from layer_cases import random
from torch.nn import functional as F

from spectral_backends.torch.instruments import linearity
from spectral_backends.torch.instruments.graph import node_names
from spectral_backends.torch.instruments.linearity import find_curvature

INDEX = torch.tensor([2, 0, 1, 2])
SCATTERED = torch.tensor([[0, 1, 2, 0], [2, 0, 1, 1], [1, 1, 0, 2], [0, 2, 2, 1]])
MASK = torch.tensor([[True, False, True, True]] * 2 + [[False, True, True, False]] * 2)


def image(x):
    return x[None, None]


def volume(x):
    return x.reshape(1, 1, 4, 2, 2)


def put(x, y):
    z = x.clone()
    z[INDEX[:3]] = y[:3]
    return z


def put_with_mask(x, y):
    return x.index_put((MASK,), y[0, 0], accumulate=True)


def pooled(x):
    return F.max_pool2d(image(x), 2, return_indices=True)


def unpooled(x):
    values, places = pooled(x)
    return F.max_unpool2d(values.detach() * 0 + image(x)[..., :2, :2], places.detach(), 2)


# By name: a call of two 4×4 matrices that puts the node into the graph.
LINEAR = {
    "Add": lambda x, y: x + y, "Sub": lambda x, y: x - y, "Rsub": lambda x, y: torch.rsub(x, y),
    "Neg": lambda x, y: -x, "Sum": lambda x, y: x.sum(0), "Mean": lambda x, y: x.mean(1),
    "Cumsum": lambda x, y: x.cumsum(0), "Trace": lambda x, y: x.trace(),
    "Clone": lambda x, y: x.clone(), "ToCopy": lambda x, y: x.to(torch.complex128).real,
    "View": lambda x, y: x.view(2, 8), "UnsafeView": lambda x, y: torch.ops.aten._unsafe_view(x, [16]),
    "ReshapeAlias": lambda x, y: torch.ops.aten._reshape_alias(x, [16], [1]),
    "Alias": lambda x, y: torch.ops.aten.alias(x),
    "AsStrided": lambda x, y: x.as_strided((3, 3), (4, 1)), "Expand": lambda x, y: x.expand(2, 4, 4),
    "T": lambda x, y: x.t(), "Transpose": lambda x, y: x.transpose(0, 1),
    "Permute": lambda x, y: x.permute(1, 0), "Squeeze": lambda x, y: x[None].squeeze(0),
    "Unsqueeze": lambda x, y: x.unsqueeze(1), "Slice": lambda x, y: x[1:3],
    "Select": lambda x, y: x[1], "Unfold": lambda x, y: x.unfold(0, 2, 1),
    "Diagonal": lambda x, y: x.diagonal(), "Split": lambda x, y: x.split(2)[1],
    "SplitWithSizes": lambda x, y: x.split([1, 3])[1], "UnsafeSplit": lambda x, y: x.unsafe_split(2)[1],
    "Unbind": lambda x, y: x.unbind()[2], "Cat": lambda x, y: torch.cat([x, y]),
    "Stack": lambda x, y: torch.stack([x, y]), "Repeat": lambda x, y: x.repeat(2, 1),
    "Roll": lambda x, y: x.roll(1, 0), "Flip": lambda x, y: x.flip(1), "Tril": lambda x, y: x.tril(),
    "Triu": lambda x, y: x.triu(), "Index": lambda x, y: x[INDEX],
    "IndexSelect": lambda x, y: x.index_select(0, INDEX), "Gather": lambda x, y: x.gather(0, SCATTERED),
    "Scatter": lambda x, y: x.scatter(0, SCATTERED[:1], y),
    "ScatterAdd": lambda x, y: x.scatter_add(0, SCATTERED, y),
    "IndexAdd": lambda x, y: x.index_add(0, INDEX, y), "IndexPut": put_with_mask,
    "MaskedFill": lambda x, y: x.masked_fill(MASK, y[0, 0]),
    "MaskedSelect": lambda x, y: x.masked_select(MASK),
    "MaskedScatter": lambda x, y: x.masked_scatter(MASK, y), "Where": lambda x, y: x.where(MASK, y),
    "Take": lambda x, y: x.take(SCATTERED), "Embedding": lambda x, y: F.embedding(INDEX, x),
    "Im2Col": lambda x, y: F.unfold(image(x), 2), "Col2Im": lambda x, y: F.fold(x[None], 3, 2),
    "ConstantPadNd": lambda x, y: F.pad(x, (1, 1)),
    "ReflectionPad1D": lambda x, y: F.pad(x[None], (1, 1), "reflect"),
    "ReflectionPad2D": lambda x, y: F.pad(image(x), (1, 1, 1, 1), "reflect"),
    "ReflectionPad3D": lambda x, y: F.pad(volume(x), (1, 1, 1, 1, 1, 1), "reflect"),
    "ReplicationPad1D": lambda x, y: F.pad(x[None], (1, 1), "replicate"),
    "ReplicationPad2D": lambda x, y: F.pad(image(x), (1, 1, 1, 1), "replicate"),
    "ReplicationPad3D": lambda x, y: F.pad(volume(x), (1, 1, 1, 1, 1, 1), "replicate"),
    "SelectScatter": lambda x, y: x.select_scatter(y[0], 0, 1),
    "SliceScatter": lambda x, y: x.slice_scatter(y[:2], 0, 1, 3),
    "ChannelShuffle": lambda x, y: F.channel_shuffle(x.reshape(1, 4, 2, 2), 2),
    "MaxUnpool2D": lambda x, y: unpooled(x), "AvgPool2D": lambda x, y: F.avg_pool2d(image(x), 2),
    "AvgPool3D": lambda x, y: F.avg_pool3d(volume(x), 2),
    "AdaptiveAvgPool2D": lambda x, y: F.adaptive_avg_pool2d(image(x), 3),
    "AdaptiveAvgPool3D": lambda x, y: F.adaptive_avg_pool3d(volume(x), (3, 1, 2)),
    "UpsampleNearest1D": lambda x, y: F.interpolate(x[None], scale_factor=2),
    "UpsampleNearest2D": lambda x, y: F.interpolate(image(x), scale_factor=2),
    "UpsampleNearest3D": lambda x, y: F.interpolate(volume(x), scale_factor=2),
    "UpsampleLinear1D": lambda x, y: F.interpolate(x[None], scale_factor=2, mode="linear"),
    "UpsampleBilinear2D": lambda x, y: F.interpolate(image(x), scale_factor=2, mode="bilinear"),
    "UpsampleTrilinear3D": lambda x, y: F.interpolate(volume(x), scale_factor=2, mode="trilinear"),
    "UpsampleBicubic2D": lambda x, y: F.interpolate(image(x), scale_factor=2, mode="bicubic"),
    "PixelShuffle": lambda x, y: F.pixel_shuffle(x.reshape(1, 4, 2, 2), 2),
    "PixelUnshuffle": lambda x, y: F.pixel_unshuffle(image(x), 2),
    "Relu": lambda x, y: F.relu(x), "LeakyRelu": lambda x, y: F.leaky_relu(x, 0.3),
    "Threshold": lambda x, y: F.threshold(x, 0.1, 2.0), "Hardtanh": lambda x, y: F.hardtanh(x),
    "Hardsigmoid": lambda x, y: F.hardsigmoid(4 * x), "Softshrink": lambda x, y: F.softshrink(x, 0.1),
    "Hardshrink": lambda x, y: F.hardshrink(x, 0.1),
    "Clamp": lambda x, y: x.clamp(-0.1, 0.2), "ClampMin": lambda x, y: x.clamp_min(0.1),
    "ClampMax": lambda x, y: x.clamp_max(0.1), "Maximum": lambda x, y: torch.maximum(x, y),
    "Minimum": lambda x, y: torch.minimum(x, y), "Max": lambda x, y: x.max(0).values,
    "Min": lambda x, y: x.min(0).values, "Amax": lambda x, y: x.amax(1), "Amin": lambda x, y: x.amin(1),
    "Sort": lambda x, y: x.sort(0).values, "Topk": lambda x, y: x.topk(2).values,
    "Kthvalue": lambda x, y: x.kthvalue(2).values, "Median": lambda x, y: x.median(0).values,
    "MaxPool2DWithIndices": lambda x, y: pooled(x)[0],
    "MaxPool3DWithIndices": lambda x, y: F.max_pool3d(volume(x), 2),
    "AdaptiveMaxPool2D": lambda x, y: F.adaptive_max_pool2d(image(x), 3),
    "AdaptiveMaxPool3D": lambda x, y: F.adaptive_max_pool3d(volume(x), (3, 1, 2)),
    "Sign": lambda x, y: x.sign() + x, "Round": lambda x, y: x.round() + x,
    "Floor": lambda x, y: x.floor() + x, "Ceil": lambda x, y: x.ceil() + x,
    "Trunc": lambda x, y: x.trunc() + x, "NllLoss": lambda x, y: F.nll_loss(x, INDEX),
    "NllLoss2D": lambda x, y: F.nll_loss(x.reshape(1, 4, 2, 2), INDEX.reshape(1, 2, 2)),
}  # fmt: skip

NOT_BUILT = {
    "Contiguous", "Copy", "ViewAs", "Reshape", "Narrow", "IndexPutImpl", "MkldnnAdaptiveAvgPool2D",
}  # fmt: skip
"""Names under which no call on this CPU records a node: they become views, slices or copies."""


def test_the_list_of_calls_is_that_of_the_table():
    assert LINEAR.keys() | NOT_BUILT == set(linearity._LINEAR.split())
    assert not LINEAR.keys() & NOT_BUILT


STEP = 1e-5
ROUNDING = 16 * torch.finfo(torch.float64).eps / STEP**2
"""What is left of a second difference of numbers of size one, of which each has a few roundings."""


def second_derivative(call, x, y, *, jointly=True):
    """Largest second difference of ``t ↦ call(x + t a, y + t b)``, by the size of its values.

    The step stays in a piece: the next kink of values of size one is farther away.
    """
    a, b = random(*x.shape), random(*y.shape)

    def at(t):
        return call(x + t * a, y + t * b if jointly else y)

    middle = at(0.0)
    second = (at(STEP) + at(-STEP) - 2 * middle) / STEP**2
    return float(second.abs().max() / (1 + middle.abs().max()))


@pytest.mark.parametrize("name", LINEAR)
def test_linear_operations_have_no_second_derivative(name):
    torch.manual_seed(0)
    x, y = (random(4, 4).requires_grad_() for _ in range(2))
    result = LINEAR[name](x, y)
    assert any(n.rstrip("0123456789") == f"{name}Backward" for n in node_names(result)), set(
        node_names(result)
    )
    with torch.no_grad():
        assert second_derivative(LINEAR[name], x.detach(), y.detach()) < ROUNDING
    if name != "ToCopy":  # its way back from complex numbers is not in the table
        assert not find_curvature([result], {0: [x, y]})


PRODUCTS = {
    "MulBackward": lambda x, y: x * y, "MmBackward": lambda x, y: x @ y,
    "BmmBackward": lambda x, y: torch.bmm(x[None], y[None]), "MvBackward": lambda x, y: x @ y[0],
    "DotBackward": lambda x, y: torch.dot(x[0], y[1]),
    "AddmmBackward": lambda x, y: torch.addmm(x, x, y), "AddmvBackward": lambda x, y: torch.addmv(y[0], x, y[1]),
    "BaddbmmBackward": lambda x, y: torch.baddbmm(x[None], x[None], y[None]),
    "AddbmmBackward": lambda x, y: torch.addbmm(x, x[None], y[None]),
    "AddcmulBackward": lambda x, y: torch.addcmul(x, x, y),
    "ConvolutionBackward": lambda x, y: F.conv1d(x[None], y[None][..., :2]),
    "PreluKernelBackward": lambda x, y: F.prelu(x, y[0]),
}  # fmt: skip

PRODUCTS_NOT_BUILT = {"LinearBackward"}  # a product of matrices on a CPU


def test_the_list_of_products_is_that_of_the_table():
    assert PRODUCTS.keys() | PRODUCTS_NOT_BUILT == linearity._PRODUCTS.keys()


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_linear_in_each_factor_and_nonlinear_in_both(name):
    torch.manual_seed(0)
    x, y = (random(4, 4).requires_grad_() for _ in range(2))
    result = PRODUCTS[name](x, y)
    assert any(n.rstrip("0123456789") == name for n in node_names(result)), node_names(result)
    assert not find_curvature([result], {0: [x], 1: [y]})
    assert find_curvature([result], {0: [x, y]})[0].startswith(name)
    with torch.no_grad():
        call, x, y = PRODUCTS[name], x.detach(), y.detach()
        assert second_derivative(call, x, y, jointly=False) < ROUNDING
        assert second_derivative(lambda b, a: call(a, b), y, x, jointly=False) < ROUNDING
        assert second_derivative(call, x, y) > 20 * ROUNDING


def normalised(x):
    return F.batch_norm(x, torch.zeros(4).double(), torch.ones(4).double(), training=True)


NONLINEAR = {
    "gelu": F.gelu, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "softmax": lambda x: x.softmax(1),
    "log softmax": lambda x: x.log_softmax(1), "layer norm": lambda x: F.layer_norm(x, (4,)),
    "square": lambda x: x * x, "ratio": lambda x: x / (x.sum() + 9), "one over": lambda x: 1 / (x + 9),
    "self product": lambda x: x @ x, "gram": lambda x: x @ x.T, "batched": lambda x: torch.bmm(x[None], x[None]),
    "batch norm": normalised, "power": lambda x: x.abs() ** 1.5, "power of": lambda x: 2**x,
    "own power": lambda x: x.abs() ** x, "norm": lambda x: x.norm(), "vector norm": lambda x: torch.linalg.vector_norm(x, dim=1),
    "logsumexp": lambda x: x.logsumexp(1), "hardswish": F.hardswish, "elu": F.elu, "selu": F.selu,
    "celu": F.celu, "silu": F.silu, "mish": F.mish, "softplus": F.softplus, "prod": lambda x: x.prod(1),
    "cumprod": lambda x: x.cumprod(1), "var": lambda x: x.var(1), "std": lambda x: x.std(1),
    "exp": torch.exp, "log": lambda x: (x.abs() + 1).log(), "sqrt": lambda x: (x.abs() + 1).sqrt(),
    "rsqrt": lambda x: (x.abs() + 1).rsqrt(), "sin": torch.sin, "erf": torch.erf, "glu": lambda x: F.glu(x, 1),
    "convolution with itself": lambda x: F.conv1d(x[None], x[None][..., :2]),
    "bilinear with itself": lambda x: F.bilinear(x, x, torch.ones(2, 4, 4).double()),
    "einsum": lambda x: torch.einsum("ij,ij->i", x, x), "dot": lambda x: torch.dot(x[0], x[1]),
    "matrix-vector": lambda x: x @ x[0], "addmm": lambda x: torch.addmm(x, x, x),
    "addcmul": lambda x: torch.addcmul(x, x, x), "addcdiv": lambda x: torch.addcdiv(x, x, x + 9),
    "prelu of itself": lambda x: F.prelu(x, x[0]), "lerp": lambda x: torch.lerp(x, 2 * x, x),
    "cdist": lambda x: torch.cdist(x, 2 * x + 1), "cosine": lambda x: F.cosine_similarity(x, x.flip(0)),
    "inverse": lambda x: torch.linalg.inv(x), "determinant": lambda x: torch.linalg.det(x),
    "attention": lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None]),
    "complex modulus": lambda x: torch.complex(x, x.flip(0) + 1).abs(),
    "complex modulus without a view": lambda x: (x.to(torch.complex128) * (1 + 2j) + 1j).abs(),
    "complex direction": lambda x: (x.to(torch.complex128) * (1 + 2j) + 1j).sgn(),
    "spectrum": lambda x: torch.fft.rfft(x).abs(), "hypot": lambda x: torch.hypot(x, x + 1),
    "rms norm": lambda x: F.rms_norm(x, (4,)), "group norm": lambda x: F.group_norm(x, 2),
    "batch norm scaled by itself": lambda x: F.batch_norm(
        x, torch.zeros(4).double(), torch.ones(4).double(), x[0], x[1]),
    "div by": lambda x: torch.ones(4, 4).double() / (x + 9), "square function": torch.square,
}  # fmt: skip


@pytest.mark.parametrize("name", NONLINEAR)
def test_nonlinear_operations_are_named(name):
    torch.manual_seed(0)
    x = random(4, 4).requires_grad_()
    result = NONLINEAR[name](x)
    with torch.no_grad():
        found = second_derivative(lambda a, b: NONLINEAR[name](a), x.detach(), x.detach())
    assert found > 20 * ROUNDING
    found = find_curvature([result], {0: [x]})
    assert 0 in found and "Backward" in found[0]


def test_groups_are_told_apart():
    torch.manual_seed(0)
    x, y, z = (random(4, 4).requires_grad_() for _ in range(3))
    result = F.relu(x @ y) + torch.tanh(z)
    found = find_curvature([result], {"x": [x], "y": [y], "z": [z], "both": [x, y]})
    assert found.keys() == {"z", "both"} and found["z"].startswith("Tanh")
    assert found["both"].startswith("Mm")
    assert not find_curvature([x / y], {0: [x]}) and find_curvature([x / y], {0: [y]})
    second = find_curvature([x @ y, torch.exp(y)], {0: [x], 1: [y]})
    assert second.keys() == {1}


def test_names_do_not_deceive():
    """A custom function counts as nonlinear, whatever it is called."""

    class Relu(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return g

    x = random(4, 4).requires_grad_()
    result = Relu.apply(x)
    assert result.grad_fn.name() == "ReluBackward"
    assert find_curvature([result], {0: [x]}) == {0: "ReluBackward"}


GPU_NORMS = {
    "Cudnn": lambda x, w, b, m, v, t: torch.ops.aten.cudnn_batch_norm(x, w, b, m, v, t, 0.1, 1e-5),
    "Miopen": lambda x, w, b, m, v, t: torch.ops.aten.miopen_batch_norm(x, w, b, m, v, t, 0.1, 1e-5),
}  # fmt: skip


@pytest.mark.parametrize("library", GPU_NORMS)
@pytest.mark.parametrize("training", [False, True])
def test_batch_norms_of_gpus_are_known(library, training):
    """Their nodes have names of their own; without a GPU, without values."""
    x, w, b, mean, var = (torch.ones(n, device="meta") for n in ((4, 3, 2, 2), 3, 3, 3, 3))
    x, w, b = (tensor.requires_grad_() for tensor in (x, w, b))
    try:
        result = GPU_NORMS[library](x, w, b, mean, var, training)[0]
    except (NotImplementedError, RuntimeError) as error:
        pytest.skip(f"cannot be recorded here: {str(error).splitlines()[0]}")
    assert result.grad_fn.name().startswith(library)
    found = find_curvature([result], {"x": [x], "w": [w], "b": [b], "both": [x, w]})
    assert found.keys() == ({"x", "w", "b", "both"} if training else {"both"})
