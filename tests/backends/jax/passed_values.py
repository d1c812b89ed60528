"""Passes over sharded batches on two devices, alone and in threads: what they leave of the values.

A program of its own, as JAX reads the number of host devices when it starts: prints one JSON object
of findings by case.
"""

import os

os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
)
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax_networks import Numbers, cross_entropy

import spectral_core as sc
from spectral_backends.jax import CurvatureProblem
from spectral_backends.jax.objective.objective import Objective
from spectral_backends.jax.objective.parameters import Parameters
from spectral_core.errors import InputError

NEW = Numbers(0)
PARAMS = [NEW(6, 5), NEW(5, 3)]
BATCHES = [(NEW(8, 6), NEW.labels(3, 8)) for _ in range(3)]


def forward(p: Any, x: Any) -> Any:
    return jnp.tanh(x @ p[0]) @ p[1]


LOSS = (forward, cross_entropy)


def by_samples(batch: Any) -> Any:
    mesh = Mesh(np.array(jax.devices()), ("data",))
    return jax.tree.map(lambda leaf: jax.device_put(leaf, NamedSharding(mesh, P("data"))), batch)


class Watched:
    """Parameters, and whether they still hold the very arrays that they were made with."""

    def __init__(self) -> None:
        self.parameters = Parameters(PARAMS)
        self._values, self._arrays = self.parameters.values, list(self.parameters.values)

    def same(self) -> bool:
        values = self.parameters.values
        arrays = all(a is b for a, b in zip(values, self._arrays, strict=True))
        return values is self._values and arrays

    def objective(self, batches: Any) -> Objective:
        return Objective(LOSS, self.parameters, batches, None, None, 0)


def during_and_after_a_pass() -> bool:
    watched = Watched()
    objective = watched.objective(list(map(by_samples, BATCHES)))
    during = [watched.same() for _ in objective.one_pass()]
    return len(during) == 3 and all(during) and watched.same()


def after_a_pass_that_raises() -> bool:
    watched = Watched()
    bad = (BATCHES[1][0] * jnp.nan, BATCHES[1][1])
    objective = watched.objective([by_samples(BATCHES[0]), by_samples(bad)])
    try:
        list(objective.one_pass())
    except InputError:
        return watched.same()
    return False


def where_the_first_batch_lies_elsewhere() -> bool:
    """Batches that are sharded later than the first one draw it along, in every later pass."""
    mixed = [BATCHES[0], *map(by_samples, BATCHES[1:])]
    report = measured(CurvatureProblem(LOSS, PARAMS, mixed))
    alone = measured(CurvatureProblem(LOSS, PARAMS, BATCHES))
    pairs = zip(report.values(), alone.values(), strict=True)
    return all(np.allclose(a.curvature, b.curvature, rtol=1e-9) for a, b in pairs)


def in_two_threads() -> bool:
    """Each thread reads the report of one alone, what it cost included."""
    problem = CurvatureProblem(LOSS, PARAMS, list(map(by_samples, BATCHES)))
    given = list(problem._objective.parameters.values)
    alone = measured(CurvatureProblem(LOSS, PARAMS, list(map(by_samples, BATCHES))))
    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(measured, [problem, problem]))
    left = problem._objective.parameters.values
    same = all(a is b is c for a, b, c in zip(left, given, PARAMS, strict=True))
    return same and all(shown(report) == shown(alone) for report in reports)


def measured(problem: CurvatureProblem) -> sc.SpectralReport:
    return sc.measure(problem, top_k=3, progress=False)


def shown(report: sc.SpectralReport) -> str:
    return json.dumps([spectrum.to_dict() for spectrum in report.values()])


CASES = (
    during_and_after_a_pass, after_a_pass_that_raises, where_the_first_batch_lies_elsewhere,
    in_two_threads,
)  # fmt: skip

if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    PARAMS = [jnp.asarray(value, "float64") for value in PARAMS]
    print(json.dumps({case.__name__: case() for case in CASES}))
