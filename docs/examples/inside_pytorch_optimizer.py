"""T(σ; α) inside pytorch_optimizer, by the hook that every PyTorch optimizer has.

::

    pip install 'spectral-core[torch]' pytorch_optimizer
    SPECTRAL_DATA=path/to/data python docs/examples/inside_pytorch_optimizer.py

`register_step_pre_hook` lets T replace the gradients before a step, whatever the optimizer is. It
belongs to optimizers that leave a gradient's direction alone, such as Schedule-Free SGD, which
averages weights instead of gradients; an Adam behind it would undo T entry by entry.
"""

from typing import Any

import torch
from pytorch_optimizer import ScheduleFreeSGD
from small_digits import small_digits
from torch import nn
from torch.nn import functional as F

import spectral_core as sc

RATE, BETA, ALPHA, DAMPING, STEPS = 0.02, 0.9, 1.5, 0.1, 30
# Float32 against float64: 2 √k ρ for k = 64 rows; `precondition` explains ρ, 1.8e-5 here.
TOLERANCE = 3e-4


def transfer_gradients(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Replace the gradients of the groups that name an `alpha` by T, as large as AdamW updates."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if "alpha" in group and p.grad is not None:
                new = sc.precondition(
                    p.grad.flatten(1), group["alpha"], group["damping"], normalize="rms"
                )
                p.grad = new.reshape(p.shape)


def main() -> None:
    """Train, and compare every step of a weight with T in float64 by its SVD."""
    torch.manual_seed(0)
    x, y = map(torch.from_numpy, small_digits())
    model = nn.Sequential(nn.Linear(196, 64), nn.ReLU(), nn.Linear(64, 10))
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "alpha": ALPHA, "damping": DAMPING}, {"params": vectors}]
    optimizer = ScheduleFreeSGD(groups, lr=RATE, momentum=BETA)
    optimizer.register_step_pre_hook(transfer_gradients)
    weight, losses = model[0].weight, []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        losses.append(float(loss.detach()))
        before = optimizer.state[weight].get("z", weight).detach().double()  # what is averaged
        gradient = weight.grad.double()
        optimizer.step()
        step = (before - optimizer.state[weight]["z"].double()) / RATE
        by_hand = sc.precondition(gradient, ALPHA, DAMPING, method="svd", normalize="rms")
        assert torch.linalg.norm(step - by_hand) < TOLERANCE * torch.linalg.norm(by_hand)
    assert losses[-1] < 0.5 * losses[0]
    print(f"Schedule-Free SGD {STEPS} steps: loss {losses[0]:.3f} → {losses[-1]:.3f}")


if __name__ == "__main__":
    main()
