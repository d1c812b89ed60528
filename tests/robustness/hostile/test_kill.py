"""Kill -9 at random moments: every run resumes to the same bytes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MOMENTS = 50


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks a warm process")
def test_killed_at_fifty_moments(tmp_path):
    script = Path(__file__).with_name("killed_measurement.py")
    done = subprocess.run(
        [sys.executable, script, tmp_path, "7", str(MOMENTS)],
        capture_output=True, text=True, timeout=600, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["runs"]
    assert len(found) == MOMENTS and all(run["same"] for run in found), done.stderr + done.stdout
    # The moments lie where they matter: before the first layer, between layers, and late.
    killed = [run for run in found if run["killed"]]
    between = {run["layers"] for run in killed if not run["saved"]}
    assert len(killed) >= MOMENTS // 2 and len(between - {0}) >= 5, done.stdout
