"""What the gate finds on a machine: frameworks, devices, versions; each looked at in a process."""

import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

__all__ = ["FRAMEWORKS", "describe", "probe_all", "reason_not_to_begin"]

FRAMEWORKS = ("torch", "jax", "cupy")
NEEDED = {
    "numpy": "numpy",
    "array_api_compat": "array-api-compat",
    "array_api_extra": "array-api-extra",
    "scipy": "scipy",
    "pytest": "pytest",
    "hypothesis": "hypothesis",
    "mpmath": "mpmath",
}
_PROBES = {
    "torch": """
import torch
there = torch.cuda.is_available()
extra = {"cuda": torch.version.cuda}
if there:
    own = torch.cuda.get_device_properties(0)
    extra |= {"device": own.name, "gibibytes": round(own.total_memory / 2**30, 1),
              "capability": f"{own.major}.{own.minor}", "multiprocessors": own.multi_processor_count}
found = {"version": torch.__version__, "gpu": there, **extra}
""",
    "jax": """
import jax
there = jax.default_backend() not in ("cpu",)
found = {"version": jax.__version__, "gpu": there, "device": jax.devices()[0].device_kind}
try:
    import optax
    found["optax"] = optax.__version__
except ImportError:
    pass
""",
    "cupy": """
import cupy
found = {"version": cupy.__version__, "gpu": False}
try:
    if cupy.cuda.runtime.getDeviceCount():
        float(cupy.ones(2).sum())
        found["gpu"] = True
except Exception as error:
    found["why"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
""",
}


def reason_not_to_begin() -> str | None:
    """Say which library that the tests cannot do without is missing, or None."""
    missing = [name for module, name in NEEDED.items() if importlib.util.find_spec(module) is None]
    if not missing:
        return None
    return (
        f"{sys.executable} has no {', '.join(missing)}. Where there is no network, fetch them "
        f"elsewhere (pip install --no-deps --target FOLDER {' '.join(missing)}), bring the folder "
        "along and put it on PYTHONPATH."
    )


def probe_all(dry: bool) -> dict[str, dict[str, Any]]:
    """Return what there is of each framework, with a sentence and whether the gate can use it."""
    with ThreadPoolExecutor() as pool:
        results = dict(zip(FRAMEWORKS, pool.map(_probe, FRAMEWORKS), strict=True))
    for name, found in results.items():
        _add_sentence(name, found, dry)
    return results


def _probe(name: str) -> dict[str, Any]:
    if importlib.util.find_spec(name) is None:
        return {}
    code = f"{_PROBES[name]}\nimport json\nprint('\\n' + json.dumps(found))"
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True, text=True, timeout=120, env=environment, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"why": "it did not start within two minutes", "gpu": False}
    if done.returncode:
        return {"why": (done.stderr.strip().splitlines() or ["it crashed"])[-1][:200], "gpu": False}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _add_sentence(name: str, found: dict[str, Any], dry: bool) -> None:
    version = found.get("version")
    if dry and name == "cupy":
        found |= {"usable": True, "sentence": "NumPy and array-api-strict stand in for it (--dry)."}
    elif not found:
        found |= {"usable": False, "sentence": "is not installed; its tests do not run."}
    elif version is None:
        found |= {"usable": False, "sentence": f"does not work here ({found['why']})."}
    elif dry:
        found |= {"usable": True, "sentence": f"{version}, on the CPU (--dry)."}
    elif not found["gpu"]:
        why = f" ({found['why']})" if "why" in found else ""
        found |= {"usable": False, "sentence": f"{version} is installed and sees no GPU{why}."}
    else:
        found |= {"usable": True, "sentence": f"{version} on {found.get('device', 'the GPU')}."}


def describe(found: dict[str, dict[str, Any]], dry: bool, root: Path) -> dict[str, Any]:
    """Return what a reader of the figures must know of the machine."""
    return {
        "dry": dry,
        "date": time.strftime("%Y-%m-%d"),
        "device": "CPU" if dry else _device(found),
        "driver": None if dry else _output(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        ),
        "commit": _output(["git", "-C", str(root), "rev-parse", "--short", "HEAD"]),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "frameworks": found,
    }  # fmt: skip


def _device(found: dict[str, dict[str, Any]]) -> str:
    names = [str(own["device"]) for own in found.values() if own["usable"] and "device" in own]
    return names[0] if names else "unknown GPU"


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (done.stdout.strip().splitlines() or [""])[0] or None
