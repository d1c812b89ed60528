"""Write what users see of this version into a folder, to the byte.

`python tools/golden/record.py OUTPUT` records reports of small problems, states of optimizers
after 20 steps and pickles, for each of NumPy, PyTorch and JAX that can be imported. It uses public
names alone, so that it runs on any two commits; `nox -s golden -- COMMIT` does so and compares.
Floating-point results differ between machines: two records compare on one machine only.
"""

import json
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import golden_jax
import golden_numpy
import golden_torch

FRAMEWORKS = {"numpy": golden_numpy, "torch": golden_torch, "jax": golden_jax}


def main(output: Path) -> None:
    """Record every framework at hand."""
    for name, module in FRAMEWORKS.items():
        if find_spec(name) is None:
            print(f"{name}: not installed, left out")
            continue
        for what, content in records(module):
            path = output / name / what
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            print(f"{name}: {what}, {len(content)} bytes")


def records(module: Any) -> Iterator[tuple[str, bytes]]:
    """Yield names of files and what is in them."""
    for case, measured in module.reports().items():
        yield from _written(f"reports/{case}", measured)
    for case, trained in module.states().items():
        yield from _written(f"states/{case}", trained)


def _written(name: str, make: Callable[[], Any]) -> Iterator[tuple[str, bytes]]:
    """Yield a report as JSON and as text; arrays as their bytes; an error as its words."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            made = make()
        except Exception as error:  # what a version refuses is a part of the record
            yield f"{name}.error", f"{type(error).__name__}: {error}".encode()
            return
    said = sorted({f"{each.category.__name__}: {each.message}" for each in told})
    if hasattr(made, "to_dict"):
        assert pickle.loads(pickle.dumps(made)).to_dict() == made.to_dict()
        text = json.dumps(made.to_dict(), indent=1, allow_nan=False)
        yield f"{name}.json", text.encode()
        yield f"{name}.txt", "\n".join([str(made), *said]).encode()
    else:
        parts = [f"{key} {kind} {shape} {data.hex()}" for key, kind, shape, data in made]
        yield f"{name}.bits", "\n".join([*parts, *said]).encode()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
