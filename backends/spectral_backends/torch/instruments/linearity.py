"""The weights in which outputs are nonlinear, read off the graph that autograd recorded.

Every differentiable operation between a weight and the outputs is a node of the graph, whatever
code made it. If all of them are piecewise linear in the values that depend on the weight, so are
the outputs, and the second-order part of the curvature vanishes (Theory 5.8). A node that is not
known counts as nonlinear.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Alias", "find_curvature", "identity", "is_alias", "is_identity"]

_IDENTITIES: set[Any] = set()


def identity(function: type[torch.autograd.Function]) -> type[torch.autograd.Function]:
    """Declare a function of ours to be the identity on its first input."""
    _IDENTITIES.add(function)
    return function


@identity
class Alias(torch.autograd.Function):
    """The identity: `value`, as a function of the leaf that stands for it.

    The leaf needs no memory of its own, and the result may be changed in place.
    """

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, value: tuple[Tensor]) -> Tensor:
        """Return the value, which hides in a tuple so that it is no input of the function."""
        return value[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Pass the gradient on."""
        return gradients[0], None


def is_alias(node: Any) -> bool:
    """Say whether a node of a graph is an `Alias`."""
    return getattr(node, "_forward_cls", None) is Alias


def is_identity(node: Any) -> bool:
    """Say whether a node of a graph is a function of ours that is the identity."""
    return getattr(node, "_forward_cls", None) in _IDENTITIES


_LINEAR = """
    Add Sub Rsub Neg Sum Mean Cumsum Trace Clone ToCopy Copy Alias Contiguous
    View UnsafeView ViewAs ReshapeAlias Reshape AsStrided Expand T Transpose Permute Squeeze
    Unsqueeze Slice Select Narrow Unfold Diagonal Split SplitWithSizes UnsafeSplit Unbind
    Cat Stack Repeat Roll Flip Tril Triu Index IndexSelect Gather Scatter ScatterAdd IndexAdd
    IndexPut IndexPutImpl MaskedFill MaskedSelect MaskedScatter Where Take Embedding Im2Col Col2Im
    ConstantPadNd ReflectionPad1D ReflectionPad2D ReflectionPad3D ReplicationPad1D
    ReplicationPad2D ReplicationPad3D SelectScatter SliceScatter ChannelShuffle MaxUnpool2D
    AvgPool2D AvgPool3D AdaptiveAvgPool2D AdaptiveAvgPool3D MkldnnAdaptiveAvgPool2D
    UpsampleNearest1D UpsampleNearest2D UpsampleNearest3D UpsampleLinear1D UpsampleBilinear2D
    UpsampleTrilinear3D UpsampleBicubic2D PixelShuffle PixelUnshuffle
    Relu LeakyRelu Threshold Hardtanh Hardsigmoid Softshrink Hardshrink Clamp ClampMin ClampMax
    Maximum Minimum Max Min Amax Amin Sort Topk Kthvalue Median
    MaxPool2DWithIndices MaxPool3DWithIndices AdaptiveMaxPool2D AdaptiveMaxPool3D
    Sign Round Floor Ceil Trunc NllLoss NllLoss2D
"""
"""Operations that are piecewise linear in all that goes into them, together."""

_LINEAR_NODES = {f"{name}Backward" for name in _LINEAR.split()} | {"torch::autograd::CopyBackwards"}

_PRODUCTS: Mapping[str, Sequence[int]] = {
    "MulBackward": (0, 1), "MmBackward": (0, 1), "BmmBackward": (0, 1), "MvBackward": (0, 1),
    "DotBackward": (0, 1), "LinearBackward": (0, 1), "AddmmBackward": (1, 2),
    "AddmvBackward": (1, 2), "BaddbmmBackward": (1, 2), "AddbmmBackward": (1, 2),
    "AddcmulBackward": (1, 2), "ConvolutionBackward": (0, 1), "PreluKernelBackward": (0, 1),
}  # fmt: skip
"""Linear in each of two inputs (by position), and in any further one that adds to them."""

_BATCH_NORMS = ("NativeBatchNormBackward", "CudnnBatchNormBackward", "MiopenBatchNormBackward")
"""On a CPU, and on GPUs; affine maps of their first input where the statistics are given."""


def find_curvature(
    outputs: Sequence[Tensor], leaves: Mapping[int, Sequence[Tensor]]
) -> dict[int, str]:
    """Return the groups of leaves in which outputs are, or may be, nonlinear, and by which node.

    Parameters
    ----------
    outputs : sequence of Tensor
        The outputs, with their graph.
    leaves : mapping of int to sequence of Tensor
        The leaves of the graph, by group. The leaves of one group change together.

    Returns
    -------
    dict of int to str
        The name of a node by group; groups that are not named are piecewise linear.
    """
    bits = {group: 1 << index for index, group in enumerate(leaves)}
    of_leaf: dict[int, int] = {}
    for group, members in leaves.items():
        for leaf in members:
            of_leaf[id(leaf)] = of_leaf.get(id(leaf), 0) | bits[group]
    depends: dict[Any, int] = {None: 0}
    nonlinear: dict[int, str] = {}
    for node in _upstream_first([output.grad_fn for output in outputs]):
        inputs = [depends[following] for following, _ in node.next_functions]
        depends[node] = _union(inputs)
        if hasattr(node, "variable"):
            depends[node] |= of_leaf.get(id(node.variable), 0)
        elif depends[node] and (found := _nonlinear_in(node, inputs)):
            for group, bit in bits.items():
                if found & bit:
                    nonlinear.setdefault(group, node.name())
    return nonlinear


def _nonlinear_in(node: Any, inputs: Sequence[int]) -> int:
    """Return the groups in which a node is nonlinear, given those that its inputs depend on."""
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        return 0 if is_identity(node) else _union(inputs)
    name = node.name().rstrip("0123456789")
    if name in _LINEAR_NODES:
        return 0
    if name in _PRODUCTS:
        factors = [inputs[position] for position in _PRODUCTS[name] if position < len(inputs)]
        return (
            factors[0] & factors[1] if len(factors) > 1 else 0
        )  # one of the two factors is a number
    if name == "DivBackward":
        return inputs[1] if len(inputs) > 1 else 0
    if name in _BATCH_NORMS and not node._saved_training:
        return inputs[0] & _union(inputs[1:])
    return _union(inputs)


def _union(masks: Sequence[int]) -> int:
    result = 0
    for mask in masks:
        result |= mask
    return result


def _upstream_first(roots: Sequence[Any]) -> Iterator[Any]:
    """Yield every node of a graph once, after all those that lead to it."""
    done: set[Any] = {None}
    todo = [(root, False) for root in roots]
    while todo:
        node, ready = todo.pop()
        if node in done:
            continue
        if ready:
            done.add(node)
            yield node
        else:
            todo.append((node, True))
            todo += [(following, False) for following, _ in node.next_functions]
