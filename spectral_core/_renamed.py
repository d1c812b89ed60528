"""Arguments that have a new name: the former one is accepted for one release, with a warning.

Version 0.2 renames ``draws`` to ``mc_samples``, ``delta`` to ``fisher_type``, ``sharing`` to
``kfac_approx`` and ``tell`` to ``progress_callback``, the words of curvlinops and of the field.
"""

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from spectral_core.errors import InputError

__all__ = ["FORMER_NAMES", "by_new_names", "renamed_arguments"]

FORMER_NAMES: Mapping[str, str] = {
    "mc_samples": "draws",
    "fisher_type": "delta",
    "kfac_approx": "sharing",
    "progress_callback": "tell",
}

P = ParamSpec("P")
T = TypeVar("T")


def renamed_arguments(function: Callable[P, T]) -> Callable[P, T]:
    """Let a function take its renamed arguments by their former names too, with a warning."""
    takes = inspect.signature(function).parameters
    renamed = {former: name for name, former in FORMER_NAMES.items() if name in takes}

    @functools.wraps(function)
    def accepting(*args: P.args, **kwargs: P.kwargs) -> T:
        for former in renamed.keys() & kwargs.keys():
            name = renamed[former]
            if name in kwargs:
                raise InputError(f"{former}: it is the former name of {name}; pass {name} alone.")
            warnings.warn(
                f"{former} is now called {name}; the former name goes with version 0.3.",
                DeprecationWarning,
                stacklevel=2,
            )
            kwargs[name] = kwargs.pop(former)
        return function(*args, **kwargs)

    return accepting


def by_new_names(method: Callable[..., T]) -> Callable[..., T]:
    """Return a method of a user's problem so that it takes arguments by their new names.

    A problem that was written for version 0.1 has the former ones.
    """
    try:
        takes = inspect.signature(method).parameters
    except (TypeError, ValueError):  # compiled, without a signature
        return method
    former = {name: old for name, old in FORMER_NAMES.items() if old in takes and name not in takes}

    def called(*args: Any, **kwargs: Any) -> T:
        return method(*args, **{former.get(name, name): value for name, value in kwargs.items()})

    return called if former else method
