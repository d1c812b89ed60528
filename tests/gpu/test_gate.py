"""The gate's own ways to fail: nothing to run on, nothing run, a part that fails, a stop, a dry page."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import gate
import gate_environment
import gate_jobs
import pytest
import report
from gate_jobs import Job, jobs_of, run_jobs
from gate_verdict import judge, read_lines
from harness import Sections, end_line, interleaved, print_figure, read_figures

RUN = Path(gate.__file__).parent / "run.sh"
USABLE = {"usable": True, "sentence": "1.0 on a GPU."}
ABSENT = {"usable": False, "sentence": "is not installed; its tests do not run."}


def line(framework, test, outcome="passed", **more):
    return {"framework": framework, "test": test, "outcome": outcome, **more}


@pytest.mark.parametrize(
    ("lines", "dry", "holds"),
    [
        ([line("torch", "a", on_gpu=True)], False, True),
        ([], False, False),
        ([line("torch", "a", on_gpu=False)], False, False),  # ran, but on no GPU
        ([line("torch", "a", "skipped", reason="needs a GPU")], False, False),
        ([line("jax", "a", on_gpu=True)], False, False),  # of a framework that is not there
        ([line("torch", "a", "failed", on_gpu=True)], False, False),
        ([line("torch", "a", "failed", on_gpu=True), line("torch", "a", on_gpu=True)], False, True),
        ([line("torch", "a")], True, True),
        ([line("torch", "a", "skipped", reason="needs a GPU")], True, False),
    ],
)
def test_what_holds(lines, dry, holds):
    verdict = judge(lines, {"torch": USABLE, "jax": ABSENT}, dry)
    assert verdict.holds == holds
    assert any("jax: is not installed" in sentence for sentence in verdict.sentences)


def test_one_framework_without_tests_is_enough_to_fail():
    lines = [line("torch", "a", on_gpu=True)]
    verdict = judge(lines, {"torch": USABLE, "cupy": USABLE}, False)
    assert not verdict.holds
    assert "cupy: 0 tests ran on the GPU; which is none" in " ".join(verdict.sentences)
    assert "In all 1 tests ran on the GPU" in verdict.sentences[-1]


def job(name, code):
    return Job(name, [sys.executable, "-c", code])


def test_one_job_fails_and_the_others_go_on(tmp_path):
    finished = []
    jobs = [job("one", "raise SystemExit(3)"), job("two", "print('well')")]
    found = run_jobs(jobs, 60, True, tmp_path / "log.txt", finished.extend)
    assert finished == ["two"] and len(found) == 1 and "one: failed with status 3" in found[0]
    assert "well" in (tmp_path / "log.txt").read_text()


def test_a_job_ends_with_its_time_and_what_it_started_too(tmp_path):
    child = tmp_path / "child"
    code = (
        "import subprocess, sys, time\n"
        f"p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(child)!r}, 'w').write(str(p.pid))\n"
        "time.sleep(60)"
    )
    began = time.monotonic()
    found = run_jobs([job("slow", code), job("next", "")], 3, True, tmp_path / "log", list)
    assert time.monotonic() - began < 30
    assert all("its time was up" in sentence for sentence in found) and len(found) == 2
    time.sleep(0.2)
    status = Path(f"/proc/{child.read_text()}/status")
    assert not status.exists() or "zombie" in status.read_text()


def test_told_to_end_it_takes_its_jobs_along(tmp_path):
    script = tmp_path / "gate_with_one_job.py"
    pid = tmp_path / "pid"
    slow = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    script.write_text(
        f"import sys, signal\nsys.path.insert(0, {str(RUN.parent)!r})\n"
        "from pathlib import Path\nimport gate\nfrom gate_jobs import Job, run_jobs\n"
        "signal.signal(signal.SIGTERM, gate.stop)\n"
        f"jobs = [Job('slow', [sys.executable, '-c', {slow!r}]), Job('next', ['false'])]\n"
        f"run_jobs(jobs, 60, True, Path({str(tmp_path / 'log')!r}), list)\n"
    )
    gate_process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True
    )
    for _ in range(300):
        if pid.exists() and pid.read_text():
            break
        time.sleep(0.1)
    gate_process.terminate()
    out, _ = gate_process.communicate(timeout=30)
    assert gate_process.returncode == 128 + 15 and "its time was up" in out
    status = Path(f"/proc/{pid.read_text()}/status")
    assert not status.exists() or "zombie" in status.read_text()


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """The gate on a machine with PyTorch, whose jobs are as told."""
    found = {"torch": dict(USABLE), "jax": dict(ABSENT), "cupy": dict(ABSENT)}
    described = {"dry": False, "commit": "abc", "frameworks": found}
    monkeypatch.setattr(gate, "reason_not_to_begin", lambda: None)
    monkeypatch.setattr(gate, "probe_all", lambda dry: found)
    monkeypatch.setattr(gate, "describe", lambda f, dry, root: described | {"dry": dry})
    jobs = {part: [job(f"{part} job", "")] for part in gate_jobs.PARTS}
    monkeypatch.setattr(gate, "jobs_of", lambda part, *rest: jobs[part])
    (tmp_path / "tests.jsonl").write_text(json.dumps(line("torch", "a", on_gpu=True)) + "\n")

    def call(*more):
        monkeypatch.setattr(sys, "argv", ["run.sh", "--output", str(tmp_path), *more])
        return gate.main()

    call.jobs, call.found, call.folder = jobs, found, tmp_path
    return call


def test_it_passes_and_a_second_call_has_nothing_to_do(machine, capsys):
    assert machine() == 0
    assert "tests: 1 of 1 jobs to do" in capsys.readouterr().out
    assert machine() == 0
    assert "tests: 0 of 1 jobs to do" in capsys.readouterr().out


def test_it_goes_on_where_it_was_stopped(machine, capsys):
    machine.jobs["measure"] = [
        job("measure early", ""),
        job("measure late", "raise SystemExit(75)"),
    ]
    assert machine() == 1
    assert "measure late: its time was up" in capsys.readouterr().out
    machine.jobs["measure"][1] = job("measure late", "")
    assert machine("--part", "measure") == 0
    assert "measure: 1 of 2 jobs to do" in capsys.readouterr().out


def test_a_part_that_fails_does_not_stop_the_next(machine, capsys):
    machine.jobs["measure"] = [job("measure job", "raise RuntimeError('no luck')")]
    assert machine() == 1
    out = capsys.readouterr().out
    assert "no luck" in out and "step job: done" in out and "train job: done" in out


def test_it_does_not_pass_by_skipping(machine, capsys):
    (machine.folder / "tests.jsonl").write_text("")
    assert machine() == 1
    assert "which is none" in capsys.readouterr().out


def test_no_time_is_no_pass(machine, capsys):
    assert machine("--minutes", "0.01") == 1
    assert "no time was left" in capsys.readouterr().out


def test_it_begins_nowhere_without_a_framework(machine, capsys):
    machine.found["torch"]["usable"] = False
    assert machine() == 2
    assert "There is no framework" in capsys.readouterr().err


def test_a_dry_folder_is_not_gone_on_with(machine, capsys):
    assert machine("--dry") == 0
    assert machine() == 2
    assert "holds results of a dry run" in capsys.readouterr().err


def test_benchmarks_need_pytorch(machine, monkeypatch, tmp_path):
    assert jobs_of("measure", {"torch": ABSENT, "jax": USABLE}, False, tmp_path) == []
    monkeypatch.setattr(gate, "jobs_of", lambda part, *rest: [])
    assert machine("--part", "measure") == 1


def test_a_missing_library_is_named_with_the_remedy(monkeypatch):
    own = gate_environment.importlib.util.find_spec
    gone = "array_api_compat"
    monkeypatch.setattr(
        gate_environment.importlib.util, "find_spec", lambda n: None if n == gone else own(n)
    )
    assert "--target FOLDER array-api-compat" in gate_environment.reason_not_to_begin()


def test_a_framework_that_does_not_start_is_said_to_be_broken(monkeypatch):
    monkeypatch.setitem(gate_environment._PROBES, "torch", "raise OSError('libcuda is not there')")
    monkeypatch.setattr(
        gate_environment.importlib.util, "find_spec", lambda n: n if n == "torch" else None
    )
    found = gate_environment.probe_all(False)
    assert "libcuda is not there" in found["torch"]["sentence"] and not found["torch"]["usable"]
    assert "is not installed" in found["jax"]["sentence"]


def test_the_script_says_that_there_is_no_python(tmp_path):
    (tmp_path / "dirname").symlink_to("/usr/bin/dirname")
    done = subprocess.run(
        ["/bin/bash", str(RUN)], env={"PATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 2 and "There is no Python" in done.stderr
    assert os.access(RUN, os.X_OK)


def test_budgets_are_less_than_nine_minutes():
    assert sum(gate_jobs.PARTS.values()) < 9 * 60 - 30
    assert gate.MINUTES < 9


def test_every_file_of_core_tests_with_namespaces_is_in_the_matrix(tmp_path):
    found = dict.fromkeys(("torch", "jax", "cupy"), USABLE)
    commands = [" ".join(own.command) for own in jobs_of("tests", found, False, tmp_path)]
    for framework in found:
        for path in gate_jobs.core_files():
            assert any(f"--framework {framework} " in c and c.endswith(str(path)) for c in commands)
    assert len(gate_jobs.core_files()) > 8


# Benchmarks that go on


def test_sections_run_once_and_survive_a_line_that_was_cut_off(tmp_path):
    path, ran = tmp_path / "figures.jsonl", []

    def section(name):
        ran.append(name)
        print_figure("one", case=name)

    sections = Sections(path, None)
    sections.run("a", lambda: section("a"))
    with path.open("a") as file:
        file.write('{"figure": "section fini')
    sections = Sections(path, None)
    for name in "ab":
        sections.run(name, lambda name=name: section(name))
    sections.finish()
    assert ran == ["a", "b"]
    assert [f["section"] for f in read_figures(path) if f["figure"] == "one"] == ["a", "b"]


def test_tests_that_go_on_leave_a_line_that_was_cut_off_alone(tmp_path):
    path = tmp_path / "tests.jsonl"
    path.write_text(json.dumps(line("torch", "a")) + '\n{"job": "b", "fra')
    end_line(path)
    with path.open("a") as file:
        file.write(json.dumps(line("torch", "c")) + "\n")
    assert [own["test"] for own in read_lines(path)] == ["a", "c"]


def test_a_section_that_fails_is_passed_and_ends_in_a_status(tmp_path):
    sections, ran = Sections(tmp_path / "figures.jsonl", None), []
    sections.run("bad", lambda: 1 / 0)
    sections.run("good", lambda: ran.append(1))
    with pytest.raises(SystemExit) as status:
        sections.finish()
    assert ran == [1] and status.value.code == 1
    assert any(
        "division by zero" in str(f.get("reason")) for f in read_figures(tmp_path / "figures.jsonl")
    )


def test_time_that_is_up_begins_nothing(tmp_path):
    sections = Sections(tmp_path / "figures.jsonl", -1.0)
    sections.run("late", lambda: pytest.fail("began"))
    with pytest.raises(SystemExit) as status:
        sections.finish()
    assert status.value.code == gate_jobs.TIME_WAS_UP


def test_runs_take_turns_and_a_timer_is_used():
    seen = []
    runs = {name: lambda name=name: seen.append(name) for name in "ab"}
    times = interleaved(runs, 2, timer=lambda run: (run(), 7.0)[1], warm_up=1)
    assert "".join(seen) == "ab" + "abab" and times == {"a": [7.0, 7.0], "b": [7.0, 7.0]}


# The page


@pytest.fixture
def results(tmp_path):
    own = {"torch": USABLE | {"version": "2.0"}}
    environment = {
        "dry": True, "device": "CPU", "driver": None, "frameworks": own, "python": "3", "cores": 1,
        "date": "2026-01-01", "commit": "abc",
    }  # fmt: skip
    (tmp_path / "environment.json").write_text(json.dumps(environment))
    (tmp_path / "tests.jsonl").write_text(json.dumps(line("torch", "a")) + "\n")
    muon = {"figure": "precondition", "section": "p", "case": "4×4", "contender": "muon",
            "milliseconds": 2.0, "over_muon": 1.0, "error": 0.3, "kernels": None}  # fmt: skip
    ours = muon | {"contender": "ours 2", "over_muon": 3.25, "kernels": 40}
    lost = {
        "figure": "precondition",
        "section": "p",
        "case": "4×4",
        "contender": "x",
        "fails": "no",
    }
    lines = [muon, ours | {"over_muon": 9.0}, ours, lost]
    (tmp_path / "step.jsonl").write_text("".join(json.dumps(own) + "\n" for own in lines))
    return tmp_path


def test_a_dry_run_makes_no_page_of_results(results, capsys, monkeypatch):
    assert report.PAGE.parts[-3:] == ("docs", "results", "gpu.md")
    monkeypatch.setattr(report, "PAGE", results / "gpu.md")
    for arguments in ([], ["--page", str(results / "gpu.md")]):
        assert report.main([str(results), *arguments]) == 2
        assert "say nothing of a GPU" in capsys.readouterr().err
    assert not (results / "gpu.md").exists()


def test_a_page_of_a_dry_run_says_so_first(results):
    page = results / "page.md"
    assert report.main([str(results), "--page", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("# DRY RUN ON A CPU")
    assert "| ours 2 | 3.25 (3.0e-01) [40] |" in text and "9" not in text.split("ours 2")[1][:40]
    assert "| x | does not run |" in text and "- x, 4×4: no" in text
    assert "step, p: was not finished" in text


def test_a_page_of_a_gpu_names_it(results):
    path = results / "environment.json"
    environment = json.loads(path.read_text()) | {"dry": False, "device": "NVIDIA X"}
    path.write_text(json.dumps(environment))
    page = results / "page.md"
    assert report.main([str(results), "--page", str(page)]) == 0
    assert page.read_text().startswith("# On a GPU\n\nNVIDIA X; torch 2.0")
    assert "torch: 0 tests ran on the GPU" in page.read_text()


def test_the_page_of_results_is_listed_once(results, monkeypatch):
    path = results / "environment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dry": False}))
    index = results / "index.md"
    index.write_text(report.INDEX.read_text("utf-8").replace("\ngpu\n", "\n"), "utf-8")
    monkeypatch.setattr(report, "PAGE", results / "gpu.md")
    monkeypatch.setattr(report, "INDEX", index)
    for _ in range(2):
        assert report.main([str(results)]) == 0
    assert index.read_text("utf-8").endswith("\ngpu\n```\n")
    assert index.read_text("utf-8").count("\ngpu\n") == 1


def test_a_folder_without_a_run_is_refused(tmp_path):
    assert report.main([str(tmp_path)]) == 2
    assert read_lines(tmp_path / "tests.jsonl") == []
