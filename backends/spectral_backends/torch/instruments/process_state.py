"""Leaving the process as it was found, and making a model's passes differentiable twice."""

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = [
    "differentiable_operations", "modes_put_back", "put_back", "saved_tensors_kept", "seeded"
]  # fmt: skip

Setting = TypeVar("Setting")

_OVERRIDES: Any = torch.overrides  # without types
_AUTOGRAD: Any = torch._C._autograd
_CUDA: Any = torch.backends.cuda
_ATTENTION_KERNELS = (
    (_CUDA.flash_sdp_enabled, _CUDA.enable_flash_sdp),
    (_CUDA.mem_efficient_sdp_enabled, _CUDA.enable_mem_efficient_sdp),
    (_CUDA.math_sdp_enabled, _CUDA.enable_math_sdp),
    (_CUDA.cudnn_sdp_enabled, _CUDA.enable_cudnn_sdp),
)

_CUDNN: Any = torch.backends.cudnn  # its kinds of products have no types, nor have the CPU's
_CPU: Any = torch.backends.mkldnn
_PRODUCTS = (
    _CUDA.matmul, _CUDNN.conv, _CUDNN.rnn, _CPU.matmul, _CPU.conv, _CPU.rnn
)  # fmt: skip


@contextmanager
def put_back(undo: Callable[[], None]) -> Iterator[None]:
    """Run `undo` in the end, once more if Ctrl-C cuts it off: it may be run any number of times."""
    try:
        try:
            yield
        finally:
            undo()
    except KeyboardInterrupt:
        undo()
        raise


@contextmanager
def modes_put_back() -> Iterator[None]:
    """Leave every observer of calls and ``no_grad`` whose exit was interrupted by Ctrl-C.

    PyTorch enters and leaves these in Python, where an interrupt can come between.
    """
    modes = _OVERRIDES._get_current_function_mode_stack
    depth, graphs = len(modes()), torch.is_grad_enabled()

    def undo() -> None:
        for _ in range(len(modes()) - depth):
            _OVERRIDES._pop_mode()
        torch.set_grad_enabled(graphs)

    with put_back(undo):
        yield


@contextmanager
def seeded(seed: int, device: torch.device, batches: Any) -> Iterator[None]:
    """Run with every random generator seeded, then put each back where it was.

    Covers Python, NumPy, torch on the CPU and on `device`, and the generators that a `DataLoader`,
    its data set and its samplers hold, so that a random model or loader repeats itself from pass to
    pass.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    own = _generators(batches)
    own_states = [generator.get_state() for generator in own]
    devices = [device] if device.type not in ("cpu", "meta") else []
    torch_state = torch.get_rng_state()

    def undo() -> None:
        torch.set_rng_state(torch_state)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        for generator, state in zip(own, own_states, strict=True):
            generator.set_state(state)

    with (
        put_back(undo),
        torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"),
    ):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        for generator in own:
            generator.manual_seed(seed)
        yield


def _generators(batches: Any) -> list[torch.Generator]:
    """Return every generator of a loader and of the samplers and data sets nested in it."""
    found: dict[int, torch.Generator] = {}
    holders, seen = [batches], set()
    while holders:
        holder = holders.pop()
        if holder is None or id(holder) in seen:
            continue
        seen.add(id(holder))
        if isinstance(generator := getattr(holder, "generator", None), torch.Generator):
            found[id(generator)] = generator
        holders += [getattr(holder, name, None) for name in ("sampler", "batch_sampler", "dataset")]
    return list(found.values())


@contextmanager
def differentiable_operations(device: torch.device) -> Iterator[None]:
    """Run operations as they are written: in their own precision and with second derivatives.

    Fused attention kernels and compiled regions have no second derivative. An autocast around the
    measurement would round the measured values. So does TF32, in which PyTorch convolves float32 on
    a GPU unless told otherwise. All settings are as before afterwards.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    with put_back(lambda: torch.backends.mha.set_fastpath_enabled(fast)):
        torch.backends.mha.set_fastpath_enabled(False)
        with ExitStack() as stack:
            stack.enter_context(_attention_as_written())
            stack.enter_context(_products_in_float32())
            if "torch._dynamo" in sys.modules:  # slow to import; without it nothing is compiled
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            for kind in {"cpu", device.type}:
                if torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            yield


@contextmanager
def saved_tensors_kept() -> Iterator[None]:
    """Let autograd keep what an operation saves, whatever hooks ask for it.

    Such hooks replace the saved tensors. Gradient checkpointing runs the operations again, unseen
    by the observers that ran some of them as their parts, and a compression changes the gradient.
    The hooks are entered and left as usual, but get nothing to keep. PyTorch's own tracing of
    graphs does the same. It is a setting of the thread.
    """
    set_tracing = _AUTOGRAD._saved_tensors_hooks_set_tracing
    before = set_tracing(False)  # setting it returns the value before
    with put_back(lambda: set_tracing(before)):
        set_tracing(True)
        yield


@contextmanager
def _attention_as_written() -> Iterator[None]:
    """Compute attention by the operations that define it; Ctrl-C, too, puts its kernels back."""
    before = [(allow, enabled()) for enabled, allow in _ATTENTION_KERNELS]

    def undo() -> None:
        for allow, was_enabled in before:
            allow(was_enabled)

    with put_back(undo), sdpa_kernel(SDPBackend.MATH):
        yield


@contextmanager
def _products_in_float32() -> Iterator[None]:
    """Multiply float32 in float32, neither in TF32 nor in bfloat16.

    PyTorch has two settings for this, and reading the older one raises where they do not agree.
    """
    older = _without_error(lambda: (_CUDNN.allow_tf32, torch.get_float32_matmul_precision()))
    newer = [kind.fp32_precision for kind in _PRODUCTS]

    def undo() -> None:
        if older is not None:
            _set_older(*older)
        for kind, precision in zip(_PRODUCTS, newer, strict=True):
            kind.fp32_precision = precision

    with put_back(undo):
        _set_older(False, "highest")
        for kind in _PRODUCTS:
            if kind.fp32_precision not in ("none", "ieee"):
                kind.fp32_precision = "ieee"
        yield


def _set_older(convolutions: bool, products: str) -> None:
    _CUDNN.allow_tf32 = convolutions
    torch.set_float32_matmul_precision(products)


def _without_error(read: Callable[[], Setting]) -> Setting | None:
    try:
        return read()
    except RuntimeError:
        return None
