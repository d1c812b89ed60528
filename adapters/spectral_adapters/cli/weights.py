"""Weights files as dicts of tensors, without running anything that a file may hold."""

import pickle
from pathlib import Path
from typing import TYPE_CHECKING

from spectral_core._extras import require
from spectral_core.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["load_weights"]


def load_weights(path: str | Path) -> "dict[str, Tensor]":
    """Read a ``.safetensors`` file, or a torch file with ``weights_only=True``.

    Parameters
    ----------
    path : path
        The file. A torch file may hold the dict itself, or under ``state_dict`` or ``model``.

    Returns
    -------
    dict of str to Tensor
        The tensors of the file by name, on the CPU.

    Raises
    ------
    InputError
        If the file is missing, damaged, holds anything but tensors, or would have to run code.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"weights: there is no file {path}; check the path.")
    return _load_safetensors(path) if path.suffix == ".safetensors" else _load_torch(path)


def _load_safetensors(path: Path) -> "dict[str, Tensor]":
    safetensors = require("safetensors.torch", "cli", "Reading a safetensors file")
    try:
        return dict(safetensors.load_file(path))
    except Exception as error:  # the library raises its own SafetensorError, and OSError
        raise InputError(f"weights: {path} is no complete safetensors file ({error}).") from error


def _load_torch(path: Path) -> "dict[str, Tensor]":
    torch = require("torch", "torch", "Reading a torch file")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"weights: {path} holds more than tensors, and loading it would run code; save the "
            "state_dict alone, best as safetensors."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise InputError(f"weights: {path} is no complete torch file ({error}).") from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(torch.is_tensor(v) for v in loaded.values()):
        raise InputError(f"weights: {path} holds no dict of tensors; save the model's state_dict.")
    return dict(loaded)
