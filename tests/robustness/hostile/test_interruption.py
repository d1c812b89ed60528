"""Ctrl-C at any moment: the model as before, a journal that resumes, and no lock left behind."""

import gc
import os
import signal
import sys
import threading
from collections import Counter

import numpy as np
import pytest
import torch
from test_side_effects import assert_same, snapshot
from test_threads import Net, loader
from torch.nn import functional as F

import spectral_core as sc
from spectral_backends.torch import CurvatureProblem

OPTIONS = {"top_k": 3, "engine": "double-backward"}
# Where the model and the process are changed and put back, and files are written. Not where the
# lock is: a signal cannot come between its ``with`` and C, where tracing can.
WATCHED = ("instruments/process_state.py", "instruments/threads.py", "objective/functional_model.py",
           "objective/objective.py",
           "measuring/journal.py", "storage/files.py", "storage/lone_file.py",
           "torch/overrides.py", "torch/autograd/grad_mode.py", "torch/autograd/graph.py",
           "torch/nn/attention/__init__.py", "torch/amp/autocast_mode.py", "torch/random.py")  # fmt: skip


def setting():
    network = Net().double().eval()
    network.norm.train()  # modes that differ
    network.norm.track_running_stats = True
    F.cross_entropy(network(torch.ones(6, 5).double()), torch.arange(6) % 4).backward()
    network.last.weight.grad = None
    network.first.bias.requires_grad_(False)
    network.first.register_forward_hook(lambda *arguments: None)
    return network, loader()


def measure(network, batches, folder):
    problem = CurvatureProblem(network, F.cross_entropy, batches, check_deterministic=False)
    report = sc.measure(problem, resume=folder / "run.journal", **OPTIONS)
    report.save(folder / "report.json")
    return report


def ends_an_object(frame):
    """Say whether a frame runs inside a finalizer, where Python itself drops what is raised."""
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


class InterruptedLine:
    """Raises KeyboardInterrupt at the n-th run of a line of code in the watched files."""

    def __init__(self, place=None, number=0):
        self.place, self.number = place, number
        self.runs = Counter()  # of each line
        self._watched = {}  # whether a code's file is

    def __enter__(self):
        sys.settrace(self._enter)
        return self

    def __exit__(self, *error):
        sys.settrace(None)

    def _enter(self, frame, event, argument):
        code = frame.f_code
        if code not in self._watched:  # asked at every call of a function
            self._watched[code] = code.co_filename.endswith(WATCHED)
        return self._line if self._watched[code] and not ends_an_object(frame) else None

    def _line(self, frame, event, argument):
        if event == "line":
            place = frame.f_code, frame.f_lineno
            self.runs[place] += 1
            if place == self.place and self.runs[place] == self.number:
                raise KeyboardInterrupt
        return self._line


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The bytes of an uninterrupted report, and how often each line runs that makes it."""
    network, batches = setting()
    folder = tmp_path_factory.mktemp("whole")
    measure(network, batches, tmp_path_factory.mktemp("first"))  # which imports and caches
    with InterruptedLine() as trace:
        measure(network, batches, folder)
    gc.freeze()  # each collection after an interruption would look at all of PyTorch
    return (folder / "report.json").read_bytes(), list(trace.runs.items())


def check_everything(network, batches, before, folder, expected):
    assert_same(before, snapshot(network, batches))
    found = []
    # In another thread: a lock that is left behind would stop it.
    thread = threading.Thread(
        target=lambda: found.append(measure(network, batches, folder)), daemon=True
    )
    thread.start()
    thread.join(60)
    assert found and (folder / "report.json").read_bytes() == expected[0]
    assert_same(before, snapshot(network, batches))


@pytest.mark.parametrize("path", WATCHED)
def test_a_watched_file_is_there_and_runs(path, expected):
    """Else nothing would be cut off in it. Of PyTorch's some run in other measurements only."""
    run = {place[0].co_filename for place, _ in expected[1]}
    loaded = {getattr(module, "__file__", None) or "" for module in [*sys.modules.values()]}
    assert any(name.endswith(path) for name in (loaded if path.startswith("torch/") else run))


@pytest.mark.parametrize("part", range(8))
def test_at_lines(part, expected, tmp_path):
    """Every line of code that runs is cut off, in one of its runs."""
    rng = np.random.default_rng(part)
    for number, (place, runs) in enumerate(expected[1][part::8]):
        network, batches = setting()
        before = snapshot(network, batches)
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(KeyboardInterrupt), InterruptedLine(place, rng.integers(1, runs + 1)):
            measure(network, batches, folder)
        gc.collect()  # the frames of the exception may hold contexts that end with them
        check_everything(network, batches, before, folder, expected)


def interrupting_after(seconds):
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    return timer


@pytest.mark.parametrize("moment", range(12))
def test_by_a_signal(moment, expected, tmp_path):
    network, batches = setting()
    before = snapshot(network, batches)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = interrupting_after(0.02 + 0.03 * moment)
    try:
        with pytest.raises(KeyboardInterrupt):
            while True:
                measure(network, batches, tmp_path)
                (tmp_path / "run.journal").unlink()
                if not timer.is_alive():  # Python drops what is raised inside of a finalizer
                    timer = interrupting_after(0.02 + 0.03 * moment)
    finally:
        timer.join()
        signal.signal(signal.SIGINT, handler)
    check_everything(network, batches, before, tmp_path, expected)


def test_what_is_finished_is_a_report(tmp_path):
    """What the journal holds after Ctrl-C can be had as a report of these layers."""
    network, batches = setting()

    def stop(done, total, name):
        if done == 2:
            raise KeyboardInterrupt

    def problem():
        return CurvatureProblem(network, F.cross_entropy, batches, check_deterministic=False)

    journal = tmp_path / "run.journal"
    with pytest.raises(KeyboardInterrupt):
        sc.measure(problem(), resume=journal, progress=stop, **OPTIONS)
    lines = journal.read_bytes().splitlines()
    assert len(lines) == 3 and all(line.endswith(b"}") for line in lines)
    told = []
    report = sc.measure(
        problem(), resume=journal, progress=lambda done, total, name: told.append(done), **OPTIONS
    )
    assert min(told) == 2 and len(report) == 3
