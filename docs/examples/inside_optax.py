"""T(σ; α) inside Optax, as a stateless transformation of a chain, under `jax.jit`.

::

    pip install 'spectral-core[jax]' optax
    SPECTRAL_DATA=path/to/data python docs/examples/inside_optax.py

`optax.chain` puts T behind the momentum, `optax.partition` sends vectors to AdamW. Optax stores
weights as inputs × outputs; T does not care, for T(Gᵀ) = T(G)ᵀ.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from small_digits import small_digits

import spectral_core as sc

RATE, BETA, ALPHA, DAMPING, STEPS = 0.02, 0.9, 1.5, 0.1, 30
# Float32 against float64: 2 √k ρ for k = 64 rows; `precondition` explains ρ, 1.8e-5 here.
TOLERANCE = 3e-4


def scale_by_transfer(alpha: float, damping: float) -> optax.GradientTransformation:
    """Return the transformation that replaces every matrix by T of it, as large as AdamW's."""
    return optax.stateless_with_tree_map(
        lambda update, _: sc.precondition(update, alpha, damping, normalize="rms")
    )


def spectral_chain(rate: float, alpha: float, damping: float) -> optax.GradientTransformation:
    """Return momentum, then T, for matrices; AdamW for what has one axis."""
    matrices = optax.chain(
        optax.ema(BETA), scale_by_transfer(alpha, damping), optax.scale_by_learning_rate(rate)
    )
    return optax.partition(
        {"matrix": matrices, "other": optax.adamw(rate, weight_decay=0.0)},
        lambda params: jax.tree.map(lambda p: "matrix" if p.ndim == 2 else "other", params),
    )


def loss_of(params: dict[str, jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the mean cross-entropy of a network with one hidden layer."""
    hidden = jax.nn.relu(x @ params["up"] + params["up_bias"])
    logits = hidden @ params["down"] + params["down_bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def main() -> None:
    """Train, and compare every step of a weight with T by NumPy's SVD in float64."""
    x, y = map(jnp.asarray, small_digits())
    rng = np.random.default_rng(0)
    params = {"up": jnp.asarray(rng.normal(size=(196, 64)) / 14, jnp.float32),
              "up_bias": jnp.zeros(64),
              "down": jnp.asarray(rng.normal(size=(64, 10)) / 8, jnp.float32),
              "down_bias": jnp.zeros(10)}  # fmt: skip
    optimizer = spectral_chain(RATE, ALPHA, DAMPING)

    @jax.jit
    def train_step(params, state):
        loss, gradients = jax.value_and_grad(loss_of)(params, x, y)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss, gradients

    state, momentum, losses = optimizer.init(params), 0.0, []
    for _ in range(STEPS):
        before = np.asarray(params["up"], np.float64)
        params, state, loss, gradients = train_step(params, state)
        losses.append(float(loss))
        momentum = BETA * momentum + (1 - BETA) * np.asarray(gradients["up"], np.float64)
        by_hand = sc.precondition(momentum, ALPHA, DAMPING, method="svd", normalize="rms")
        step = (before - np.asarray(params["up"], np.float64)) / RATE
        assert np.linalg.norm(step - by_hand) < TOLERANCE * np.linalg.norm(by_hand)
    assert losses[-1] < 0.5 * losses[0]
    print(f"Optax {STEPS} steps: loss {losses[0]:.3f} → {losses[-1]:.3f}")


if __name__ == "__main__":
    main()
