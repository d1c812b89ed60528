"""Exact directional curvature of all layers of ResNet-20 in JAX: ours against what one would use.

The same batch of CIFAR-10, trained float32 weights (from the folder ``SPECTRAL_DATA``) and top-k
singular directions of each layer's gradient, for

- ours: `CurvatureProblem.layer_curvatures` with ``engine="auto"``, all layers and directions
- ours, double-backward: the same with that engine, one layer at a time
- jvp of grad: ``jax.jvp`` of ``jax.grad``, once for each direction
- kfac-jax: ``ImplicitExactCurvature.multiply_hessian``, once for each direction
- matfree: one Lanczos step of ``decomp.tridiag_sym`` on ``jvp`` of ``grad``, for each direction

each peer in one layer's weight, compiled for each layer, or in all parameters, compiled once. They
are timed on evenly chosen layers, with evenly chosen directions (our own engine, which shares work
between them, with all), and their times per direction, averaged over these layers, extrapolated to
all. A peer that is not installed, or fails, is named.

Compiling is told apart: ratios of times are between medians of calls that compile nothing, ratios
of first runs between what compiles and runs once (above 1: the peer is slower). Times are the
process's own on one thread, which other programs do not lengthen.

For one layer of a perceptron, the same for the ways to take a second derivative under ``vmap``:
forward over reverse and ``jet`` against forward over forward.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
os.environ.setdefault("NPROC", "1")  # of the thread pools of XLA

import importlib
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from harness import arguments, by_clock, evenly, interleaved, peer_library, print_figure, ratio
from jax.experimental import jet

from spectral_backends.jax import CurvatureProblem
from spectral_core.curvature.certificate import Engine, LayerCurvature

kfac_jax, matfree = peer_library("kfac_jax"), peer_library("matfree.decomp")

TESTS = Path(__file__).parents[1]
sys.path.append(str(TESTS / "networks"))  # the network
sys.path.append(str(TESTS.parent / "docs" / "examples"))  # the shared data

Tree = Any
Batch = tuple[jax.Array, jax.Array]
Outputs = Callable[[Tree, Tree, jax.Array], jax.Array]
"""Of what is differentiated, all parameters and the images."""
Form = Callable[[Tree, Tree, Batch, Tree], jax.Array]
"""``<D, H[D]>`` of what is differentiated, all parameters, the batch and D."""

CPU_SECONDS = by_clock(time.process_time)


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    images: int = 256
    top_k: int = 20
    layers_for_each_timed: int = 4
    directions_timed: int = 3
    repeats: int = 3
    perceptron: int = 256
    perceptron_repeats: int = 20


QUICK = Size(images=32, directions_timed=2, repeats=2, perceptron=64, perceptron_repeats=5)


# The network


def loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the mean cross-entropy."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).mean()


def inner(a: Tree, b: Tree) -> jax.Array:
    """Return the inner product of two trees."""
    return sum(map(jnp.vdot, jax.tree.leaves(a), jax.tree.leaves(b)))


def with_leaf(tree: Tree, path: Sequence[str], leaf: jax.Array) -> Tree:
    """Return a tree of dicts with another leaf."""
    head, *rest = path
    return tree | {head: with_leaf(tree[head], rest, leaf) if rest else leaf}


def split_statistics(tree: Tree) -> tuple[Tree, Tree]:
    """Return a tree of parameters and one of batch norm's statistics, with None for the others."""

    def kept(wanted: bool) -> Tree:
        def keep(path: Any, leaf: np.ndarray) -> jax.Array | None:
            return jnp.asarray(leaf) if ("running" in path[-1].key) is wanted else None

        return jax.tree.map_with_path(keep, tree)

    return kept(False), kept(True)


class Case:
    """ResNet-20 on one batch, with the top singular directions of each layer's gradient."""

    name = "ResNet-20, CIFAR-10"

    def __init__(self, images: int, top_k: int) -> None:
        from parity_jax import pytree, resnet20
        from safetensors.numpy import load_file
        from shared_data import DATA, cifar10_test

        state = load_file(DATA / "resnet20_cifar10.safetensors")
        self.params, statistics = split_statistics(
            pytree({name: value for name, value in state.items() if "num_batches" not in name})
        )
        self.batch: Batch = tuple(map(jnp.asarray, cifar10_test(images)))
        self.top_k = top_k

        def forward(params: Tree, x: jax.Array) -> jax.Array:
            def chosen(a: Any, b: Any) -> Any:
                return b if a is None else a

            return resnet20(
                jax.tree.map(chosen, params, statistics, is_leaf=lambda a: a is None), x
            )

        self.forward = forward
        self._run_forward = jax.jit(forward)
        self.seconds_to_make = CPU_SECONDS(self._make_problem)
        self.directions: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.layers = [layer.name for layer in self.problem.layers()]
        for name, gradient in self.problem.gradients(self.layers).items():
            u, _, vt = np.linalg.svd(np.asarray(gradient), full_matrices=False)
            self.directions[name] = u[:, :top_k], vt[:top_k].T

    def _make_problem(self) -> None:
        self.problem = CurvatureProblem((self.forward, loss), self.params, [self.batch])

    @property
    def n_directions(self) -> int:
        """Return the number of directions of all layers."""
        return sum(u.shape[1] for u, _ in self.directions.values())

    def path(self, layer: str) -> list[str]:
        """Return where a layer's kernel is."""
        return [*layer.split("."), "kernel"]

    def kernel(self, layer: str) -> jax.Array:
        """Return a layer's kernel."""
        found = self.params
        for part in self.path(layer):
            found = found[part]
        return found

    def run_forward(self) -> jax.Array:
        """Return the outputs."""
        return jax.block_until_ready(self._run_forward(self.params, self.batch[0]))

    def ours(self) -> dict[str, LayerCurvature]:
        """Return the curvatures of all layers by the engines that the library chooses."""
        return self.by_engine(self.directions, "auto")

    def by_engine(
        self, directions: Mapping[str, tuple[np.ndarray, np.ndarray]], engine: Engine
    ) -> dict[str, LayerCurvature]:
        """Return the curvatures of some layers."""
        found = {}
        for finding in self.problem.layer_curvatures(directions, engine=engine):
            if not isinstance(finding, LayerCurvature):
                raise finding
            found[finding.name] = finding
        jax.block_until_ready([finding.values for finding in found.values()])
        return found


@dataclass(frozen=True)
class Task:
    """Some directions of one layer: columns of u ``(m, K)`` and v ``(n, K)``."""

    case: Case
    layer: str
    chosen: Sequence[int]

    @property
    def factors(self) -> tuple[np.ndarray, np.ndarray]:
        """Return u and v."""
        u, v = self.case.directions[self.layer]
        return u[:, self.chosen], v[:, self.chosen]

    @property
    def kernels(self) -> list[jax.Array]:
        """Return the directions in the layout of the kernel."""
        shape = self.case.kernel(self.layer).shape
        pairs = zip(*(factor.T for factor in self.factors), strict=True)
        return [jnp.asarray(as_kernel(u, v, shape)) for u, v in pairs]


def as_kernel(u: np.ndarray, v: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Write ``u vᵀ`` into the layout of a kernel."""
    if len(shape) == 2:
        return np.outer(v, u)
    height, width, channels, out = shape
    return np.outer(u, v).reshape(out, channels, height, width).transpose(2, 3, 1, 0)


# Peers


def hessian_product(outputs: Outputs) -> Callable[[Tree, Tree, Tree, Batch], Tree]:
    """Return ``H[D]`` of D, what is differentiated, all parameters and the batch."""

    def total(at: Tree, params: Tree, batch: Batch) -> jax.Array:
        x, y = batch
        return loss(outputs(at, params, x), y)

    def product(along: Tree, at: Tree, params: Tree, batch: Batch) -> Tree:
        return jax.jvp(lambda at: jax.grad(total)(at, params, batch), (at,), (along,))[1]

    return product


def by_jvp_of_grad(outputs: Outputs) -> Form:
    """Differentiate the gradient forward."""
    product = hessian_product(outputs)
    return lambda at, params, batch, along: inner(product(along, at, params, batch), along)


def by_kfac_jax(outputs: Outputs) -> Form:
    """Use its product with the Hessian of a registered loss."""

    def registered(at: Tree, params: Tree, batch: Batch) -> jax.Array:
        x, y = batch
        logits = outputs(at, params, x)
        kfac_jax.register_softmax_cross_entropy_loss(logits, y)
        return loss(logits, y)

    curvature = kfac_jax.ImplicitExactCurvature(registered)

    def form(at: Tree, params: Tree, batch: Batch, along: Tree) -> jax.Array:
        return inner(curvature.multiply_hessian((at, params, batch), along), along)

    return form


def by_matfree(outputs: Outputs) -> Form:
    """Make one Lanczos step from D, of unit length: its matrix is the number ``<D, H[D]>``.

    With nothing to be made orthogonal, as one step needs it: else the product is inside a loop,
    where XLA's gradients of convolutions are slow on a CPU.
    """
    lanczos, product = matfree.tridiag_sym(1, reortho="none"), hessian_product(outputs)

    def form(at: Tree, params: Tree, batch: Batch, along: Tree) -> jax.Array:
        return lanczos(product, along, at, params, batch).J_small[0, 0]

    return form


Run = Callable[[], np.ndarray]
Peer = Callable[[Sequence[Task]], list[Run]]


def in_all_parameters(method: Callable[[Outputs], Form]) -> Peer:
    """Return a peer that is compiled once, for trees that are zero but for one kernel."""

    def runs(tasks: Sequence[Task]) -> list[Run]:
        case = tasks[0].case
        form = jax.jit(method(lambda at, params, x: case.forward(at, x)))
        zeros = jax.tree.map(jnp.zeros_like, case.params)
        found = []
        for task in tasks:
            trees = [with_leaf(zeros, case.path(task.layer), kernel) for kernel in task.kernels]
            found.append(one_by_one(form, case.params, case, trees))
        return found

    return runs


def in_one_weight(method: Callable[[Outputs], Form]) -> Peer:
    """Return a peer that is compiled for each layer."""

    def run(task: Task) -> Run:
        case, path = task.case, task.case.path(task.layer)
        form = jax.jit(method(lambda at, params, x: case.forward(with_leaf(params, path, at), x)))
        return one_by_one(form, case.kernel(task.layer), case, task.kernels)

    return lambda tasks: [run(task) for task in tasks]


def one_by_one(form: Form, at: Tree, case: Case, directions: Sequence[Tree]) -> Run:
    """Return what evaluates a form along each direction."""
    return lambda: np.asarray([form(at, case.params, case.batch, along) for along in directions])


def own_double_backward(tasks: Sequence[Task]) -> list[Run]:
    """Return our engine that differentiates the loss twice along each direction."""

    def run(task: Task) -> np.ndarray:
        found = task.case.by_engine({task.layer: task.factors}, "double-backward")
        return np.asarray(found[task.layer].values)

    return [lambda task=task: run(task) for task in tasks]


PEERS: dict[str, Peer] = {
    "jvp of grad, all parameters": in_all_parameters(by_jvp_of_grad),
    "jvp of grad, one layer": in_one_weight(by_jvp_of_grad),
    "ours, double-backward": own_double_backward,
}
if kfac_jax:
    PEERS["kfac-jax, all parameters"] = in_all_parameters(by_kfac_jax)
    PEERS["kfac-jax, one layer"] = in_one_weight(by_kfac_jax)
if matfree:
    PEERS["matfree, one layer"] = in_one_weight(by_matfree)

SHARING = ["ours, double-backward"]
"""What does something once for all directions of a layer, so that all must be timed."""

COMPILED_ONCE = [name for name in PEERS if "all parameters" in name]


# Figures


@dataclass(frozen=True)
class Timed:
    """A task of a peer, what runs it, and the seconds of its first call."""

    task: Task
    run: Run
    first: float


def tasks_of(case: Case, peer: str, size: Size) -> list[Task]:
    """Return what a peer is timed on."""
    tasks = []
    for layer in evenly(case.layers, -(-len(case.layers) // size.layers_for_each_timed)):
        everything = range(case.directions[layer][0].shape[1])
        chosen = everything if peer in SHARING else evenly(everything, size.directions_timed)
        tasks.append(Task(case, layer, list(chosen)))
    return tasks


def started(case: Case, size: Size) -> dict[str, list[Timed]]:
    """Call every peer once; print which fail."""
    able = {}
    for name, peer in PEERS.items():
        tasks = tasks_of(case, name, size)
        try:
            able[name] = [
                Timed(task, run, CPU_SECONDS(run))
                for task, run in zip(tasks, peer(tasks), strict=True)
            ]
        except Exception as error:  # a peer may be older than this JAX
            reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
            print_figure("a peer on all layers", model=case.name, peer=name, fails=reason)
    return able


def compare(case: Case, size: Size) -> None:
    """Compare all peers."""
    first = CPU_SECONDS(case.ours)
    peers = started(case, size)
    runs = {label(peer, timed): timed.run for peer, each in peers.items() for timed in each}
    contenders = {"forward": case.run_forward, "ours": case.ours, **runs}
    times = interleaved(contenders, size.repeats, timer=CPU_SECONDS)
    found = case.ours()
    print_ours(case, found, times, first)
    for peer, each in peers.items():
        print_peer(case, peer, each, found, times, first)


def label(peer: str, timed: Timed) -> str:
    """Name one run."""
    return f"{peer}: {timed.task.layer}"


def print_peer(
    case: Case,
    peer: str,
    each: Sequence[Timed],
    found: Mapping[str, LayerCurvature],
    times: Mapping[str, list[float]],
    first: float,
) -> None:
    """Print what a peer takes, extrapolated from its tasks, beside ours with its first call."""
    counts = [len(timed.task.chosen) for timed in each]
    again = [statistics.median(times[label(peer, timed)]) for timed in each]
    seconds = statistics.mean(t / n for t, n in zip(again, counts, strict=True))
    compiling = [timed.first - t for timed, t in zip(each, again, strict=True)]
    compiled = (
        compiling[0] if peer in COMPILED_ONCE else statistics.mean(compiling) * len(case.layers)
    )
    whole = seconds * case.n_directions
    print_figure(
        "a peer on all layers",
        model=case.name,
        peer=peer,
        layers_timed=len(each),
        directions_timed=sum(counts),
        extrapolated_to_directions=case.n_directions,
        forward_passes_per_direction=round(seconds / statistics.median(times["forward"]), 2),
        seconds_extrapolated=round(whole, 1),
        peer_time_over_ours=round(whole / statistics.median(times["ours"]), 1),
        compile_seconds_extrapolated=round(compiled, 1),
        first_run_over_ours=round((whole + compiled) / first, 1),
        largest_relative_difference=max(off(timed, found) for timed in each),
    )


def print_ours(
    case: Case,
    found: Mapping[str, LayerCurvature],
    times: Mapping[str, list[float]],
    first: float,
) -> None:
    """Print what ours takes."""
    engines = [curvature.certificate.engine for curvature in found.values()]
    print_figure(
        "ours on all layers",
        model=case.name,
        jax=jax.__version__,
        batch=len(case.batch[1]),
        top_k=case.top_k,
        layers=len(case.layers),
        directions=case.n_directions,
        engines={engine: engines.count(engine) for engine in engines},
        forward_seconds=round(statistics.median(times["forward"]), 4),
        forward_passes_per_direction=round(ratio(times, "ours", "forward") / case.n_directions, 3),
        counted_in_multiply_adds=round(found[case.layers[0]].certificate.cost, 3),
        seconds=round(statistics.median(times["ours"]), 2),
        first_call_seconds=round(first, 1),
        seconds_to_make_the_problem=round(case.seconds_to_make, 1),
    )


def off(timed: Timed, found: Mapping[str, LayerCurvature]) -> float:
    """Return the largest difference from ours over the layer's largest value."""
    ours = np.asarray(found[timed.task.layer].values)
    return float(np.abs(timed.run() - ours[timed.task.chosen]).max() / np.abs(ours).max())


def on_stored_network(size: Size) -> None:
    """Print the figures that need the stored network, or why there are none."""
    try:
        importlib.import_module("safetensors.numpy")
        data = importlib.import_module("shared_data").DATA
    except ImportError as error:
        print_figure("stored network", skipped=str(error))
        return
    if not data.is_dir():
        print_figure("stored network", skipped=f"there is no folder {data}; set SPECTRAL_DATA")
        return
    for name, library in {"kfac-jax": kfac_jax, "matfree": matfree}.items():
        if library is None:
            print_figure("a peer on all layers", peer=name, skipped="not installed")
    compare(Case(size.images, size.top_k), size)


def ways(width: int, count: int, top_k: int, repeats: int) -> None:
    """Time the ways to take one layer's second derivatives."""
    rng = np.random.default_rng(2)
    sizes = [(32, width), (width, width), (width, 10)]
    weights = [jnp.asarray(rng.normal(size=s) / s[0] ** 0.5, jnp.float32) for s in sizes]
    x = jnp.asarray(rng.normal(size=(count, 32)), jnp.float32)
    y = jnp.asarray(rng.integers(0, 10, count))
    d = jnp.asarray(rng.normal(size=(top_k, *sizes[0])), jnp.float32)

    def total(w: jax.Array) -> jax.Array:
        return loss(jnp.tanh(jnp.tanh(x @ w) @ weights[1]) @ weights[2], y)

    def slope(d: jax.Array) -> Callable[[jax.Array], jax.Array]:
        return lambda w: jax.jvp(total, (w,), (d,))[1]

    forms = {
        "forward over forward": lambda d: jax.jvp(slope(d), (weights[0],), (d,))[1],
        "forward over reverse": lambda d: jnp.vdot(
            jax.jvp(jax.grad(total), (weights[0],), (d,))[1], d
        ),
        "jet": lambda d: jet.jet(total, (weights[0],), ((d, jnp.zeros_like(d)),))[1][1],
    }
    compiled = {name: jax.jit(jax.vmap(form)) for name, form in forms.items()}
    times = interleaved(
        {name: lambda f=f: jax.block_until_ready(f(d)) for name, f in compiled.items()},
        repeats,
        timer=CPU_SECONDS,
    )
    print_figure(
        "second derivative of a perceptron, over forward over forward",
        **{
            name.replace(" ", "_"): round(ratio(times, name, "forward over forward"), 2)
            for name in ("forward over reverse", "jet")
        },
    )


def main() -> None:
    """Print all figures."""
    size = QUICK if arguments(__doc__).quick else Size()
    on_stored_network(size)
    ways(size.perceptron, size.perceptron, size.top_k, size.perceptron_repeats)


if __name__ == "__main__":
    main()
