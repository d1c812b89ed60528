"""One of the ranks of a process group, which trains and measures; prints as JSON what it saw.

Run as a script with its rank, their number, and a file that they meet by.
"""

import hashlib
import json
import sys
import warnings
from contextlib import contextmanager

import torch
from torch import distributed, nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn import functional as F

import spectral_core as sc
from spectral_adapters.torch_optim import SpectralNewton
from spectral_backends.torch import CurvatureProblem


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 20), nn.ReLU(),
                         nn.Linear(20, 30))  # fmt: skip


def data(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(100, 12, generator=generator), torch.randint(30, (100,), generator=generator)


def problem(model, seed):
    return CurvatureProblem(model, F.cross_entropy, [data(seed)])


def digest(model):
    return hashlib.sha256(
        b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    ).hexdigest()


def trained(model, optimizer, seed, steps):
    x, y = data(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def auto(model, seed):
    return SpectralNewton(
        model, lr=0.01, alpha="auto", measure_every=2, measure_options={"top_k": 12},
        problem=lambda: problem(model, seed),
    )  # fmt: skip


def training(make, seed, steps=3):
    """Train with measured α, and return α, what the parameters are to the bit, and the reason."""
    model = make()
    optimizer = auto(model, seed)
    trained(model, optimizer, seed, steps)
    reason = optimizer.routing_table()[0]["reason"]
    return optimizer.param_groups[0]["alpha"], digest(model), reason


def measuring(model, seed):
    """Make a problem, wait for the others to make theirs, and measure."""
    own = problem(model, seed)
    distributed.barrier()
    return [s.alpha.exponent for s in sc.measure(own, "[02]", top_k=12, progress=False).values()]


def zero():
    def groups(model):
        first, second, third = (model[i].weight for i in (0, 2, 4))
        biases = [model[i].bias for i in (0, 2, 4)]
        return [
            {"params": [first, second], "alpha": 1.5},
            {"params": [*biases, third], "rule": "adamw"},
        ]

    one, all_of = network(), network()
    sharded = ZeroRedundancyOptimizer(groups(one), SpectralNewton, lr=0.01)
    trained(one, sharded, 0, 3)
    trained(all_of, SpectralNewton(groups(all_of), lr=0.01), 0, 3)
    return digest(one) == digest(all_of)


@contextmanager
def recorded(said):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    said += [str(warning.message) for warning in caught if warning.category is UserWarning]


def main(rank, size, path):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=size)

    def parallel():
        return nn.parallel.DistributedDataParallel(network())

    scenes = {
        "own batches": lambda: training(parallel, seed=rank),
        "the same batches": lambda: training(parallel, seed=7),
        "models of their own": lambda: training(lambda: network(rank), seed=rank),
        "longer than the others": lambda: training(lambda: network(5 + rank), 7, 3 + 4 * rank),
        "measuring own batches": lambda: measuring(network(2), seed=rank),
        "measuring the same batches": lambda: measuring(network(3), seed=7),
        "measuring a checkpoint each": lambda: measuring(network(4 + rank), seed=7),
        "measuring alone": lambda: None if rank else problem(network(9), 7).describe()["loss"],
        "zero": zero,
    }
    found = {}
    for name, scene in scenes.items():
        said = []
        with recorded(said):
            value = scene()
        found[name] = {"value": value, "said": said}
        distributed.barrier()
    distributed.destroy_process_group()
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
