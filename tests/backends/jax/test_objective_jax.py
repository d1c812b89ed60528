"""The mean loss over batches: nothing that a pass shares with others is rewritten.

`passed_values` runs in a process of its own, since JAX reads the number of host devices once.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = (
    "during_and_after_a_pass", "after_a_pass_that_raises", "where_the_first_batch_lies_elsewhere",
    "in_two_threads",
)  # fmt: skip


@pytest.fixture(scope="module")
def findings():
    script = Path(__file__).with_name("passed_values.py")
    path = os.pathsep.join(p for p in sys.path if p)
    environment = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout.splitlines()[-1])


def test_every_case_is_run(findings):
    assert tuple(findings) == CASES


@pytest.mark.parametrize("case", CASES)
def test_a_pass_leaves_the_values_of_the_parameters(findings, case):
    """They are the same objects, where sharded batches want copies of them on other devices."""
    assert findings[case]
