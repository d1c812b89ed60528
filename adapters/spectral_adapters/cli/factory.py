"""From ``PATH_OR_MODULE:FACTORY`` to a problem."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from spectral_adapters.cli.weights import load_weights
from spectral_core._extras import require
from spectral_core.curvature.problem import CurvatureProblem
from spectral_core.errors import InputError

__all__ = ["load_factory", "load_problem"]


def load_problem(target: str, weights: str | None) -> CurvatureProblem:
    """Call the factory and return its problem.

    Parameters
    ----------
    target : str
        ``"path/to/file.py:factory"`` or ``"package.module:factory"``.
    weights : str or None
        A weights file; the factory is called with its dict of tensors. Without one it is called
        with nothing.

    Raises
    ------
    InputError
        If there is no such factory, or it returns neither a problem nor a problem's arguments.
    """
    factory = load_factory(target)
    made = factory() if weights is None else factory(load_weights(weights))
    if isinstance(made, tuple):
        made = require(
            "spectral_backends.torch", "torch", "A tuple from a factory"
        ).CurvatureProblem(*made)
    if not isinstance(made, CurvatureProblem):
        raise InputError(
            f"{target}: returned a {type(made).__name__}; return a CurvatureProblem, or a tuple "
            "(model, loss_fn, batches)."
        )
    return made


def load_factory(target: str) -> Callable[..., Any]:
    """Import the module or file and return the callable in it."""
    place, separator, name = target.rpartition(":")
    if not separator or not place or not name:
        raise InputError(f"{target}: is not PATH_OR_MODULE:FACTORY, such as experiment.py:problem.")
    module = _load_file(Path(place)) if place.endswith(".py") else _load_module(place)
    factory = getattr(module, name, None)
    if not callable(factory):
        raise InputError(f"{target}: {place} defines no function {name!r}; check its name.")
    return factory  # type: ignore[no-any-return]


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; check the path.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path}: cannot be imported as Python.")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))  # so that it can import its neighbours, as a script can
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def _load_module(name: str) -> ModuleType:
    sys.path.insert(0, "")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{name}: cannot be imported ({error}); check the module's name."
        ) from error
    finally:
        sys.path.remove("")
