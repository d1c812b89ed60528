"""Public names with their signatures: what must not change without a word in the changelog.

`python tools/golden/public_face.py > tests/golden/public_face.json` writes down the present ones.
"""

import inspect
import json
from importlib import import_module
from typing import Any

MODULES = [
    "spectral_core", "spectral_core.testing", "spectral_backends.numpy", "spectral_backends.torch",
    "spectral_backends.jax", "spectral_adapters.torch_optim", "spectral_adapters.array_optim",
    "spectral_adapters.optax", "spectral_adapters.plots", "spectral_adapters.tables",
    "spectral_adapters.cli", "spectral_adapters.demo",
]  # fmt: skip


def public_face(module: str) -> dict[str, Any]:
    """Return by public name of a module: its parameters, and those of its methods by method."""
    names = import_module(module)
    return {name: _face(getattr(names, name)) for name in sorted(names.__all__)}


def _face(thing: Any) -> Any:
    if not inspect.isclass(thing):
        return _parameters(thing) if callable(thing) else "value"
    members = {
        name: "property" if isinstance(member, property) else _parameters(member)
        for name, member in inspect.getmembers(thing)
        if not name.startswith("_") and _is_ours(member)
    }
    return {"()": _parameters(thing), **members}


def _is_ours(member: Any) -> bool:
    """Say whether a method or property is written here; those of a base class elsewhere change."""
    function = member.fget if isinstance(member, property) else member
    return str(getattr(function, "__module__", "")).startswith("spectral_")


def _parameters(thing: Any) -> list[str]:
    """Return parameters as they are written, without annotations; keywords alone behind "* "."""
    try:
        signature = inspect.signature(thing)
    except (TypeError, ValueError):
        return []
    return [
        ("* " if each.kind is each.KEYWORD_ONLY else "") + str(each.replace(annotation=each.empty))
        for each in signature.parameters.values()
    ]


if __name__ == "__main__":
    print(json.dumps({module: public_face(module) for module in MODULES}, indent=1))
