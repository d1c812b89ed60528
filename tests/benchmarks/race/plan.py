"""Which run comes next, from the runs that are finished: stop at any time and the race is balanced.

A phase is a task and a set of contenders that take turns: first trial of each, second of each, …

*Tuning*, of seed 0 on validation data, is `TRIALS` runs for every contender alike: five learning
rates, a factor √10 apart, with the first weight decay; two more beside the best (√3 below and above,
or √3 and 3 outwards from the end of the range); then the two other weight decays.
*Seeds* 1, 2, 3 follow with the best of these, on test data.

The full tasks take the settings of their proxy. Of Spectral Newton only one δ and scale for each α
goes on: the best by the proxy's validation score, so that the seeds that decide are fresh; of
these the best few, and the setting that is recommended for all tasks alike.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .contenders import RECOMMENDED, Contender, contenders
from .runs import Results, Run, score
from .tasks import TASKS

SEEDS = (1, 2, 3)
SPAN = (0, -1, 1, -2, 2)  # the middle first
STEP = 10**0.5
TRIALS = len(SPAN) + 2 + 2


@dataclass(frozen=True)
class Phase:
    """A task, with contenders of these tiers; of a full task those that its proxy has tuned."""

    task: str
    tiers: tuple[int, ...] = (1,)


PHASES = (
    Phase("text-proxy"), Phase("images-proxy"),
    Phase("text-proxy", (2,)), Phase("images-proxy", (2,)),
    Phase("text-proxy", (3,)), Phase("images-proxy", (3,)),
    Phase("text"), Phase("images"),
)  # fmt: skip
QUICK = (Phase("text-quick"), Phase("images-quick"))


def next_run(phases: Sequence[Phase], results: Results) -> Run | None:
    """Return the first run of the phases that is not finished, or None."""
    return next((run for phase in phases for run in missing(phase, results)), None)


def missing(phase: Phase, results: Results) -> Iterator[Run]:
    """Yield unfinished runs of a phase, each as far as finished runs determine it."""
    entrants = entered(phase, results)
    for trial in range(tuning_runs(phase.task)):
        for contender in entrants:
            run = tuning_run(phase.task, contender, trial, results)
            if run is not None and results.get(run) is None:
                yield run
    for seed in SEEDS:
        for contender in entrants:
            run = final_run(phase.task, contender, seed, results)
            if run is not None and results.get(run) is None:
                yield run


def remaining(phase: Phase, results: Results) -> int:
    """Return how many runs a phase still needs, counting those not determined yet."""
    count = 0
    for contender in entered(phase, results):
        count += tuning_runs(phase.task) - len(trials(phase.task, contender, results))
        runs = [final_run(phase.task, contender, seed, results) for seed in SEEDS]
        count += sum(run is None or results.get(run) is None for run in runs)
    return count


def entered(phase: Phase, results: Results) -> list[Contender]:
    """Return the contenders of a phase in their order; of equal ones only the first."""
    proxy = TASKS[phase.task].proxy
    # All matrices of the residual network are convolutions, whose α by type is 2.
    images = phase.task.startswith("images")
    everyone = [c for c in contenders() if not (images and c.alpha == "per-type")]
    if not proxy:
        return [c for c in everyone if c.tier in phase.tiers]
    tuned = [c for c in everyone if len(trials(proxy, c, results)) == TRIALS]
    peers = [c for c in tuned if c.rule != "spectral"]
    best: dict[float | str | None, Contender] = {}
    for contender in (c for c in tuned if c.rule == "spectral"):
        held = best.setdefault(contender.alpha, contender)
        if _tuned_score(proxy, contender, results) < _tuned_score(proxy, held, results):
            best[contender.alpha] = contender
    ours = sorted(best.values(), key=lambda c: _tuned_score(proxy, c, results))
    ours = ours[: TASKS[phase.task].entrants]
    return peers + ours + [c for c in tuned if c.name == RECOMMENDED and c not in ours]


def tuning_runs(task: str) -> int:
    """Return how many runs tune one contender on a task."""
    if not TASKS[task].proxy:
        return TRIALS
    retune = TASKS[task].retune
    return len(retune) if len(retune) > 1 else 0


def trials(task: str, contender: Contender, results: Results) -> list[Run]:
    """Return the finished tuning runs of a contender."""
    found: list[Run] = []
    for trial in range(tuning_runs(task)):
        run = tuning_run(task, contender, trial, results)
        if run is None or results.get(run) is None:
            break
        found.append(run)
    return found


def tuning_run(task: str, contender: Contender, trial: int, results: Results) -> Run | None:
    """Return a trial, or None if it depends on runs that are not finished."""
    if TASKS[task].proxy:
        start = chosen(TASKS[task].proxy, contender, results)
        if start is None:
            return None
        return Run(task, contender, start.lr * TASKS[task].retune[trial], start.weight_decay, 0)

    def run(exponent: float, weight_decay: float) -> Run:
        lr = float(f"{contender.lr * STEP**exponent:.3g}")
        return Run(task, contender, lr, weight_decay, 0)

    first = contender.weight_decays[0]
    if trial < len(SPAN):
        return run(SPAN[trial], first)
    exponents = list(map(float, SPAN))
    middle = _best_exponent(exponents, first, run, results)
    if middle is None:
        return None
    outwards = (middle > 0) - (middle < 0) if abs(middle) == max(SPAN) else 0
    beside = (0.5 * outwards, 1.0 * outwards) if outwards else (-0.5, 0.5)
    if trial < len(SPAN) + 2:
        return run(middle + beside[trial - len(SPAN)], first)
    best = _best_exponent([*exponents, *(middle + b for b in beside)], first, run, results)
    return None if best is None else run(best, contender.weight_decays[trial - len(SPAN) - 1])


def _best_exponent(
    exponents: Sequence[float],
    weight_decay: float,
    run: Callable[[float, float], Run],
    results: Results,
) -> float | None:
    tried = [(results.get(run(exponent, weight_decay)), exponent) for exponent in exponents]
    if any(result is None for result, _ in tried):
        return None
    return min(tried, key=lambda pair: score(pair[0]))[1]


def chosen(task: str, contender: Contender, results: Results) -> Run | None:
    """Return the best trial of a tuned contender, or None while trials are missing."""
    tried = trials(task, contender, results)
    if len(tried) < tuning_runs(task):
        return None
    if not tried:
        return chosen(TASKS[task].proxy, contender, results)
    return min(tried, key=lambda run: score(results.get(run)))


def at_edge(task: str, contender: Contender, results: Results) -> bool:
    """Return whether the best learning rate is the lowest or highest that was tried."""
    best = chosen(task, contender, results)
    rates = [run.lr for run in trials(task, contender, results)]
    return best is not None and len(rates) > 1 and best.lr in (min(rates), max(rates))


def final_run(task: str, contender: Contender, seed: int, results: Results) -> Run | None:
    """Return a run of the chosen settings with a fresh seed, or None while they are unknown."""
    best = chosen(task, contender, results)
    return None if best is None else Run(task, contender, best.lr, best.weight_decay, seed)


def _tuned_score(task: str, contender: Contender, results: Results) -> float:
    best = chosen(task, contender, results)
    return score(results.get(best)) if best is not None else float("inf")
