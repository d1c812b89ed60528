"""A small measurement by every engine of every backend, with every kind of factor.

python tests/robustness/soak/seed_cases.py "torch"    # prints the reports of a backend as JSON
"""

import json
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import spectral_core as sc
from spectral_backends.arrays import DenseNetwork
from spectral_core.curvature.problem import FisherType

Make = Callable[[int], Any]
DATA = np.random.default_rng(0)
X, Y = DATA.standard_normal((14, 6)), DATA.integers(0, 4, 14)
CUT = [slice(0, 7), slice(7, 14)]


def torch_problem(seed: int, bends: bool = True, dtype: str = "float32") -> Any:
    import torch

    from spectral_backends.torch import CurvatureProblem

    before = torch.get_rng_state()
    torch.manual_seed(0)
    middle = torch.nn.GELU() if bends else torch.nn.ReLU()
    model = torch.nn.Sequential(
        torch.nn.Conv1d(1, 4, 3, padding=1), torch.nn.BatchNorm1d(4), middle, torch.nn.Dropout(),
        torch.nn.Flatten(), torch.nn.Linear(24, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4),
    ).eval()  # fmt: skip
    torch.set_rng_state(before)
    batches = [(torch.as_tensor(X[cut, None]), torch.as_tensor(Y[cut])) for cut in CUT]
    loss = torch.nn.functional.cross_entropy
    return CurvatureProblem(model, loss, batches, dtype=getattr(torch, dtype), seed=seed)


def torch_random_problem(seed: int) -> Any:
    """Dropout and a shuffling loader: each pass starts from the seed."""
    import torch

    from spectral_backends.torch import CurvatureProblem

    before = torch.get_rng_state()
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Dropout(0.3), torch.nn.Linear(8, 4)
    )
    torch.set_rng_state(before)
    data = torch.utils.data.TensorDataset(torch.as_tensor(X).float(), torch.as_tensor(Y))
    loader = torch.utils.data.DataLoader(data, batch_size=5, shuffle=True)
    loss = torch.nn.functional.cross_entropy
    return CurvatureProblem(model, loss, loader, seed=seed, check_deterministic=False)


def jax_problem(seed: int, bends: bool = True) -> Any:
    import jax

    from spectral_backends.jax import CurvatureProblem

    network = DenseNetwork((6, 8, 4)).init(0)
    params = {n: jax.numpy.asarray(p, np.float32) for n, p in network.items()}
    bend = jax.nn.gelu if bends else jax.nn.relu

    def forward(params: Any, x: Any) -> Any:
        x = bend(x @ params["0.weight"].T + params["0.bias"])
        return x @ params["head.weight"].T + params["head.bias"]

    def loss(outputs: Any, targets: Any) -> Any:
        picked = jax.numpy.take_along_axis(jax.nn.log_softmax(outputs), targets[:, None], 1)
        return -picked.mean()

    batches = [(X[cut], Y[cut]) for cut in CUT]
    return CurvatureProblem((forward, loss), params, batches, seed=seed)


def numpy_problem(seed: int, method: str = "") -> Any:
    """With products and rows by hand, or from gradients alone by a method."""
    from spectral_backends.numpy import CurvatureProblem

    network, batches = DenseNetwork((6, 8, 7, 4), "tanh"), [(X[cut], Y[cut]) for cut in CUT]
    if not method:
        return network.problem(network.init(0), batches)
    return CurvatureProblem(
        network.gradient, network.init(0), batches, weight=lambda batch: len(batch[1]),
        method=method,  # type: ignore[arg-type]
    )  # fmt: skip


def through_dlpack(make: Make, seed: int) -> Any:
    from spectral_backends.arrays import through_dlpack

    return through_dlpack(make(seed), np.empty(0))


def torch_seen_through_dlpack(make: Make, seed: int) -> Any:
    import torch

    from spectral_backends.arrays import through_dlpack

    return through_dlpack(make(seed), torch.empty(0))


def factors(fisher_type: FisherType, **options: Any) -> dict[str, Any]:
    return {"decompose": True, "fisher_type": fisher_type, **options}


AUTO: dict[str, dict[str, Any]] = {"auto": {}}
GGN = {"ggn": factors("ggn", curvature="ggn")}
ENGINES = {
    "tangents": factors("fisher-mc", engine="tangents", svd="randomized"),
    "double-backward": factors("empirical", engine="double-backward", kfac_approx="reduce"),
}
COLUMNS = {"columns": factors("fisher-mc", engine="columns", kfac_approx="reduce")}
DRAWN = {"monte-carlo": {"engine": "monte-carlo", "mc_samples": 5, "curvature": "ggn"}}

MAKES: dict[str, dict[str, tuple[Make, dict[str, dict[str, Any]]]]] = {
    "torch": {
        "curved": (torch_problem, AUTO | ENGINES | DRAWN | GGN),
        "piecewise": (partial(torch_problem, bends=False), AUTO | ENGINES | COLUMNS | DRAWN),
        "float64": (partial(torch_problem, dtype="float64"), AUTO | ENGINES | DRAWN),
        "random": (torch_random_problem, AUTO | ENGINES | DRAWN | COLUMNS),
    },
    "jax": {
        "curved": (jax_problem, ENGINES | GGN),
        "piecewise": (partial(jax_problem, bends=False), COLUMNS),
    },
    "numpy": {
        "by hand": (numpy_problem, {"empirical": factors("empirical")} | GGN),
        "complex-step": (partial(numpy_problem, method="complex-step"), AUTO),
        "differences": (partial(numpy_problem, method="differences"), AUTO),
    },
    "torch through dlpack": {
        "curved": (partial(through_dlpack, torch_problem), AUTO | ENGINES | DRAWN),
        "from numpy": (partial(torch_seen_through_dlpack, numpy_problem), AUTO),
    },
    "jax through dlpack": {
        "curved": (partial(through_dlpack, jax_problem), {"auto": factors("fisher-mc")}),
    },
}
NEEDS = {"torch": "torch", "jax": "jax", "numpy": "numpy", "torch through dlpack": "torch",
         "jax through dlpack": "jax"}  # fmt: skip


def report(make: Make, seed: int, options: dict[str, Any]) -> str:
    """Return the report of a fresh problem as JSON."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fits to few points
        found = sc.measure(make(seed), top_k=4, progress=False, **options)
    return json.dumps(found.to_dict())


def reports(backend: str, seed: int, *, backwards: bool = False) -> dict[str, str]:
    """Return all reports of a backend, measured in this order or the other."""
    todo = [
        (f"{case}, {name}", make, options)
        for case, (make, all_options) in MAKES[backend].items()
        for name, options in all_options.items()
    ]
    ordered = todo[::-1] if backwards else todo
    return {name: report(make, seed, options) for name, make, options in ordered}


if __name__ == "__main__":
    print(json.dumps(reports(sys.argv[1], 3, backwards=True)))
