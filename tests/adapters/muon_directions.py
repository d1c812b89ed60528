"""What Muon's direction is to the polar factor, for tests of α = 1, δ → 0 (Theory 9.3).

Muon's usual coefficients do not converge: they leave singular values p(σ) between 0.7 and 1.2, and
the cosine to ``U V^T`` is ``Σ p(σ) / sqrt(n Σ p(σ)²)``, 0.97 to 0.99. Convergent ones reach 1.
"""

import numpy as np

USUAL = (3.4445, -4.775, 2.0315)
CONVERGENT = (15 / 8, -10 / 8, 3 / 8)
SHAPES = [(32, 32), (48, 32), (24, 80)]
STEPS = 5  # with momentum


def gradients(shape):
    rng = np.random.default_rng(sum(shape))
    return [rng.normal(size=shape).astype(np.float32) for _ in range(STEPS)]


def cosine(a, b):
    a, b = (np.asarray(x, dtype=np.float64).ravel() for x in (a, b))
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def by_definition(gradients, beta=0.95, nesterov=True):
    """Cosines of Muon's polynomial of the momentum to its polar factor, by its SVD in float64."""
    momentum, found = 0.0, []
    for gradient in gradients:
        momentum = beta * momentum + (1 - beta) * gradient
        matrix = beta * momentum + (1 - beta) * gradient if nesterov else momentum
        sigma = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
        values = sigma / np.linalg.norm(sigma)
        a, b, c = USUAL
        for _ in range(5):
            values = values * (a + b * values**2 + c * values**4)
        found.append(values.sum() / np.sqrt(len(values) * (values**2).sum()))
    return np.array(found)
