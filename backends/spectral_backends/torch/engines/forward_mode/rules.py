"""The rules by which tangents pass one piece of a tape, with the second-order part it adds."""

from collections.abc import Sequence

from torch import Tensor

from spectral_backends.torch.capture.tape import Segment
from spectral_backends.torch.engines.forward_mode.general_rule import Nonlinearity, PullBack
from spectral_backends.torch.engines.forward_mode.short_rules import TangentRule, short_rule
from spectral_backends.torch.instruments.linearity import find_curvature

__all__ = ["TangentRule", "tangent_rule"]


def tangent_rule(
    segment: Segment,
    inputs: Sequence[Tensor],
    adjoints: Sequence[Tensor | None],
    *,
    shortcuts: bool,
) -> tuple[TangentRule, list[Tensor | None]]:
    """Return the rule of a piece, and the adjoints of its inputs.

    Parameters
    ----------
    segment : Segment
        The piece.
    inputs : sequence of Tensor
        The inputs of the piece that may have tangents.
    adjoints : sequence of Tensor or None
        The adjoint λ of each output.
    shortcuts : bool
        Whether to leave out second derivatives that the graph shows to vanish, and to use shorter
        forms.

    Raises
    ------
    RuntimeError
        If the piece cannot be differentiated twice.
    """
    rule = PullBack(segment, inputs, adjoints)
    if not shortcuts:
        return rule, rule.input_adjoints
    leaves = list(inputs)
    if not find_curvature(rule.outputs, {0: leaves}):
        rule.nonlinearity = Nonlinearity.NONE
        return rule, rule.input_adjoints
    if len(leaves) == 2 and not find_curvature(rule.outputs, {0: leaves[:1], 1: leaves[1:]}):
        rule.nonlinearity = Nonlinearity.PRODUCT
    return short_rule(segment, rule) or rule, rule.input_adjoints
