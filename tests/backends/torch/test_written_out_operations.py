"""Attention and batch normalisation, written out in parts, give what torch's own give."""

import pytest
import torch
from layer_cases import random
from torch import nn
from torch.nn import functional as F

from spectral_backends.torch.capture.attention import (
    multi_head_attention,
    scaled_dot_product_attention,
)
from spectral_backends.torch.capture.batch_norm import affine_batch_norm
from spectral_backends.torch.instruments.call_observer import CallObserver

CLOSE = {"rtol": 1e-10, "atol": 1e-12}
SHUT = torch.tensor([[0, 0, 0, 1, 0], [0, 1, 0, 0, 0], [1, 0, 0, 0, 1], [0, 0, 0, 0, 0]]).bool()
NUMBERS = torch.arange(20.0).reshape(4, 5).double() / 9
PADDED = torch.arange(5) >= torch.tensor([[5], [3], [2]])

SDPA = {
    "plain": {}, "causal": {"is_causal": True}, "scale": {"scale": 0.3},
    "boolean": {"attn_mask": ~SHUT}, "boolean by sample": {"attn_mask": (~SHUT).expand(2, 4, 4, 5)},
    "numbers": {"attn_mask": NUMBERS},
    "minus infinity": {"attn_mask": torch.zeros(4, 5).double().masked_fill(SHUT, -torch.inf)},
    "grouped": {"enable_gqa": True}, "grouped and causal": {"enable_gqa": True, "is_causal": True},
}  # fmt: skip


@pytest.mark.parametrize("name", SDPA)
def test_scaled_dot_product_attention(name):
    torch.manual_seed(0)
    options = SDPA[name]
    heads = 2 if options.get("enable_gqa") else 4
    q, k, v = random(2, 4, 4, 6), random(2, heads, 5, 6), random(2, heads, 5, 3)
    expected = F.scaled_dot_product_attention(q, k, v, **options)
    torch.testing.assert_close(scaled_dot_product_attention(q, k, v, **options), expected, **CLOSE)


MHA = {
    "plain": {}, "without weights": {"need_weights": False},
    "weights of heads": {"average_attn_weights": False}, "boolean": {"attn_mask": SHUT},
    "numbers": {"attn_mask": NUMBERS},
    "by head": {"attn_mask": torch.stack([SHUT, SHUT.roll(1, 1)]).repeat(3, 1, 1)},
    "numbers by head": {"attn_mask": torch.arange(120.0).reshape(6, 4, 5).double() / 50},
    "padding": {"key_padding_mask": PADDED},
    "padding in numbers": {"key_padding_mask": PADDED.double() * -2},
    "padding and boolean": {"key_padding_mask": PADDED, "attn_mask": SHUT},
    "padding and by head": {
        "key_padding_mask": PADDED, "attn_mask": torch.eye(4, 5).bool().repeat(6, 1, 1)},
    "padding, weights of heads": {"key_padding_mask": PADDED, "average_attn_weights": False},
    "causal": {"attn_mask": torch.ones(4, 5).triu(1).bool(), "is_causal": True},
    "no bias": {"bias": False}, "extra keys": {"add_bias_kv": True}, "zero key": {"add_zero_attn": True},
    "other widths": {"kdim": 6, "vdim": 3},
}  # fmt: skip
BUILT_WITH = ("bias", "add_bias_kv", "add_zero_attn", "kdim", "vdim")


class Written(CallObserver):
    """Runs the attention of modules written out, and counts how often."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not F.multi_head_attention_forward:
            return super().__torch_function__(func, types, args, kwargs)
        self.calls += 1
        return multi_head_attention(torch.no_grad(), args, dict(kwargs or {}))

    def observe(self, func, args, kwargs, result):
        pass


def one_sample(options):
    """Return masks of the sample in the middle, of two heads."""
    options = dict(options)
    if "key_padding_mask" in options:
        options["key_padding_mask"] = options["key_padding_mask"][1]
    if options.get("attn_mask", SHUT).ndim == 3:
        options["attn_mask"] = options["attn_mask"][2:4]
    return options


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("name", MHA)
def test_multi_head_attention(name, single):
    torch.manual_seed(0)
    made = {key: value for key, value in MHA[name].items() if key in BUILT_WITH}
    options = {key: value for key, value in MHA[name].items() if key not in BUILT_WITH}
    module = nn.MultiheadAttention(8, 2, **made).double()
    inputs = random(4, 3, 8), random(5, 3, made.get("kdim", 8)), random(5, 3, made.get("vdim", 8))
    if single:
        inputs, options = [t[:, 1] for t in inputs], one_sample(options)
    expected, shown = module(*inputs, **options)
    with Written() as written:
        found, weights = module(*inputs, **options)
    assert written.calls == 1
    torch.testing.assert_close(found, expected, **CLOSE)
    assert (weights is None) == (shown is None)
    if shown is not None:
        torch.testing.assert_close(weights, shown, **CLOSE)


@pytest.mark.parametrize("dims", [0, 1, 2, 3])
@pytest.mark.parametrize("scaled", [(True, True), (True, False), (False, True), (False, False)])
def test_batch_norm_by_running_statistics(dims, scaled):
    torch.manual_seed(0)
    x, mean, var = random(3, 4, *[2] * dims), random(4), random(4) ** 2
    weight, bias = (random(4) if given else None for given in scaled)
    for eps in (1e-5, 2.0):
        given = (x, mean, var, weight, bias, False, 0.1, eps)
        affine = affine_batch_norm(*given)
        found = torch.addcmul(affine.shift, affine.x, affine.scale)
        torch.testing.assert_close(found, F.batch_norm(*given), **CLOSE)


def test_batch_norm_that_is_no_fixed_affine_map():
    """Statistics of the batch, or a map that is itself to be differentiated."""
    x, mean, var = random(3, 4), random(4), random(4) ** 2
    assert affine_batch_norm(x, mean, var, training=True) is None
    assert affine_batch_norm(x, None, None) is None
    assert affine_batch_norm(x, mean, var, mean.clone().requires_grad_()) is None
