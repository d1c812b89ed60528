"""Steps in PyTorch that run as written, whatever settings the process has for training."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch

from spectral_backends.torch.instruments.process_state import put_back
from spectral_core.storage.exclusive import exclusively

__all__ = ["exact_steps"]

_BACKENDS: Any = torch.backends  # without types
_PRODUCTS = (_BACKENDS.cuda.matmul, _BACKENDS.mkldnn.matmul)

_UNCHANGED = nullcontext()
_inside = 0


def exact_steps(kinds: set[str]) -> AbstractContextManager[None]:
    """Return a context for steps: no autocast, products in float32; settings are put back.

    Many training scripts choose TF32, in which the rounding of a Gram matrix is about as large as
    the shift by the usual damping of 0.001.

    Parameters
    ----------
    kinds : set of str
        The kinds of device that hold the parameters: "cpu", "cuda".
    """
    able = filter(torch.amp.is_autocast_available, kinds)
    cast = [kind for kind in able if torch.is_autocast_enabled(kind)]
    # In this order: what another thread's step has chosen for itself does not count.
    chosen = _chosen() == "highest" and not _inside
    return _UNCHANGED if chosen and not cast else _as_written(cast, chosen)


@contextmanager
def _as_written(cast: list[str], chosen: bool) -> Iterator[None]:
    with ExitStack() as stack:
        for kind in cast:
            stack.enter_context(torch.autocast(kind, enabled=False))
        if not chosen:
            stack.enter_context(_products_in_float32())
        yield


@contextmanager
def _products_in_float32() -> Iterator[None]:
    """Multiply float32 as it is. The setting belongs to the process, so steps take turns."""
    global _inside
    with exclusively():
        older, newer = _chosen(), [kind.fp32_precision for kind in _PRODUCTS]

        def undo() -> None:
            if older is not None:
                torch.set_float32_matmul_precision(older)
            for kind, precision in zip(_PRODUCTS, newer, strict=True):
                kind.fp32_precision = "none"  # as all operations, which may be what was read
                if kind.fp32_precision != precision:
                    kind.fp32_precision = precision

        _inside += 1
        try:
            with put_back(undo):
                torch.set_float32_matmul_precision("highest")
                yield
        finally:
            _inside -= 1


def _chosen() -> str | None:
    """Return the older of PyTorch's two settings; reading it raises where they do not agree."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None
