"""Exact directional curvature of one layer: ours against what one would write or use today.

For each layer: the same batch, the same float32 weights and the same top-k directions for

- ours: `CurvatureProblem.curvatures`, forward pass and graph included
- plain loop: `torch.func.jvp` of the gradient, once per direction
- curvlinops: `HessianLinearOperator` of the layer's weight, applied to each direction

Prints the ratio of median times (above 1: the peer is slower), the cost in forward passes per
direction, and the largest relative difference of the curvatures.
"""

import statistics

import curvlinops
import torch
from harness import arguments, interleaved, print_figure, ratio
from torch import Tensor, nn
from torch.nn import functional as F

from spectral_backends.torch import CurvatureProblem


def residual_cnn() -> nn.Module:
    """Return a ReLU network with a skip connection, of the kind of a small ResNet."""

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(width, width, 3, padding=1)
            self.conv2 = nn.Conv2d(width, width, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x + self.conv2(F.relu(self.conv1(x))))

    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), Block(16), Block(16), Block(16),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


def transformer() -> nn.Module:
    """Return a GELU and LayerNorm encoder of two blocks with a classifier on top."""
    block = nn.TransformerEncoderLayer(64, 4, 256, 0.0, "gelu", batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
    return nn.Sequential(encoder, nn.Flatten(), nn.Linear(64 * 16, 10)).eval()


def compare(name: str, model: nn.Module, x: Tensor, layer: str, top_k: int, repeats: int) -> None:
    """Time the contenders on one layer whose weight is a parameter of its own."""
    y = torch.randint(10, (len(x),))
    loss_fn = nn.CrossEntropyLoss()
    problem = CurvatureProblem(model, loss_fn, [(x, y)])
    u, _, vh = torch.linalg.svd(problem.gradients([layer])[layer], full_matrices=False)
    u, v = u[:, :top_k], vh.mT[:, :top_k]
    weight = model.get_parameter(f"{layer}.weight")
    directions = torch.einsum("mk,nk->kmn", u, v).reshape(-1, *weight.shape)

    def ours() -> Tensor:
        return problem.curvatures(layer, u, v)

    def loss_of(w: Tensor) -> Tensor:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return loss_fn(torch.func.functional_call(model, {f"{layer}.weight": w}, (x,)), y)

    def plain_loop() -> Tensor:
        w = weight.detach()
        gradient = torch.func.grad(loss_of)
        return torch.stack(
            [(torch.func.jvp(gradient, (w,), (d,))[1] * d).sum() for d in directions]
        )

    operator = curvlinops.HessianLinearOperator(
        model, loss_fn, [weight], [(x, y)], check_deterministic=False
    )

    def peer() -> Tensor:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return torch.stack([(operator @ d.flatten()) @ d.flatten() for d in directions])

    def forward() -> Tensor:
        with torch.no_grad():
            return model(x)

    contenders = {"forward": forward, "ours": ours, "plain loop": plain_loop, "curvlinops": peer}
    times = interleaved(contenders, repeats)
    h = ours()
    units = statistics.median(times["ours"]) / statistics.median(times["forward"]) / len(h)
    for other, values in (("plain loop", plain_loop()), ("curvlinops", peer())):
        print_figure(
            "curvature of one layer",
            model=name,
            layer=layer,
            batch=len(x),
            top_k=len(h),
            peer=other,
            peer_time_over_ours=round(ratio(times, other, "ours"), 2),
            ours_forward_passes_per_direction=round(units, 2),
            largest_relative_difference=((h - values).abs() / values.abs().max()).max().item(),
        )


def main() -> None:
    """Run every figure."""
    quick = arguments(__doc__).quick
    torch.manual_seed(0)
    batch, top_k, repeats = (32, 5, 2) if quick else (128, 20, 5)
    images, tokens = torch.randn(batch, 3, 16, 16), torch.randn(batch, 16, 64)
    cnn, encoder = residual_cnn(), transformer()
    for layer in ("0", "3.conv1", "4.conv2"):
        compare("residual CNN, ReLU", cnn, images, layer, top_k, repeats)
    for layer in ("0.layers.0.linear1", "0.layers.1.self_attn.out_proj"):
        compare("transformer, GELU", encoder, tokens, layer, top_k, repeats)


if __name__ == "__main__":
    main()
