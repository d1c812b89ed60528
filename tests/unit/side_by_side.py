"""Processes of one run, side by side on this machine; each ends, with its stack, if it hangs."""

import json
import os
import subprocess
import sys

# Before anything else is imported: also what never gets to run must end.
BOUNDED = """
import faulthandler, runpy, sys
faulthandler.dump_traceback_later(200, exit=True)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_side_by_side(script, arguments, size=2, **env):
    """Run a script as so many processes, and return what each prints last, read as JSON.

    Each gets its number, their number and the arguments.
    """
    started = [
        subprocess.Popen(
            [sys.executable, "-c", BOUNDED, script, str(number), str(size), *arguments],
            env=os.environ | {"OMP_NUM_THREADS": "1"} | env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for number in range(size)
    ]  # fmt: skip
    try:
        done = [process.communicate(timeout=240) for process in started]
    finally:
        for process in started:
            process.kill()
    assert not any(process.returncode for process in started), "\n".join(err for _, err in done)
    return [json.loads(out.splitlines()[-1]) for out, _ in done]
