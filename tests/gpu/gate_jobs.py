"""The jobs of each part: processes that write their results themselves, some side by side."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["PARTS", "PATIENCE", "Job", "jobs_of", "run_jobs", "stop_all"]

PARTS = {"tests": 220.0, "measure": 80.0, "step": 130.0, "train": 60.0}
"""Seconds that each may take; together they leave room for starts in less than nine minutes."""

PATIENCE = 5
"""Times as long in a dry run, which may have a small part of one core."""

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent
BENCHMARKS = TESTS / "benchmarks"
DRY_CORE = {
    "torch": ("test_namespaces.py", "test_spectral_newton.py"),
    "jax": ("test_matrix_layout.py",),
    "cupy": ("test_namespaces.py", "test_spectral_newton.py"),
}
DRY_PLACE = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
EXAMPLES, DRY_EXAMPLES = 25, 3  # of each property
MOST_AT_ONCE = 12
TIME_WAS_UP = 75
NO_TESTS = 5  # what pytest says where a file has none of a framework


@dataclass(frozen=True)
class Job:
    """A process: its command, what it needs in its environment, and whether others may run too."""

    name: str
    command: Sequence[str]
    environment: dict[str, str] = field(default_factory=dict)
    alone: bool = True


def jobs_of(part: str, found: dict[str, Any], dry: bool, folder: Path) -> list[Job]:
    """Return the jobs of a part on this machine."""
    if part == "tests":
        return _test_jobs([name for name, own in found.items() if own["usable"]], dry, folder)
    if not found["torch"]["usable"]:
        return []
    jobs = [_benchmark(part, HERE / f"{part}.py", dry, folder)]
    if part == "step" and found["jax"]["usable"] and "optax" in found["jax"]:
        script = BENCHMARKS / "bench_spectral_newton_optax.py"
        jobs.append(_benchmark(part, script, dry, folder, 0.35))
    return jobs


def _benchmark(part: str, script: Path, dry: bool, folder: Path, share: float = 0.8) -> Job:
    device = ["--quick"] if dry else ["--device", "cuda"]
    command = [
        sys.executable, str(script), *device, "--figures", str(folder / f"{part}.jsonl"),
        "--seconds", str(round(share * PARTS[part] * (PATIENCE if dry else 1))),
    ]  # fmt: skip
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | (DRY_PLACE if dry else {})
    return Job(f"{part} {script.stem}", command, environment)


def _test_jobs(frameworks: Sequence[str], dry: bool, folder: Path) -> list[Job]:
    jobs = []
    for framework in frameworks:
        own = [HERE / f"test_{framework}_device.py"]
        files = [path for path in core_files() if not dry or path.name in DRY_CORE[framework]]
        if framework == "cupy" and not dry:
            files += sorted((TESTS / "backends" / "arrays").glob("test_*.py"))
            files.append(TESTS / "adapters" / "test_array_optim.py")
        jobs += [_test_job(framework, path, dry, folder) for path in own + files]
    return jobs


def core_files() -> list[Path]:
    """Return the core's tests that run in every namespace."""
    paths = sorted((TESTS / "unit").rglob("test_*.py"))
    return [path for path in paths if "(xp" in path.read_text(encoding="utf-8")]


def _test_job(framework: str, path: Path, dry: bool, folder: Path) -> Job:
    library = "numpy" if dry and framework == "cupy" else framework
    name = f"tests {framework} {path.name}"
    command = [
        sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "counting", "-p", "no:cacheprovider",
        "-c", str(TESTS.parent / "pyproject.toml"), "--rootdir", str(TESTS.parent),
        "--framework", framework, "--library", library, "--namespaces", library,
        "--device", "cpu" if dry else "cuda", "--record", str(folder / "tests.jsonl"),
        "--job", name, "--examples", str(DRY_EXAMPLES if dry else EXAMPLES),
        "--combinations", "few" if dry else "all", str(path),
    ]  # fmt: skip
    environment = {
        # One thread each: many run side by side, on small arrays.
        "OMP_NUM_THREADS": "1",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        # JAX multiplies float32 in TF32 on a GPU by default, which no test of float32 can bear.
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
    }
    return Job(name, command, environment | (DRY_PLACE if dry else {}), alone=False)


def run_jobs(
    jobs: Sequence[Job],
    seconds: float,
    dry: bool,
    log: Path,
    finish: Callable[[Sequence[str]], None],
) -> list[str]:
    """Run jobs until a time, tell which ended well, and return what went wrong in sentences."""
    end, lock = time.monotonic() + seconds, threading.Lock()
    together = not any(job.alone for job in jobs) and not dry
    workers = min(MOST_AT_ONCE, max(1, (os.cpu_count() or 1) - 2)) if together else 1

    def run(job: Job) -> str | None:
        status, output = _run(job, end)
        with lock:
            with log.open("a", encoding="utf-8") as file:
                file.write(f"== {job.name}: {status}\n{output[-6000:]}\n")
            if status in (0, NO_TESTS):
                finish([job.name])
                print(f"  {job.name}: {'done' if status == 0 else 'none of its tests'}", flush=True)
                return None
            sentence = _complaint(job, status, output)
            print(f"  {sentence}", flush=True)
            return sentence

    with ThreadPoolExecutor(workers) as pool:
        return [sentence for sentence in pool.map(run, jobs) if sentence]


_running: set[int] = set()  # process groups
_stopping = threading.Event()


def stop_all() -> None:
    """End what runs, and begin nothing more."""
    _stopping.set()
    for group in list(_running):
        _end(group)


def _end(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _run(job: Job, end: float) -> tuple[int | str, str]:
    """Run one process; what it started ends with it when its time is over."""
    left = end - time.monotonic()
    if left <= 0 or _stopping.is_set():
        return "no time left", ""
    process = subprocess.Popen(
        list(job.command),
        env=os.environ | job.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        process_group=0,
    )
    _running.add(process.pid)
    try:
        output, _ = process.communicate(timeout=left)
    except subprocess.TimeoutExpired:
        _end(process.pid)
        return "stopped", process.communicate()[0]
    finally:
        _running.discard(process.pid)
    return "stopped" if _stopping.is_set() else process.returncode, output


def _complaint(job: Job, status: int | str, output: str) -> str:
    if status in ("no time left", "stopped", TIME_WAS_UP):
        return f"{job.name}: its time was up; call again with the same folder to go on."
    last = (output.strip().splitlines() or ["no output"])[-1][:200]
    return f"{job.name}: failed with status {status} ({last}); log.txt has more."
