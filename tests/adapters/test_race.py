"""The training race's bookkeeping, with a made-up score instead of training."""

import json
import statistics
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from race.contenders import MuonAndAdamW, contenders, schedule
from race.networks import GPT, ResNet
from race.plan import QUICK, SEEDS, TRIALS, Phase, chosen, entered, missing, next_run, remaining
from race.report import complete, finals, write_report
from race.runner import race
from race.runs import Results, score
from race.tasks import TASKS

from spectral_adapters.torch_optim import SpectralNewton

PHASE = Phase("text-quick")


def made_up(run, seconds=1.0):
    """Lowest loss at twice the middle learning rate and the second weight decay."""
    loss = 2 + abs(run.lr / run.contender.lr - 2) + (run.weight_decay != 0) + 0.01 * run.seed
    return {
        "task": TASKS[run.task].config(), "contender": asdict(run.contender), "lr": run.lr,
        "weight_decay": run.weight_decay, "seed": run.seed, "split": run.split, "diverged": False,
        "curve": [{"step": 1, "train_loss": loss, "loss": loss, "error": loss / 10}],
        "train_seconds": seconds, "train_cpu_seconds": seconds,
    }  # fmt: skip


def test_finished_runs_are_skipped_and_the_race_goes_on_where_it_stopped(tmp_path):
    seen = []

    def stops_after_seven(run):
        if len(seen) == 7:
            raise KeyboardInterrupt
        seen.append(run)
        return made_up(run)

    with pytest.raises(KeyboardInterrupt):
        race([PHASE], Results(tmp_path), train=stops_after_seven)
    assert len(list(tmp_path.iterdir())) == 7  # the eighth has left nothing
    results = Results(tmp_path)
    done = race([PHASE], results, train=lambda run: seen.append(run) or made_up(run))
    count = len(entered(PHASE, results)) * (TRIALS + len(SEEDS))
    assert done == count - 7
    assert len({run.file_name for run in seen}) == len(seen) == count
    assert next_run([PHASE], results) is None and remaining(PHASE, results) == 0
    assert race([PHASE], Results(tmp_path), train=pytest.fail) == 0


def test_contenders_take_turns_so_no_one_is_ahead_by_more_than_one_run(tmp_path):
    results = Results(tmp_path)
    counts = dict.fromkeys(entered(PHASE, results), 0)
    while (run := next_run([PHASE], results)) is not None:
        results.save(run, made_up(run))
        counts[run.contender] += 1
        assert max(counts.values()) - min(counts.values()) <= 1
    assert set(counts.values()) == {TRIALS + len(SEEDS)}


def test_tuning_finds_the_best_setting_and_only_fresh_seeds_see_test_data(tmp_path):
    results = Results(tmp_path)
    race([PHASE], results, train=made_up)
    for contender in entered(PHASE, results):
        best = chosen(PHASE.task, contender, results)
        assert best.lr == pytest.approx(contender.lr * 10**0.25, rel=0.01)  # nearest to 2
        assert best.weight_decay == 0
    for result in results.all():
        assert result["split"] == ("valid" if result["seed"] == 0 else "test")


def test_a_best_rate_at_the_end_of_the_range_is_followed_outwards(tmp_path):
    results = Results(tmp_path)

    def higher_is_better(run):
        result = made_up(run)
        result["curve"][-1]["loss"] = 1 / run.lr
        return result

    race([PHASE], results, train=higher_is_better)
    for contender in entered(PHASE, results):
        assert chosen(PHASE.task, contender, results).lr == pytest.approx(
            contender.lr * 10**1.5, rel=0.01
        )


def test_a_diverged_run_never_wins(tmp_path):
    results = Results(tmp_path)

    def fragile(run):
        result = made_up(run)
        if run.lr > run.contender.lr:
            result |= {"diverged": True, "curve": [{"step": 1, "train_loss": None}]}
        return result

    race([PHASE], results, train=fragile)
    for contender in entered(PHASE, results):
        assert chosen(PHASE.task, contender, results).lr <= contender.lr
        assert all(score(r) < 10 for r in finals(PHASE.task, contender, results))


def test_the_report_counts_seeds_and_claims_nothing_that_has_not_run(tmp_path):
    pytest.importorskip("matplotlib")
    folder, page = tmp_path / "training" / "runs", tmp_path / "training.md"
    results = Results(folder)
    write_report(QUICK, results, page)
    assert page.read_text().count("Nothing has run yet.") == 2
    everyone = entered(PHASE, results)
    tuning = len(everyone) * TRIALS
    for _ in range(tuning + 2 * len(everyone) - 1):  # the last lacks its second seed
        run = next_run([PHASE], results)
        results.save(run, made_up(run))
    write_report(QUICK, results, page)
    text = page.read_text()
    seeds = [
        line.split("|")[4].strip()
        for line in text.splitlines()
        if "± 0.0" in line or "| 1 |" in line
    ]
    assert sorted(seeds) == ["1"] + ["2"] * (len(everyone) - 1)
    assert "No verdict" in text and "Lowest mean" not in text
    assert f"text-quick, peers and tier 1: {len(everyone) + 1} runs missing" in text
    assert not any(complete(PHASE.task, c, results) for c in everyone)
    race([PHASE], results, train=made_up)
    write_report(QUICK, results, page)
    text = page.read_text()
    assert "Lowest mean" in text and "text-quick, peers and tier 1: complete" in text
    mean = statistics.fmean(score(r) for r in finals(PHASE.task, everyone[0], results))
    assert f"| 3 | {mean:.4f} ± 0.0100 |" in text  # seeds 1, 2, 3


def test_results_of_a_task_that_has_changed_are_refused(tmp_path):
    results = Results(tmp_path)
    run = next(missing(PHASE, results))
    result = made_up(run)
    results.save(run, result | {"task": result["task"] | {"steps": 9}})
    with pytest.raises(ValueError, match="another one when this ran"):
        Results(tmp_path)


def test_files_are_strict_json(tmp_path):
    results = Results(tmp_path)
    run = next(missing(PHASE, results))
    results.save(run, made_up(run))
    stored = json.loads((tmp_path / run.file_name).read_text())
    assert stored == json.loads(json.dumps(made_up(run)))


@pytest.mark.parametrize("model", [GPT(7, 8, 8, 1, 2), ResNet(1)], ids=["gpt", "resnet"])
def test_muon_takes_the_matrices_that_spectral_newton_takes(model):
    muon = MuonAndAdamW(model, lr=0.1, weight_decay=0.0)
    ours = SpectralNewton(model, lr=0.1)
    spectral = [p for g in ours.param_groups if g["rule"] == "spectral" for p in g["params"]]
    views = [p for g in muon.param_groups[:1] for p in g["params"]]
    assert {v.data_ptr() for v in views} == {p.data_ptr() for p in spectral}
    before = [p.detach().clone() for p in spectral]
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    muon.step()
    for p, old in zip(spectral, before, strict=True):  # orthogonal, RMS 0.2 for equal values
        assert 0.1 * 0.1 < float((p.detach() - old).square().mean().sqrt()) < 0.1 * 0.3


def test_the_schedule_climbs_for_a_twentieth_and_falls_to_nothing():
    factors = [schedule(step, 100) for step in range(100)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[5:] == sorted(factors[5:], reverse=True) and 0 < factors[-1] < 0.01


def test_all_that_was_asked_for_takes_part():
    names = {c.name for c in contenders()}
    assert {"adamw", "sgd", "muon"} < names and len(names) == 3 + 7 * 4 + 2 + 3 * 2
