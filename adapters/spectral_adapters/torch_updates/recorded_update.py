"""An update that is recorded once as a CUDA graph and replayed by one launch of the host."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from spectral_adapters.torch_updates.batched_step import Update, step_options
from spectral_core import InputError

__all__ = ["RecordedUpdate", "update_key"]

WARM_UP = 2
"""The runs before the recording, in which libraries make handles and constants are copied."""


class RecordedUpdate:
    """The update of some parameters on one GPU, with gradients and learning rate left open.

    Parameters
    ----------
    update : Update
        The update to record. It is not run.
    gradients : sequence of Tensor
        One gradient for each parameter. Their values do not matter.

    Raises
    ------
    InputError
        If the parameters are not on one GPU, or if the update waits for the GPU.
    """

    def __init__(self, update: Update, gradients: Sequence[Tensor]) -> None:
        device = _one_gpu(update.parameters)
        self._gradients = [gradient.clone() for gradient in gradients]
        self._lr = torch.zeros((), dtype=torch.float64, device=device)
        try:
            self._replay = record(
                device,
                lambda: update.steps(self._gradients, self._lr),
                lambda: update.apply(self._gradients, self._lr),
            )
        except RuntimeError as error:
            shapes = sorted({tuple(parameter.shape) for parameter in update.parameters})
            first = (str(error).strip().splitlines() or ["no reason given"])[0]
            raise InputError(
                f"cuda_graph: the update of parameters of shapes {shapes} with method "
                f"{update.group['method']!r} cannot be recorded ({first}); the methods 'svd' and "
                "'eigh' wait for the GPU: choose another, more damping, or cuda_graph=False."
            ) from error

    def apply(self, gradients: Sequence[Tensor], lr: float | Tensor) -> None:
        """Update the parameters and their momenta in place."""
        torch._foreach_copy_(self._gradients, list(gradients))
        if isinstance(lr, Tensor):
            self._lr.copy_(lr)
        else:
            self._lr.fill_(lr)
        self._replay()


def update_key(update: Update, gradients: Sequence[Tensor]) -> Hashable:
    """Return the fixed parts of a recording: addresses of tensors, and every option but lr."""
    options = step_options(update.group, lr=0.0)
    places = [(p.data_ptr(), m.data_ptr()) for p, m in _pairs(update)]
    kinds = [(tuple(g.shape), g.stride(), g.dtype) for g in gradients]
    others = (update.group["maximize"], *update.alphas)
    layouts = tuple(map(id, update.layouts))  # made once for each shape and spec
    return tuple(places), tuple(kinds), layouts, others, options


def _pairs(update: Update) -> list[tuple[Tensor, Tensor]]:
    return list(zip(update.parameters, update.momenta, strict=True))


def record(
    device: torch.device, warm_up: Callable[[], Any], run: Callable[[], None]
) -> Callable[[], None]:
    """Return a function that replays a run on a GPU. Only the warm-up is run here."""
    cuda = cast(Any, torch.cuda)  # its graphs have no types
    with cuda.device(device):
        side = cuda.Stream()
        side.wait_stream(cuda.current_stream())
        with cuda.stream(side):
            for _ in range(WARM_UP):
                warm_up()
        cuda.current_stream().wait_stream(side)
        graph = cuda.CUDAGraph()
        with cuda.graph(graph):
            run()
    return cast(Callable[[], None], graph.replay)


def _one_gpu(parameters: Sequence[Tensor]) -> torch.device:
    devices = {parameter.device for parameter in parameters}
    if len(devices) > 1 or not all(device.type == "cuda" for device in devices):
        shown = ", ".join(sorted(map(str, devices)))
        raise InputError(
            f"cuda_graph: the parameters of a group are on {shown}; a recording needs all of them "
            "on one GPU. Move the model there before the first step, or pass cuda_graph=False."
        )
    return devices.pop()
