"""T(σ; α) inside HeavyBall, as a transform of a chain.

::

    pip install 'spectral-core[torch]' heavyball
    SPECTRAL_DATA=path/to/data python docs/examples/inside_heavyball.py

HeavyBall's optimizers are chains of transforms; its Muon is `nesterov_ema`, then
`orthogonalize_update`. Here T takes the second place, and `route` sends vectors to Adam. Weight
decay, warm-up, cautious updates and compressed state stay HeavyBall's. Leave `compile_step`
off: the choice of a method is made in Python.
"""

import heavyball
import torch
from heavyball import chainable
from small_digits import small_digits
from torch import Tensor, nn
from torch.nn import functional as F

import spectral_core as sc

RATE, BETA, ALPHA, DAMPING, STEPS = 0.02, 0.9, 1.5, 0.1, 30
# Float32 against float64: 2 √k ρ for k = 64 rows; `precondition` explains ρ, 1.8e-5 here.
TOLERANCE = 3e-4
heavyball.utils.compile_mode = None  # no compiler needed for a network this small


@chainable.needs_full_param  # of a sharded weight
@chainable.no_state_no_multi_tensor  # one parameter after the other
def transfer_update(group: dict, update: Tensor, grad: Tensor, param: Tensor) -> Tensor:
    """Replace one update by T of it; the kernels of a convolution are the rows of a matrix."""
    matrix = update.flatten(1)
    new = sc.precondition(matrix, group["alpha"], group["damping"], normalize="rms")
    return new.reshape(update.shape)


class SpectralChain(chainable.BaseOpt):
    """Nesterov momentum, then T with updates as large as AdamW's; Adam for vectors."""

    def __init__(self, params, lr, alpha, damping, betas=(BETA, 0.99), eps=1e-8, **options):
        defaults = {"lr": lr, "alpha": alpha, "damping": damping, "betas": betas, "eps": eps,
                    "multi_tensor": True, **options}  # fmt: skip
        matrices = (chainable.nesterov_ema, transfer_update)
        chosen = chainable.route((lambda p: p.ndim >= 2, matrices), default=chainable.scale_by_adam)
        super().__init__(params, defaults, fns=(chosen,))


def main() -> None:
    """Train, and compare every step of a weight with T in float64 by its SVD."""
    torch.manual_seed(0)
    x, y = map(torch.from_numpy, small_digits())
    model = nn.Sequential(nn.Linear(196, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = SpectralChain(model.parameters(), RATE, ALPHA, DAMPING)
    weight, momentum, losses = model[0].weight, 0.0, []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        losses.append(float(loss.detach()))
        before, gradient = weight.detach().double(), weight.grad.double()
        optimizer.step()
        momentum = BETA * momentum + (1 - BETA) * gradient
        nesterov = gradient + momentum
        by_hand = sc.precondition(nesterov, ALPHA, DAMPING, method="svd", normalize="rms")
        step = (before - weight.detach().double()) / RATE
        assert torch.linalg.norm(step - by_hand) < TOLERANCE * torch.linalg.norm(by_hand)
    assert losses[-1] < 0.5 * losses[0]
    print(f"HeavyBall {STEPS} steps: loss {losses[0]:.3f} → {losses[-1]:.3f}")


if __name__ == "__main__":
    main()
