"""Optional dependencies: what is missing is named with its remedy, what is broken speaks itself."""

import pytest

import spectral_core as sc
from spectral_core._extras import require

FILES = {
    "whole_extra/__init__.py": "",
    "whole_extra/part.py": "value = 5",
    "broken_extra.py": "import a_dependency_that_is_missing",
    "nameless_extra.py": "raise ModuleNotFoundError('built without it')",
    "failing_extra.py": "raise ImportError('undefined symbol')",
}


@pytest.fixture(autouse=True)
def installed(tmp_path, monkeypatch):
    """Packages that are installed, whole or broken."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)


def test_what_is_installed_is_imported():
    assert require("whole_extra.part", "plots", "A figure").value == 5


@pytest.mark.parametrize(
    ("module", "package"),
    [
        ("missing_extra", "missing_extra"),
        ("missing_extra.deep.part", "missing_extra"),
        ("whole_extra.newer", "whole_extra"),  # of an older version, that lacks the module
    ],
)
def test_what_is_missing_is_named_with_the_command_that_installs_it(module, package):
    with pytest.raises(sc.MissingExtraError) as caught:
        require(module, "plots", "A figure")
    assert str(caught.value) == (
        f"A figure needs {package}, which is not installed; run: pip install 'spectral-core[plots]'"
    )
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


@pytest.mark.parametrize(
    ("module", "error", "said"),
    [
        ("broken_extra", ModuleNotFoundError, "a_dependency_that_is_missing"),
        ("nameless_extra", ModuleNotFoundError, "built without it"),
        ("failing_extra", ImportError, "undefined symbol"),
    ],
)
def test_what_is_installed_and_broken_speaks_for_itself(module, error, said):
    with pytest.raises(error, match=said) as caught:
        require(module, "plots", "A figure")
    assert type(caught.value) is error
