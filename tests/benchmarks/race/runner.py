"""Do the missing runs, one after the other."""

import time
from collections.abc import Callable, Sequence

from .plan import Phase, next_run
from .runs import Result, Results, Run, score, train


def race(
    phases: Sequence[Phase],
    results: Results,
    until: float | None = None,
    train: Callable[[Run], Result] = train,
) -> int:
    """Do missing runs in the order of the plan until a time; return how many were done."""
    done = 0
    while (until is None or time.time() < until) and (run := next_run(phases, results)):
        result = train(run)
        results.save(run, result)
        done += 1
        print(
            f"{time.strftime('%H:%M:%S')} {run.file_name} {score(result):.4f} "
            f"{result['train_seconds']:.1f} s",
            flush=True,
        )
    return done
