"""The demo, with less training."""

import pytest

import spectral_core as sc
from spectral_adapters.demo.run import find_sentences, run_demo

pytest.importorskip("sklearn")


def test_demo(tmp_path):
    told = []
    runs = run_demo(
        tmp_path, epochs=2, samples=64, top_k=4, progress=False, progress_callback=told.append
    )
    assert [run.name for run in runs] == ["cnn", "transformer"] and len(told) == 4
    for run in runs:
        assert run.test_accuracy > 0.3  # a tenth would be chance
        saved = sc.SpectralReport.load(tmp_path / run.name / "report.json")
        assert saved.to_dict() == run.report.to_dict()
        assert all(path.is_file() for path in run.files)
    assert {s.kind for s in runs[0].report.values()} == {"conv2d", "linear"}
    assert {s.kind for s in runs[1].report.values()} == {"linear", "attention"}
    sentences = find_sentences(runs)
    assert len(sentences) == 3 and all(s.endswith(".") and "nan" not in s for s in sentences)
