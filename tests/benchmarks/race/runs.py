"""Runs: what identifies one, how one is made, and the folder that holds one JSON file for each."""

import json
import math
import os
import platform
import re
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import spectral_core

from .contenders import Contender, schedule, set_learning_rate
from .tasks import TASKS, Task

Result = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One training; seed 0 is for tuning and scored on validation data, other seeds on test data."""

    task: str
    contender: Contender
    lr: float
    weight_decay: float
    seed: int

    @property
    def split(self) -> str:
        return "valid" if self.seed == 0 else "test"

    @property
    def file_name(self) -> str:
        """Return a name of ASCII letters that tells runs apart."""
        who = self.contender.name.replace("α", "alpha").replace("δ", "delta")
        text = f"{self.task} {who} lr={self.lr:.3g} wd={self.weight_decay:g} seed={self.seed}"
        return re.sub(r"[^A-Za-z0-9.+-]+", "_", text) + ".json"


class Results:
    """The finished runs of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._by_name = {path.name: self._read(path) for path in sorted(folder.glob("*.json"))}

    def get(self, run: Run) -> Result | None:
        return self._by_name.get(run.file_name)

    def all(self) -> Iterable[Result]:
        return self._by_name.values()

    def save(self, run: Run, result: Result) -> None:
        """Write the file in one piece, so that one that exists is one that is finished."""
        text = json.dumps(result, ensure_ascii=False, allow_nan=False, indent=1)
        text = re.sub(r"\n {3,}|\n {2}(?=[\]}])", " ", text)  # a line for each entry, no more
        partial = self.folder / (run.file_name + ".partial")
        partial.write_text(text + "\n", encoding="utf-8")
        os.replace(partial, self.folder / run.file_name)
        self._by_name[run.file_name] = result

    @staticmethod
    def _read(path: Path) -> Result:
        result: Result = json.loads(path.read_text(encoding="utf-8"))
        task = TASKS.get(result["task"]["name"])
        # Tuples become lists in JSON.
        if task is None or json.loads(json.dumps(task.config())) != result["task"]:
            raise ValueError(
                f"{path}: the task {result['task']['name']!r} was another one when this ran; "
                "remove the file or give the changed task another name."
            )
        return result


def score(result: Result | None) -> float:
    """Return what counts, lower is better; infinite where training diverged."""
    if result is None or result["diverged"]:
        return math.inf
    return float(result["curve"][-1][TASKS[result["task"]["name"]].score])


def train(run: Run) -> Result:
    """Train from the beginning and return the result as it is saved."""
    task = TASKS[run.task]
    torch.manual_seed(run.seed)
    model = task.model()
    optimizer = run.contender.optimizer(
        model, run.lr, run.weight_decay, lambda: task.problem(model), task.measure_every
    )
    curve, seconds, cpu_seconds = _curve(run, task, model, optimizer)
    return {
        "task": task.config(),
        "contender": asdict(run.contender),
        "lr": run.lr,
        "weight_decay": run.weight_decay,
        "seed": run.seed,
        "split": run.split,
        "diverged": curve[-1]["train_loss"] is None,
        "curve": curve,
        "train_seconds": round(seconds, 2),
        "train_cpu_seconds": round(cpu_seconds, 2),
        "parameters": sum(p.numel() for p in model.parameters()),
        "versions": {
            "spectral-core": spectral_core.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
        },
    } | _measured(run, optimizer)


def _curve(
    run: Run, task: Task, model: torch.nn.Module, optimizer: Any
) -> tuple[list[dict[str, Any]], float, float]:
    """Return a point for each epoch, and wall and processor seconds without the evaluations."""
    curve: list[dict[str, Any]] = []
    generator = torch.Generator().manual_seed(run.seed)
    step, seconds, cpu_seconds = 0, 0.0, 0.0
    for epoch in task.epochs(generator):
        wall, cpu, losses = time.perf_counter(), time.process_time(), []
        for batch in epoch:
            set_learning_rate(optimizer.param_groups, schedule(step, task.steps))
            optimizer.zero_grad()
            loss = task.loss(model, batch)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            step += 1
            if not math.isfinite(losses[-1]):
                break
        seconds += time.perf_counter() - wall
        cpu_seconds += time.process_time() - cpu
        point = {"step": step, "train_loss": _rounded(sum(losses) / len(losses))}
        if point["train_loss"] is not None:
            point |= _evaluated(task, model, run.split)
        if any(value is None for value in point.values()):
            curve.append(point | {"train_loss": None})
            break
        curve.append(point)
    return curve, seconds, cpu_seconds


def _evaluated(task: Task, model: torch.nn.Module, split: str) -> dict[str, float | None]:
    model.eval()
    with torch.no_grad():
        found = task.evaluate(model, split)
    model.train()
    return {key: _rounded(value) for key, value in found.items()}


def _rounded(value: float) -> float | None:
    return round(value, 5) if math.isfinite(value) else None


def _measured(run: Run, optimizer: Any) -> dict[str, Any]:
    """Return the exponents that were in use at the end, where they were measured."""
    if run.contender.alpha != "auto":
        return {}
    rows = [row for row in optimizer.routing_table() if row["alpha"] is not None]
    return {"alphas": {row["name"]: round(row["alpha"], 2) for row in rows}}
