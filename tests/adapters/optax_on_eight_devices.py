"""Spectral Newton on eight devices: replicas under `pmap`, matrices over a mesh; run by test_optax."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from spectral_adapters.optax import spectral_newton

SPECS = {"a": P("x", "y"), "b": P(None, "y"), "bias": P("x")}
OPTIMIZER = spectral_newton(0.1, {"a": 2.0, "b": 1.2, "bias": 1.0}, weight_decay=0.1)
TOLERANCE = 1e-13  # products are summed in another order


def tree(seed):
    """Two matrices of one shape, cut differently over a mesh, and a vector."""
    rng = np.random.default_rng(seed)
    shapes = {"a": (8, 4), "b": (8, 4), "bias": (4,)}
    return {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}


def close(found, expected):
    """Compare updates and states of one device and several."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    for one, other in pairs:
        assert np.max(np.abs(np.asarray(one) - np.asarray(other))) < TOLERANCE


def replicas(params, gradients, expected):
    """Data parallel: each device has a share of the gradient, `pmean` makes it whole."""
    shares = jax.tree.map(lambda g: jnp.stack([g * (i / 3.5) for i in range(8)]), gradients)
    copies = jax.tree.map(lambda p: jnp.stack([p] * 8), params)

    def step(params, gradients):
        whole = jax.lax.pmean(gradients, "batch")
        return OPTIMIZER.update(whole, OPTIMIZER.init(params), params)

    found = jax.pmap(step, "batch")(copies, shares)
    for device in (0, 7):
        close(jax.tree.map(lambda a: a[device], found), expected)  # noqa: B023


def sharded(params, gradients, expected, kind):
    """Cut matrices over a mesh of 4 × 2 devices."""
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))

    def put(arrays):
        return {n: jax.device_put(a, NamedSharding(mesh, SPECS[n])) for n, a in arrays.items()}

    params, gradients = put(params), put(gradients)
    state = OPTIMIZER.init(params)
    found = jax.jit(OPTIMIZER.update)(gradients, state, params)
    close(found, expected)
    if kind == AxisType.Explicit:
        assert all(found[0][name].sharding.spec == SPECS[name] for name in SPECS)


def main():
    """Compare one step, jitted, with that of one device."""
    assert jax.device_count() == 8
    params, gradients = tree(0), tree(1)
    expected = OPTIMIZER.update(gradients, OPTIMIZER.init(params), params)
    replicas(params, gradients, expected)
    for kind in (AxisType.Auto, AxisType.Explicit):
        sharded(params, gradients, expected, kind)
    print("pmap, automatic and explicit mesh: equal to one device")


if __name__ == "__main__":
    main()
