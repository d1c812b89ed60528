"""What `precondition_method` tells is what `precondition` does."""

import math
import re

import numpy as np
import pytest
from matrices import oracle, spectral_error

import spectral_core as sc
from spectral_core.preconditioning.methods.table import METHODS


def rows_of_the_table():
    """The table in the docstring of `precondition`, its lines joined."""
    lines = sc.precondition.__doc__.split("\n")
    rules = [i for i, line in enumerate(lines) if line.strip().startswith("====")]
    edges = [match.span() for match in re.finditer("=+", lines[rules[0]])]
    rows = []
    for line in lines[rules[1] + 1 : rules[2]]:
        cells = [line[start : end if end != edges[-1][1] else None].strip() for start, end in edges]
        if cells[0]:
            rows.append(cells)
        else:
            rows[-1] = [f"{old} {more}".strip() for old, more in zip(rows[-1], cells, strict=True)]
    return rows


def test_the_docstring_has_what_the_methods_say_of_themselves():
    said = [[m.name, m.serves, m.computes, m.stated_error] for m in METHODS.values()]
    assert rows_of_the_table() == said
    listed = re.search(r"method : \{(.*?)\}", sc.precondition.__doc__).group(1)
    assert listed.replace('"', "").split(", ") == ["auto", *METHODS]


@pytest.mark.parametrize("dtype", [np.float32, "float64", np.dtype("float32")])
@pytest.mark.parametrize("shape", [(12, 300), (300, 280), (3, 20, 20)])
@pytest.mark.parametrize(
    ("alpha", "damping"), [(0.0, 0.1), (1.0, 0.1), (1.5, 0.1), (2.0, 1e-3), (3.0, 0.1)]
)
def test_what_is_told_is_what_is_done(shape, dtype, alpha, damping):
    choice = sc.precondition_method(shape, dtype, alpha, damping)
    g = np.random.default_rng(0).normal(size=shape).astype(dtype)
    auto = sc.precondition(g, alpha, damping)
    np.testing.assert_array_equal(auto, sc.precondition(g, alpha, damping, method=choice.name))
    assert set(choice.reasons) == set(METHODS) - {choice.name}
    if g.ndim == 2 and choice.name not in ("closed", "shifts"):  # which add λ
        assert spectral_error(auto.astype(float), oracle(g, alpha, damping)[0]) <= 10 * choice.error


@pytest.mark.parametrize("method", METHODS)
def test_what_is_refused_is_refused_in_the_same_words(method):
    refused = 0
    for alpha, damping, mode in [
        (2.0, 0.1, "spectral"),
        (1.0, 0.0, "spectral"),
        (0.7, 1e-9, "spectral"),
        (2.0, 0.1, "absolute"),
    ]:
        for tolerance in (None, 1e-6):
            options = {"damping_mode": mode, "tolerance": tolerance}
            said = sc.precondition_method((8, 8), "float32", alpha, damping, **options).reasons
            try:
                sc.precondition(
                    np.eye(8, dtype=np.float32), alpha, damping, method=method, **options
                )
            except sc.InputError as error:
                refused += 1
                if method in said:  # "auto" may take what misses the tolerance, if all do
                    assert str(error) == f"method: {method!r} {said[method]}"
                with pytest.raises(sc.InputError, match=re.escape(str(error))):
                    sc.precondition_method(
                        (8, 8), "float32", alpha, damping, method=method, **options
                    )
    assert refused


def test_errors_that_depend_on_the_matrix_are_nan():
    for choice in (
        sc.precondition_method((9, 9), "float32", 2.0, damping_mode="absolute"),
        sc.precondition_method((9, 9), "float32", 1.0, 0.0),
        sc.precondition_method((9, 9), "float32", np.asarray(1.0)),
    ):
        assert choice.name == "svd" and math.isnan(choice.error)
        assert "depends on the matrix" in str(choice)


def test_a_choice_in_sentences():
    reasons = {"eigh": "takes longer than 'svd'.", "closed": "is for other exponents."}
    assert str(sc.MethodChoice("svd", 2e-6, reasons)) == (
        "'svd' is taken, with an error of 2.0e-06 at most.\n"
        "'eigh' takes longer than 'svd'.\n"
        "'closed' is for other exponents."
    )
    assert str(sc.MethodChoice("svd", math.nan, {})) == (
        "'svd' is taken, with an error that depends on the matrix."
    )


def test_why_auto_leaves_what_serves():
    def reasons(alpha, damping=0.1, **options):
        return sc.precondition_method((64, 64), "float32", alpha, damping, **options).reasons

    nobody_knows = "has an error that nobody knows beforehand, as "
    assert reasons(np.asarray(1.0))["eigh"] == nobody_knows + "alpha or damping is an array."
    absolute = reasons(2.0, damping_mode="absolute")["eigh"]
    assert absolute == nobody_knows + "the damping is absolute."
    squared = r"loses \d\.\de-0\d by squaring, above the tolerance 0\.01\."
    assert re.fullmatch(squared, reasons(2.0, 1e-5)["eigh"])
    assert reasons(1.0, 0.0)["polar"] == "takes as long as 'svd' on a CPU."
    assert reasons(1.0)["polynomial"] == "is taken with precision='bfloat16' alone."


def test_a_decomposition_errs_by_the_slope_of_t():
    """T(r) = r / (r + 0.1) rises by 10 at 0, to 1 / 1.1 at 1; σ errs by ε √rows."""
    double = 2.0**-52
    choice = sc.precondition_method((64, 100), "float64", 1.0, method="svd")
    assert choice.error == pytest.approx((1 + 11) * 8 * double, rel=1e-6)
    linear = sc.precondition_method((64, 100), "float64", 0.0, method="svd")
    assert linear.error == 32 * double  # the least that any method promises


def test_shapes():
    empty = sc.precondition_method((0, 4, 5), "float32", 2.0)
    assert empty == sc.precondition_method((4, 5), "float32", 2.0)
    assert sc.precondition(np.zeros((0, 4, 5), np.float32), 2.0).shape == (0, 4, 5)
    for shape in ((-1, 4), (4.0, 4), 4, "44"):
        with pytest.raises(sc.InputError, match="shape: .* is no tuple of lengths; pass that of"):
            sc.precondition_method(shape, "float32", 2.0)
    with pytest.raises(sc.InputError, match=r"shape: has shape \(\); pass a matrix"):
        sc.precondition_method((), "float32", 2.0)
    with pytest.raises(sc.InputError, match="tolerance: "):
        sc.precondition_method((4, 4), "float32", 2.0, tolerance=0.0)


def test_the_devices_of_jax_by_their_own_names():
    on_cpu = sc.precondition_method((300, 300), "float32", 1.0)
    assert on_cpu == sc.precondition_method((300, 300), "float32", 1.0, device="TFRT_CPU_0")
    assert on_cpu != sc.precondition_method((300, 300), "float32", 1.0, device="cuda:0")


def test_half_precision_counts_as_float32_and_products_in_bfloat16_cost():
    full = sc.precondition_method((64, 64), "float32", 2.0)
    assert sc.precondition_method((64, 64), "bfloat16", 2.0) == full
    low = sc.precondition_method((64, 64), "bfloat16", 2.0, precision="bfloat16")
    assert low.name == "polynomial" and 0.05 < low.error < 0.3
    assert low.reasons["eigh"] == "does not multiply in bfloat16."
    assert sc.precondition_method((64, 64), "float32", 0.0, precision="bfloat16").name == "closed"


def test_a_kernel_is_told_of_by_its_matrices():
    choice = sc.precondition_method((64, 3, 7, 7), "float32", 1.0, matrices="conv")
    assert choice == sc.precondition_method((64, 147), "float32", 1.0)
    with pytest.raises(sc.InputError, match="shape: has shape .* of which any two axes"):
        sc.precondition_method((64, 3, 7, 7), "float32", 1.0)
    asked = sc.precondition_method((64, 64), "float32", 3.0, method="svd")
    assert asked.reasons["eigh"] == "serves too; method='svd' was asked for."


@pytest.mark.parametrize("dtype", ["int32", np.int64, "nonsense", None, 3.0])
def test_dtypes_that_are_none(dtype):
    with pytest.raises(sc.InputError, match="dtype: .* is none of float16, bfloat16, float32"):
        sc.precondition_method((4, 4), dtype, 2.0)


def test_dtypes_and_devices_of_frameworks():
    torch = pytest.importorskip("torch")
    choice = sc.precondition_method((300, 300), torch.float32, 1.0, device=torch.device("cpu"))
    assert choice == sc.precondition_method((300, 300), "float32", 1.0)
    elsewhere = sc.precondition_method(
        (300, 300), torch.float32, 1.0, device=torch.device("cuda", 0)
    )
    assert elsewhere.name == "shifts" and elsewhere.reasons["eigh"] == "takes longer than 'shifts'."
