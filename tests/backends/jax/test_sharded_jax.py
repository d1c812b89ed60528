"""Parameters and batches sharded over eight devices: the report of one, and no batch gathered.

`sharded_cases` runs in a process of its own, since JAX reads the number of host devices once.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = (
    "mlp batch decomposed", "mlp params one by one", "mlp both tangents",
    "mlp targets elsewhere", "cnn batch decomposed", "cnn both tangents",
    "cnn two axes columns", "mlp explicit tangents", "transformer both ggn columns",
    "spectral batch one by one", "uneven batches", "weights larger than the batch",
    "one sample a device, loss alone", "loss of no independent terms",
)  # fmt: skip


@pytest.fixture(scope="module")
def findings():
    script = Path(__file__).with_name("sharded_cases.py")
    path = os.pathsep.join(p for p in sys.path if p)
    environment = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=900
    )
    assert run.returncode == 0, run.stderr[-4000:]
    found: dict[str, dict] = {}
    for line in run.stdout.splitlines():
        found |= json.loads(line)
    return found


def test_every_case_is_run(findings):
    assert tuple(findings) == CASES


@pytest.mark.parametrize("case", CASES)
def test_sharded_report_is_that_of_one_device(findings, case):
    assert findings[case]["off"] < 1e-9


@pytest.mark.parametrize("case", CASES)
def test_no_batch_is_gathered(findings, case):
    assert findings[case]["gathered"] == []
