"""A small task for the examples of optimizers: digits at half size, ten classes.

Without the data folder, clusters of the same shape take the place of the digits.
"""

import numpy as np
from shared_data import DATA


def small_digits(count: int = 1000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return images, float32 (count, 196) of zero mean and unit variance, and labels (count,)."""
    rng = np.random.default_rng(seed)
    if (DATA / "mnist.npz").exists():
        with np.load(DATA / "mnist.npz") as stored:
            images, labels = stored["x_train"], stored["y_train"].astype(np.int64)
        chosen = rng.choice(len(images), count, replace=False)
        x = images[chosen].reshape(count, 14, 2, 14, 2).mean((2, 4)).reshape(count, -1)
        y = labels[chosen]
    else:
        y = rng.integers(10, size=count)
        x = rng.normal(size=(10, 196))[y] + 2 * rng.normal(size=(count, 196))
    return ((x - x.mean()) / x.std()).astype(np.float32), y
