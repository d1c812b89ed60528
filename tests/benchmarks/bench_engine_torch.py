"""Exact directional curvature of all layers of a network: ours against what one would use today.

The same batch, float32 weights and top-k singular directions of each layer's gradient, for

- ours: `CurvatureProblem.layer_curvatures` with ``engine="auto"``, all layers and directions
- ours, double-backward: the same with that engine
- curvlinops: `HessianLinearOperator` of one weight, applied to each direction
- PyHessian: `hessian` with one weight unfrozen, `hessian_vector_product` for each direction
- hessian-eigenthings: `HessianOperator` with a filter for one weight, where it is installed
- double-backward loop: forward pass, gradient and its derivative anew for each direction
- retained graph: forward pass and gradient once a layer, one more derivative for each direction

on ResNet-20 and a Llama with trained weights (from the folder ``SPECTRAL_DATA``) and a GELU and
LayerNorm transformer with random ones. Peers are timed on evenly chosen layers; those that share
nothing between directions, on evenly chosen directions. Then: growth with the batch and with k, and
three routes to an exact Hessian on the transformer.

Ratios are of median times per direction (above 1: the peer is slower), a peer's averaged over its
layers. Memory is the peak of all tensors made in one run of its own.
"""

import statistics
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from harness import Timer, arguments, evenly, interleaved, peer_library, print_figure, ratio
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from spectral_backends.torch import CurvatureProblem
from spectral_backends.torch.instruments.allocation import AllocationPeak
from spectral_core.curvature.certificate import Engine, LayerCurvature

curvlinops, pyhessian = peer_library("curvlinops"), peer_library("pyhessian")
hessian_eigenthings = peer_library("hessian_eigenthings")  # not on PyPI

sys.path.append(str(Path(__file__).parents[2] / "docs" / "examples"))  # they read the shared data


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    images: int = 256
    top_k: int = 20
    blocks: int = 4
    width: int = 128
    samples: int = 32
    sequences: int = 8
    tokens: int = 128
    layers_for_each_timed: int = 4
    directions_timed: int = 3
    repeats: int = 3


QUICK = Size(
    images=32, top_k=6, blocks=2, width=32, samples=8, sequences=2, tokens=32,
    layers_for_each_timed=8, directions_timed=2, repeats=2,
)  # fmt: skip


# Networks


class Stored(nn.Module):
    """Trained weights with their forward pass, a function of the dict of them."""

    def __init__(self, network: Callable[..., Tensor], weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._network = network
        for name, tensor in weights.items():
            *path, last = name.split(".")
            owner: nn.Module = self
            for part in path:
                if not hasattr(owner, part):
                    owner.add_module(part, nn.Module())
                owner = getattr(owner, part)
            if last.startswith("running"):
                owner.register_buffer(last, tensor)
            elif tensor.is_floating_point():
                owner.register_parameter(last, nn.Parameter(tensor))

    def forward(self, x: Tensor) -> Tensor:
        return self._network(self.state_dict(keep_vars=True), x)


class Block(nn.Module):
    """A causal transformer block, norms first."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm1(x)
        q, k, v = (
            layer(z).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(attended.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Blocks, and a classifier on the mean of the tokens."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(x)).mean(1))


# Cases: a network, one batch and the directions


class Case:
    """A network on one batch, with the top singular directions of each layer's gradient."""

    loss_fn = nn.CrossEntropyLoss()

    def __init__(self, name: str, model: nn.Module, x: Tensor, y: Tensor, top_k: int) -> None:
        self.name, self.model, self.x, self.y, self.top_k = name, model, x, y, top_k
        self.problem = CurvatureProblem(model, self.loss_fn, [(x, y)])
        self.layers = [layer.name for layer in self.problem.layers()]
        self.directions: dict[str, tuple[Tensor, Tensor]] = {}
        for layer, gradient in self.problem.gradients(self.layers).items():
            u, _, vh = torch.linalg.svd(gradient, full_matrices=False)
            self.directions[layer] = u[:, :top_k], vh.mT[:, :top_k]

    @property
    def n_directions(self) -> int:
        """Return the number of directions of all layers."""
        return sum(u.shape[1] for u, _ in self.directions.values())

    def forward(self) -> Tensor:
        """Return the outputs, without a graph."""
        with torch.no_grad():
            return self.model(self.x)

    def loss(self) -> Tensor:
        """Return the loss, with the graph of the weights that are not frozen."""
        return self.loss_fn(self.model(self.x), self.y)

    def ours(self) -> dict[str, LayerCurvature]:
        """Return the curvatures of all layers by the engines that the library chooses."""
        return self.by_engine(self.directions, "auto")

    def by_engine(
        self, directions: Mapping[str, tuple[Tensor, Tensor]], engine: Engine
    ) -> dict[str, LayerCurvature]:
        """Return the curvatures of some layers."""
        found = {}
        for finding in self.problem.layer_curvatures(directions, engine=engine):
            if not isinstance(finding, LayerCurvature):
                raise finding
            found[finding.name] = finding
        return found


def resnet20(images: int, top_k: int) -> Case:
    """Return ResNet-20 on test images."""
    from resnet20_cifar10 import cifar10_test
    from safetensors.torch import load_file
    from shared_data import DATA, reference_networks

    network = reference_networks().resnet_cifar
    model = Stored(lambda w, x: network(w)(x), load_file(DATA / "resnet20_cifar10.safetensors"))
    return Case("ResNet-20, CIFAR-10", model, *cifar10_test(images, images)[0], top_k)


def llama(size: Size) -> Case:
    """Return the 260k-parameter Llama on tokens that it sampled."""
    from safetensors.torch import load_file
    from shared_data import DATA, reference_networks
    from stories260k_llama import sequences

    network = reference_networks().llama_260k
    model = Stored(lambda w, x: network(w)(x).mT, load_file(DATA / "stories260k_llama.safetensors"))
    ((x, y),) = sequences(size.sequences, size.sequences)
    return Case("Llama, 260k", model, x[:, : size.tokens], y[:, : size.tokens], size.top_k)


def transformer(size: Size) -> Case:
    """Return the GELU and LayerNorm transformer on noise."""
    x, y = torch.randn(size.samples, 64, size.width), torch.randint(10, (size.samples,))
    model = Transformer(size.width, size.blocks)
    return Case("transformer, GELU and LayerNorm", model, x, y, size.top_k)


# Peers


@dataclass(frozen=True)
class Task:
    """Some directions of one layer: columns of u ``(m, K)`` and v ``(n, K)``."""

    case: Case
    layer: str
    chosen: Sequence[int]

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """Return u and v."""
        u, v = self.case.directions[self.layer]
        return u[:, self.chosen], v[:, self.chosen]

    @property
    def weight(self) -> nn.Parameter:
        """Return the layer's parameter."""
        return self.case.model.get_parameter(f"{self.layer}.weight")

    @property
    def directions(self) -> Tensor:
        """Return the directions in the shape of the weight, ``(K, *shape)``."""
        return torch.einsum("mk,nk->kmn", *self.factors).reshape(-1, *self.weight.shape)

    def loss_of(self, weight: Tensor) -> Tensor:
        """Return the loss as a function of the layer's weight."""
        case = self.case
        outputs = torch.func.functional_call(case.model, {f"{self.layer}.weight": weight}, case.x)
        return case.loss_fn(outputs, case.y)

    def along(self, multiply: Callable[[Tensor], Tensor]) -> Tensor:
        """Return ``<D, H[D]>`` for each direction, one after the other."""
        return torch.stack([(multiply(d).view_as(d) * d).sum() for d in self.directions])


Peer = Callable[[Task], Tensor]


def by_own_double_backward(task: Task) -> Tensor:
    """Use our engine that differentiates a kept graph, some directions together."""
    found = task.case.by_engine({task.layer: task.factors}, "double-backward")
    return found[task.layer].values


def by_curvlinops(task: Task) -> Tensor:
    """Multiply by the operator of one weight."""
    case = task.case
    operator = curvlinops.HessianLinearOperator(
        case.model, case.loss_fn, [task.weight], [(case.x, case.y)],
        check_deterministic=False, num_data=len(case.x),
    )  # fmt: skip
    return task.along(lambda d: operator @ d.flatten())


def by_pyhessian(task: Task) -> Tensor:
    """Use its class, which takes all weights that are not frozen."""
    case = task.case
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using backward")
        on_cuda = case.x.device.type == "cuda"
        peer = pyhessian.hessian(case.model, case.loss_fn, data=(case.x, case.y), cuda=on_cuda)
    case.model.zero_grad()  # else the gradient and its graph hold each other
    return task.along(lambda d: pyhessian.hessian_vector_product(peer.gradsH, peer.params, [d])[0])


def by_eigenthings(task: Task) -> Tensor:
    """Multiply by the operator that is restricted to one weight."""
    case = task.case
    operator = hessian_eigenthings.HessianOperator(
        case.model,
        [(case.x, case.y)],
        hessian_eigenthings.supervised_loss(case.loss_fn),
        param_filter=lambda name, parameter: parameter is task.weight,
    )
    return task.along(lambda d: operator @ d.flatten())


def by_double_backward_loop(task: Task) -> Tensor:
    """Differentiate twice, from the start, for each direction."""

    def multiply(direction: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(task.case.loss(), task.weight, create_graph=True)
        return torch.autograd.grad(gradient, task.weight, direction)[0]

    return task.along(multiply)


def by_retained_graph(task: Task) -> Tensor:
    """Keep the graph of the gradient, and differentiate it for each direction."""
    (gradient,) = torch.autograd.grad(task.case.loss(), task.weight, create_graph=True)
    return task.along(lambda d: torch.autograd.grad(gradient, task.weight, d, retain_graph=True)[0])


def by_tangents(task: Task) -> Tensor:
    """Use our engine that sends directions forward."""
    return task.case.by_engine({task.layer: task.factors}, "tangents")[task.layer].values


@torch.no_grad()
def by_forward_over_reverse(task: Task, together: int) -> Tensor:
    """Differentiate the gradient forward, along some directions together."""
    gradient = torch.func.grad(task.loss_of)

    def curvature(direction: Tensor) -> Tensor:
        return (torch.func.jvp(gradient, (task.weight,), (direction,))[1] * direction).sum()

    return torch.func.vmap(curvature, chunk_size=together)(task.directions)


@torch.no_grad()
def by_nested_forward(task: Task, together: int) -> Tensor:
    """Differentiate the loss forward twice, along some directions together.

    In torch 2.13 that is wrong by some per cent behind layer norms, at any precision.
    """

    def curvature(direction: Tensor) -> Tensor:
        def slope(at: Tensor) -> Tensor:
            return torch.func.jvp(task.loss_of, (at,), (direction,))[1]

        return torch.func.jvp(slope, (task.weight,), (direction,))[1]

    return torch.func.vmap(curvature, chunk_size=together)(task.directions)


SHARING: dict[str, Peer] = {
    "ours, double-backward": by_own_double_backward,
    **({"PyHessian": by_pyhessian} if pyhessian else {}),
    "retained graph": by_retained_graph,
}
"""What does something once for all directions of a layer, so that all must be timed."""

REPEATING: dict[str, Peer] = {
    **({"curvlinops": by_curvlinops} if curvlinops else {}),
    "double-backward loop": by_double_backward_loop,
    **({"hessian-eigenthings": by_eigenthings} if hessian_eigenthings else {}),
}
"""What does the same anew for each direction."""

ROUTES: dict[str, Peer] = {"tangents": by_tangents} | {
    f"{name}, {together} together": partial(route, together=together)
    for name, route in {
        "forward over reverse": by_forward_over_reverse,
        "nested forward": by_nested_forward,
    }.items()
    for together in (1, 4, 20)
}
"""Ways to an exact Hessian."""


@contextmanager
def as_peers_need(task: Task) -> Iterator[None]:
    """Freeze all but the one weight, and take the attention that has second derivatives."""
    trained = [p for p in task.case.model.parameters() if p is not task.weight]
    with sdpa_kernel(SDPBackend.MATH):
        for parameter in trained:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)


def runner(peer: Peer, task: Task) -> Callable[[], Tensor]:
    """Return what runs a peer."""

    def run() -> Tensor:
        with as_peers_need(task):
            return peer(task).detach()

    return run


# Figures


def usable(peers: Mapping[str, Peer], task: Task, figure: str) -> dict[str, Peer]:
    """Return those that can do a task; print why the others cannot."""
    able: dict[str, Peer] = {}
    for name, peer in peers.items():
        try:
            runner(peer, task)()
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            print_figure(figure, model=task.case.name, peer=name, fails=reason)
        else:
            able[name] = peer
    return able


def compare(
    case: Case,
    size: Size,
    timer: Timer | None = None,
    more: Mapping[str, Peer] | None = None,
) -> None:
    """Compare all peers on one network, and more that share nothing between directions."""
    layers = evenly(case.layers, -(-len(case.layers) // size.layers_for_each_timed))
    repeating = REPEATING | dict(more or {})
    peers = usable(SHARING | repeating, task_of(case, layers[0], 1), "a peer on all layers")
    tasks = {
        peer: [
            task_of(case, layer, size.directions_timed if peer in repeating else None)
            for layer in layers
        ]
        for peer in peers
    }
    runs = {
        label(peer, task): runner(function, task)
        for peer, function in peers.items()
        for task in tasks[peer]
    }
    contenders = {"forward": case.forward, "ours": case.ours, **runs}
    times = interleaved(contenders, size.repeats, timer=timer)
    with AllocationPeak() as peak:
        found = case.ours()
    print_ours(case, found, times, peak)
    ours = statistics.median(times["ours"]) / case.n_directions
    for peer, timed in tasks.items():
        seconds = [statistics.median(times[label(peer, task)]) / len(task.chosen) for task in timed]
        checks = [check(runs[label(peer, task)], task, found[task.layer].values) for task in timed]
        print_figure(
            "a peer on all layers",
            model=case.name,
            peer=peer,
            layers_timed=len(layers),
            directions_timed=sum(len(task.chosen) for task in timed),
            peer_time_over_ours=round(statistics.mean(seconds) / ours, 2),
            largest_relative_difference=max(difference for difference, _ in checks),
            peak_mebibytes=max(mebibytes for _, mebibytes in checks),
        )


def print_ours(
    case: Case,
    found: Mapping[str, LayerCurvature],
    times: Mapping[str, list[float]],
    peak: AllocationPeak,
) -> None:
    """Print what ours takes."""
    engines = [curvature.certificate.engine for curvature in found.values()]
    print_figure(
        "ours on all layers",
        model=case.name,
        batch=len(case.x),
        top_k=case.top_k,
        layers=len(case.layers),
        directions=case.n_directions,
        engines={engine: engines.count(engine) for engine in engines},
        forward_seconds=round(statistics.median(times["forward"]), 4),
        forward_passes_per_direction=round(ratio(times, "ours", "forward") / case.n_directions, 3),
        peak_mebibytes=mebibytes_of(peak),
    )


def compare_routes(case: Case, size: Size, timer: Timer | None = None) -> None:
    """Compare ways to the Hessian in one early and one late layer."""
    for layer in (case.layers[0], case.layers[-2]):
        task = task_of(case, layer)
        routes = usable(ROUTES, task, "a route to the Hessian of one layer")
        runs = {route: runner(function, task) for route, function in routes.items()}
        times = interleaved({"forward": case.forward, **runs}, size.repeats, timer=timer)
        expected = runs["tangents"]()
        for route, run in runs.items():
            difference, mebibytes = check(run, task, expected)
            print_figure(
                "a route to the Hessian of one layer",
                model=case.name,
                layer=layer,
                directions=len(task.chosen),
                peer=route,
                forward_passes_per_direction=round(
                    ratio(times, route, "forward") / len(task.chosen), 3
                ),
                largest_relative_difference=difference,
                peak_mebibytes=mebibytes,
            )


def batch_growth(size: Size) -> None:
    """Compare batches of growing size on ResNet-20."""
    cases = {n: resnet20(n, size.top_k) for n in (size.images // 4, size.images // 2, size.images)}
    forward = {f"forward {n}": case.forward for n, case in cases.items()}
    ours = {f"ours {n}": case.ours for n, case in cases.items()}
    times = interleaved(forward | ours, size.repeats)
    for n, case in cases.items():
        half = f"ours {n // 2}"
        print_figure(
            "growth with the batch",
            model=case.name,
            batch=n,
            top_k=case.top_k,
            forward_passes_per_direction=round(
                ratio(times, f"ours {n}", f"forward {n}") / case.n_directions, 3
            ),
            time_over_half_the_batch=(
                round(ratio(times, f"ours {n}", half), 2) if half in times else None
            ),
        )


def direction_growth(size: Size) -> None:
    """Compare k directions with half as many on ResNet-20."""
    whole, half = (resnet20(size.images, k) for k in (size.top_k, size.top_k // 2))
    times = interleaved({"whole": whole.ours, "half": half.ours}, size.repeats)
    print_figure(
        "growth with the directions",
        model=whole.name,
        batch=len(whole.x),
        top_k=[whole.top_k, half.top_k],
        directions=[whole.n_directions, half.n_directions],
        time_over_half_the_directions=round(ratio(times, "whole", "half"), 3),
    )


def task_of(case: Case, layer: str, most: int | None = None) -> Task:
    """Return the task of all directions of a layer, or of at most so many."""
    everything = range(case.directions[layer][0].shape[1])
    return Task(case, layer, list(everything) if most is None else evenly(everything, most))


def label(peer: str, task: Task) -> str:
    """Name one run."""
    return f"{peer}: {task.layer}"


def check(run: Callable[[], Tensor], task: Task, values: Tensor) -> tuple[float, float]:
    """Return the largest difference from all of the layer's values over their largest, and MiB."""
    with AllocationPeak() as peak:
        found = run()
    largest = (found - values[task.chosen]).abs().max() / values.abs().max()
    return largest.item(), mebibytes_of(peak)


def mebibytes_of(peak: AllocationPeak) -> float:
    """Return a peak in MiB, rounded."""
    return round(peak.bytes / 2**20, 1)


def print_missing_peers() -> None:
    """Print which peers are not installed."""
    libraries = {"curvlinops": curvlinops, "PyHessian": pyhessian}
    libraries["hessian-eigenthings"] = hessian_eigenthings
    for name in (name for name, library in libraries.items() if library is None):
        print_figure("a peer on all layers", peer=name, skipped="not installed")


def on_stored_networks(size: Size) -> None:
    """Print the figures that need the stored networks, or why there are none."""
    try:
        from safetensors.torch import load_file  # noqa: F401
        from shared_data import DATA
    except ImportError as error:
        print_figure("stored networks", skipped=str(error))
        return
    if not DATA.is_dir():
        print_figure("stored networks", skipped=f"there is no folder {DATA}; set SPECTRAL_DATA")
        return
    compare(resnet20(size.images, size.top_k), size)
    batch_growth(size)
    direction_growth(size)
    compare(llama(size), size)


def main() -> None:
    """Print every figure."""
    size = QUICK if arguments(__doc__).quick else Size()
    torch.manual_seed(0)
    print_missing_peers()
    on_stored_networks(size)
    case = transformer(size)
    compare(case, size)
    compare_routes(case, size)


if __name__ == "__main__":
    main()
