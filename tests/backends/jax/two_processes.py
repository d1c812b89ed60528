"""One of the processes of `jax.distributed`, which measures; prints as JSON what it was told.

Run as a script with its number, how many there are, and the port of the first on this machine.
"""

import json
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import spectral_core as sc
from spectral_backends.jax import CurvatureProblem


def forward(params, x):
    return jax.nn.gelu(x @ params["a"]) @ params["b"]


def mean_loss(outputs, targets):
    return -jnp.take_along_axis(jax.nn.log_softmax(outputs), targets[:, None], 1).mean()


def parameters(seed):
    rng = np.random.default_rng(seed)
    shapes = {"a": (8, 16), "b": (16, 10)}
    return {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def data(seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(60, 8)).astype(np.float32), rng.integers(0, 10, 60).astype(np.int32)


def problem(model, seed):
    return CurvatureProblem((forward, mean_loss), parameters(model), [data(seed)])


def everywhere(array):
    """Return an array that lies on the devices of all processes."""
    mesh = Mesh(np.array(jax.devices()), ("all",))
    sharding = NamedSharding(mesh, PartitionSpec("all"))
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def refused(params, batch):
    try:
        CurvatureProblem((forward, mean_loss), params, [batch])
    except sc.InputError as error:
        return str(error)


def main(number, size, port):
    address = f"127.0.0.1:{port}"
    jax.distributed.initialize(address, size, number, coordinator_bind_address=address)
    client = jax._src.distributed.global_state.client
    spread = jax.tree.map(everywhere, (parameters(0), data(0)))
    scenes = {
        "own batches": lambda: problem(1, seed=number),
        "the same batches": lambda: problem(2, seed=7),
        "a checkpoint each": lambda: problem(3 + number, seed=7),
        "alone": lambda: None if number else problem(9, seed=7),
        "params of all": lambda: refused(spread[0], data(0)),
        "batches of all": lambda: refused(parameters(0), spread[1]),
    }
    found = {}
    for name, scene in scenes.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            value = scene()
            client.wait_at_barrier(name, 60_000)
            if isinstance(value, CurvatureProblem):
                sc.measure(value, progress=False)
        said = [str(w.message) for w in caught if w.category is UserWarning]
        found[name] = value if isinstance(value, str) else said
    jax.distributed.shutdown()
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
