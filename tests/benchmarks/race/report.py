"""The page about the race: what the finished runs say, with spreads, and what has not run."""

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from .contenders import RECOMMENDED, Contender
from .plan import (
    SEEDS,
    Phase,
    at_edge,
    entered,
    final_run,
    remaining,
    trials,
    tuning_runs,
)
from .runs import Result, Results, score
from .tasks import TASKS, Text

HEAD = """# Does it train?

A race on real data at CPU scale. This page is written by `tests/benchmarks/training_race.py report` from the JSON files of the finished
runs (`docs/results/training/runs`) and claims nothing about those that are missing.

**Rules.** For every contender alike: {tuning} tuning runs on a *proxy*, a cheaper version of the task (five learning rates a factor √10 apart, two more
around the best, two other weight decays; seed 0, scored on validation data), then seeds {seeds} with the best setting, scored on test data that
tuning has not seen. The full task takes the proxy's setting; where it is marked "retuned", three learning rates around it are tried first.
Equal numbers of epochs, equal batches and starting weights for one seed, the same warm-up (5 %) and cosine. AdamW has its default betas, SGD
momentum 0.9, Muon is `torch.optim.Muon` (steps of AdamW's size) on just the matrices that Spectral Newton takes, with AdamW on the rest.
With `scale="spectral"` AdamW's part runs at a third of the learning rate. In the full tasks Spectral Newton has one δ and scale for each α, that of the best validation
score of the proxy, and of these the best four (`text`) or the best one (`images`); and the one setting that both proxies together recommend, {recommended}.
In the residual network all matrices are convolutions, so "per-type" is α = 2 and does not race there.

**Read with care.** Three seeds give a poor estimate of a spread; ± is the standard deviation over seeds, not an error of the mean. "Over Muon" and
"over AdamW" are the means of the differences at equal seeds, ± their standard deviation; negative is better. A learning rate marked * was the
lowest or highest that was tried. Seconds are those of training without evaluations, on one thread of a shared machine: wall-clock, and
processor time in brackets. Spectral Newton comes in many settings and the peers in one: the best of many looks better than it is.
"""


def write_report(phases: Sequence[Phase], results: Results, page: Path) -> None:
    """Write the page, and beside it the curves of every task that has any finals."""
    folder = page.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    sections = [
        HEAD.format(
            tuning=_most_trials(phases), seeds=", ".join(map(str, SEEDS)), recommended=RECOMMENDED
        )
    ]
    for task in dict.fromkeys(phase.task for phase in phases):
        own = [phase for phase in phases if phase.task == task]
        sections += _section(task, own, results, folder)
    sections += _missing(phases, results)
    page.write_text("\n".join(sections).rstrip() + "\n", encoding="utf-8")


def _most_trials(phases: Sequence[Phase]) -> int:
    return max(tuning_runs(phase.task) for phase in phases)


def finals(task: str, contender: Contender, results: Results) -> list[Result]:
    """Return the finished runs with the chosen setting, at most one for each seed."""
    runs = (final_run(task, contender, seed, results) for seed in SEEDS)
    found = (results.get(run) for run in runs if run is not None)
    return [result for result in found if result is not None]


def complete(task: str, contender: Contender, results: Results) -> bool:
    """Return whether all seeds of a contender have run."""
    return len(finals(task, contender, results)) == len(SEEDS)


def _section(task: str, phases: Sequence[Phase], results: Results, folder: Path) -> list[str]:
    everyone = [c for phase in phases for c in entered(phase, results)]
    run = [c for c in everyone if finals(task, c, results)]
    tuned = [c for c in everyone if c not in run and trials(task, c, results)]
    lines = [f"## {task}", "", _description(task), ""]
    if not run and not tuned:
        return [*lines, "Nothing has run yet.", ""]
    if run:
        run.sort(key=lambda c: _mean(map(score, finals(task, c, results))))
        lines += [*_table(task, run, results), "", *_verdict(task, run, results), ""]
        if _draw(task, run, results, folder / f"{task}.png"):
            lines += [f"![curves of {task}]({folder.name}/{task}.png)", ""]
    if tuned:
        lines += ["Tuning only, **validation** scores of one seed:", ""]
        lines += [*_tuning_table(task, tuned, results), ""]
    return lines


def _description(task: str) -> str:
    config = TASKS[task]
    kind = "**A proxy, for tuning.** " if not config.proxy else ""
    if isinstance(config, Text):
        text = (
            f"{kind}Tiny-shakespeare, next byte, one pass: a GPT of width {config.width} and {config.depth} blocks, {config.steps} batches of "
            f"{config.batch} × {config.length} bytes; score: loss in nats on {config.scored:,} unseen bytes."
        )
    else:
        text = (
            f"{kind}CIFAR-10 at {config.side} × {config.side}, flips and shifts, trained under bfloat16 autocast: ResNet-{6 * config.blocks + 2}, {config.epochs_} epochs of "
            f"{config.count:,} images in batches of {config.batch}; score: share of {config.scored:,} unseen images that it gets wrong."
        )
    return text + (" Retuned." if config.proxy and tuning_runs(task) else "")


def _table(task: str, contenders: Iterable[Contender], results: Results) -> list[str]:
    lines = [
        f"| contender | lr | weight decay | seeds | test {TASKS[task].score} | over Muon | over AdamW | training loss | s (CPU s) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for contender in contenders:
        done = finals(task, contender, results)
        tuned_on = task if tuning_runs(task) else TASKS[task].proxy
        star = "*" if at_edge(tuned_on, contender, results) else ""
        cells = [
            contender.name,
            f"{done[0]['lr']:.3g}{star}",
            f"{done[0]['weight_decay']:g}",
            str(len(done)),
            _spread([score(result) for result in done]),
            _over("muon", task, done, results),
            _over("adamw", task, done, results),
            _spread([result["curve"][-1]["train_loss"] for result in done]),
            f"{_mean(r['train_seconds'] for r in done):.3g} "
            f"({_mean(r['train_cpu_seconds'] for r in done):.3g})",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _over(peer: str, task: str, done: Sequence[Result], results: Results) -> str:
    """Return the differences to a peer at equal seeds."""
    by_seed = {
        result["seed"]: score(result)
        for contender in entered(Phase(task), results)
        if contender.name == peer
        for result in finals(task, contender, results)
    }
    if done[0]["contender"]["name"] == peer:
        return ""
    return _spread([score(r) - by_seed[r["seed"]] for r in done if r["seed"] in by_seed], "+")


def _tuning_table(task: str, contenders: Iterable[Contender], results: Results) -> list[str]:
    lines = [
        "| contender | runs | best lr | weight decay | score |",
        "| --- | --- | --- | --- | --- |",
    ]
    for contender in contenders:
        done = trials(task, contender, results)
        best = min(done, key=lambda run: score(results.get(run)))
        lines.append(
            f"| {contender.name} | {len(done)} of {tuning_runs(task)} | {best.lr:.3g} | "
            f"{best.weight_decay:g} | {score(results.get(best)):.4f} |"
        )
    return lines


def _verdict(task: str, ranked: Sequence[Contender], results: Results) -> list[str]:
    """Say who leads if everybody who is ranked has run all seeds; `ranked` is in order."""
    if not all(complete(task, contender, results) for contender in ranked):
        return ["No verdict: not every contender of the table has run all seeds."]
    means = {c.name: _mean(map(score, finals(task, c, results))) for c in ranked}
    peers = [c for c in ranked if c.rule != "spectral"]
    ours = [c for c in ranked if c.rule == "spectral"]
    if not peers or not ours:
        return ["No verdict: peers or settings of Spectral Newton are missing."]
    peer, own = peers[0], ours[0]
    pairs = zip(finals(task, own, results), finals(task, peer, results), strict=True)
    differences = [score(a) - score(b) for a, b in pairs]
    ahead = sum(d < 0 for d in differences)
    better = sum(means[c.name] < means[peer.name] for c in ours)
    return [
        f"Lowest mean: **{ranked[0].name}**. Of the peers {peer.name} is best; Spectral Newton's lowest mean ({own.name}) differs from it by "
        f"{_spread(differences, '+')} and is lower in {ahead} of {len(differences)} seeds. {better} of the {len(ours)} settings of Spectral "
        f"Newton have a lower mean than {peer.name}."
    ]


def _missing(phases: Sequence[Phase], results: Results) -> list[str]:
    lines = ["## What has not run", ""]
    for phase in phases:
        count = remaining(phase, results)
        what = f"{phase.task}, {'peers and ' if 1 in phase.tiers else ''}tier {phase.tiers[0]}"
        if TASKS[phase.task].proxy:
            what = phase.task
            if not entered(phase, results):
                lines.append(f"- {what}: nothing, as its proxy has tuned no contender yet.")
                continue
        known = len(entered(phase, results))
        lines.append(
            f"- {what}: {count} runs missing, {known} contenders." if count
            else f"- {what}: complete, {known} contenders."
        )  # fmt: skip
    note = 'Tier 1 are the peers and every α at δ = 0.01, tier 2 the other δ (1e-4 for α = 1.5 and 2 only), tier 3 `scale="spectral"` (α = 1, 1.5 and 2, δ = 0.1 and 0.01).'
    return [*lines, "", note]


def _draw(task: str, ranked: Sequence[Contender], results: Results, path: Path) -> bool:
    """Draw the means over seeds of peers and of the best setting of each α."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    best: dict[object, Contender] = {}
    for contender in ranked:
        best.setdefault(
            contender.alpha if contender.rule == "spectral" else contender.rule, contender
        )
    keys = ["train_loss", *dict.fromkeys(("loss", TASKS[task].score))]
    titles = {"train_loss": "training loss", "loss": "test loss", "error": "test error"}
    figure, axes = plt.subplots(1, len(keys), figsize=(5.2 * len(keys), 4.6), squeeze=False)
    palette = plt.get_cmap("tab10")
    for index, contender in enumerate(best.values()):
        done = [r for r in finals(task, contender, results) if not r["diverged"]]
        if not done:
            continue
        steps = [point["step"] for point in done[0]["curve"]]
        for axis, key in zip(axes[0], keys, strict=True):
            values = [[point[key] for point in result["curve"]] for result in done]
            axis.plot(
                steps,
                [_mean(column) for column in zip(*values, strict=True)],
                label=f"{contender.name} ({len(done)} seeds)",
                color=palette(index % 10),
                linestyle="-" if contender.rule == "spectral" else "--",
                marker=".",
            )
    for axis, key in zip(axes[0], keys, strict=True):
        axis.set(title=f"{task}: {titles[key]}", xlabel="step", yscale="log")
        axis.yaxis.set_major_formatter("{x:.2f}")
        axis.yaxis.set_minor_formatter("{x:.2f}")
        axis.grid(alpha=0.3, which="both")
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


def _spread(values: Sequence[float | None], sign: str = "") -> str:
    """Return mean ± standard deviation, the mean alone of one value, and say what diverged."""
    finite = [v for v in values if v is not None and abs(v) != float("inf")]
    lost = f" ({len(values) - len(finite)} diverged)" if len(finite) < len(values) else ""
    if not finite:
        return lost.strip(" ()")
    text = f"{statistics.fmean(finite):{sign}.4f}"
    if len(finite) > 1:
        text += f" ± {statistics.stdev(finite):.4f}"
    return text + lost
