"""T on the singular values of a matrix, by the cheapest method that reaches the tolerance."""

from dataclasses import dataclass
from numbers import Real
from typing import Any

from spectral_core.arrays.factorize import in_turn, on_cpu
from spectral_core.arrays.namespace import Array, floating, linear_algebra
from spectral_core.arrays.products import exact_products
from spectral_core.errors import InputError
from spectral_core.matrices.layout import MatrixSpec, matrices_of
from spectral_core.preconditioning.choice import METHODS, POLAR_MARGIN, PRECISIONS, Request, choose
from spectral_core.preconditioning.function import check_exponent, damped_ratio, peak
from spectral_core.preconditioning.gram import Coefficients, Gram, ScaledMatrix
from spectral_core.preconditioning.gram_functions import (
    Product,
    by_eigenvalues,
    by_factor,
    by_shifts,
    eigen_ratios,
)
from spectral_core.preconditioning.methods.polar import polar_factor
from spectral_core.preconditioning.methods.polynomial import by_polynomial

__all__ = ["precondition"]

NORMALIZATIONS = ("none", "spectral", "rms")
UPDATE_RMS = 0.2  # of AdamW's updates, as usually seen
LOW_STEPS = 8  # of Lanczos in bfloat16: more would take longer than the products


def precondition(
    gradient: Array,
    alpha: float | Array,
    damping: float | Array = 0.1,
    *,
    damping_mode: str = "spectral",
    method: str = "auto",
    tolerance: float | None = None,
    normalize: str = "none",
    precision: str = "working",
    matrices: MatrixSpec | str | None = None,
) -> Array:
    """Return ``U T(Σ) Vᵀ`` of ``G = U Σ Vᵀ`` with ``T(σ) = σ / (σ^α + d)`` (Theory 9).

    Parameters
    ----------
    gradient : array, shape (m, n) or (B, m, n)
        G: one matrix, or a batch of independent ones; of any shape with `matrices`. Float16 and
        bfloat16 are computed in float32.
    alpha : float or 0-d array
        In [0, 4]. 0 leaves the direction of G, 1 without damping gives its polar factor, 2 is a
        Newton step where curvature goes with σ².
    damping : float or 0-d array
        δ or d, not negative; positive if α > 1. Arrays, traced ones too, are for methods "eigh" and
        "svd", and their values are not checked.
    damping_mode : {"spectral", "absolute"}
        ``d = δ σ_max^α`` with the largest singular value of each matrix, or d itself.
    method : {"auto", "closed", "shifts", "eigh", "svd", "polar", "polynomial"}
        See the notes.
    tolerance : float, optional
        Largest error that the method may bring; 0.01 by default, 0.05 with products in bfloat16,
        whose rounding comes on top.
    normalize : {"none", "spectral", "rms"}
        ``"spectral"`` divides by ``max T`` over [0, σ_max] (Theory 9.5): the spectral norm is at
        most 1. ``"rms"`` gives ``√(mean T²) = 0.2`` over the entries, as AdamW's updates have; a
        zero matrix stays zero.
    precision : {"working", "bfloat16"}
        ``"bfloat16"`` has method "polynomial" multiply in bfloat16, for hardware that does so
        several times as fast as in float32; "auto" then takes that method, or "closed" for α = 0.
        An error of several per cent, see the notes. For PyTorch and JAX.
    matrices : MatrixSpec or str, optional
        How G is made of matrices, in the words of `as_matrices`: ``"conv"`` takes a kernel (out,
        in, height, width) as one matrix (out, in · height · width), ``"stack"`` takes all axes but
        the last two for those of a batch. More than three axes need it, and so does the kernel of
        a convolution in one dimension, whose three axes are a batch otherwise.

    Returns
    -------
    array, shape of the gradient
        In the dtype of the gradient. Exactly zero for a zero matrix; a matrix that holds a NaN or
        an infinity gives NaN throughout and leaves the others of the batch alone.

    Raises
    ------
    InputError
        If an argument is out of range, the method does not serve the request, or more than three
        axes come without `matrices`.

    Notes
    -----
    With ``B = G Gᵀ / σ_max²`` on the small side, of k rows:

    ======== =================== =============================== ===============================
    method   serves              computes                        error
    ======== =================== =============================== ===============================
    closed   α = 0, 2, 4         Cholesky of ``B^(α/2) + δ I``   ρ + λ
    shifts   0 < α < 2           ``w_0 + Σ w_j (B + p_j I)⁻¹``   tolerance + ρ + λ
    eigh     any α               eigenvalues of B                ρ
    svd      any α               singular values of G            ω
    polar    α = 1, damping = 0  odd polynomials (Polar Express) tolerance + γ, σ ≥ 1e-3 σ_max
    polyno-  α > 0, spectral     polynomial of degree 2 to 36 in tolerance + γ + λ
    mial     damping             B, with 1 to 10 products
    ======== =================== =============================== ===============================

    Errors are ``‖T̂ − T‖₂ / ‖T‖₂``; those of single singular values are relative to
    ``T(max(σ, floor σ_max))``, with a floor of 5e-3 in float32 and 1e-3 in float64.

    - ρ is what squaring loses. At machine precision ε it moves B by ``η = (4 + √k) ε``, and
      ``ρ = max_σ |T(√(σ² ± η)) − T(σ)| / max T``: about η/δ at α = 2, twice that at α = 4, 1e-4 and
      less at δ = 0.1 in float32; 1e-3 at α = 1 and 8e-3 at α = 1/2. What is left of a σ below
      √η σ_max (some 2e-3 in float32) is noise, which T keeps small unless δ is.
    - ω is a small multiple of ``ε √k (1 + max |T'| σ_max / max T)``: of ``ε √k max(1, α)/δ``, and
      without damping of ``ε √k (σ_max/σ_min)^α``, as the singular vectors of small σ mix.
    - λ is the error of σ_max, which "closed" and "shifts" take from 16 Lanczos steps: ``(α/2) e``
      for an error e of σ_max². It is rounding up to 160 rows and for spectra that fall off;
      for Gaussian noise e was 0.07 % in the median of 60 matrices and 3 % in the worst.
    - γ is what rounding does to "polynomial": to first order at most gain · u of max T if each
      matrix that is stored errs by u of its spectral norm, u = ε/2, with the gain that
      `polynomial_table` states: 58 at α = 2, 153 at α = 1, 24 at α = 4, for δ = 0.1. In bfloat16
      (u = 1/256) that is 23 %, 60 % and 10 %, all roundings adding up at their worst. Seen in
      total, with the 5 % tolerance, rounding and λ: 2 to 5 % where singular values fall off, 3 to
      8 % for Gaussian noise. Small δ and α near 1 are the worst; a δ of 0.01 is often refused.
      For "polar" γ is at most 8,400 ε, 1e-3 in float32: its first step takes σ near 0.86 σ_max to
      0.008, and what it rounds grows with them. A quarter of that was seen.
    - In bfloat16 λ comes from 8 Lanczos steps: of 230 matrices of Gaussian noise e was 2 % in the
      median and 7 % in the worst. The polynomial is fitted up to an e of 17 %.
    - A spectral damping below η is refused by "closed" and "shifts". With absolute damping, whose
      ratio to σ_max^α nobody knows beforehand, "closed" raises it to ``η σ_max^α``.

    Products are in the dtype of their operands also inside `torch.autocast`, and in JAX whatever
    its default precision is. PyTorch's TF32 is a choice of the whole process that is left alone:
    with it products err by ``2⁻¹¹`` an operand and these bounds do not hold.

    "auto" takes α = 0 as it is, and "polar" on a GPU where it serves. It takes "svd" with absolute
    damping, with arrays for α or the damping, and where ρ is above the tolerance. Otherwise it goes
    by "closed", "shifts" with up to 2 poles (on a GPU, with any number), and "eigh"; on a CPU and
    up to 256 rows, where overhead decides, "eigh" comes before "shifts".
    """
    xp, (gradient,) = floating(gradient=gradient)
    linear_algebra("gradient", gradient)
    _check(alpha, damping, damping_mode, method, tolerance, normalize)
    _check_precision(xp, precision)
    layout = matrices_of("gradient", tuple(gradient.shape), matrices)

    def filtered(batch: Array) -> Array:
        solved = method != "polynomial" and precision == "working"
        scaled = ScaledMatrix.of(xp, batch, solved)
        wide = scaled.wide
        rows, columns = wide.shape[-2:]
        request = Request(
            alpha, damping, damping_mode, method, tolerance, normalize, rows, columns,
            float(xp.finfo(wide.dtype).eps), on_cpu(xp, wide), precision == "bfloat16",
        )  # fmt: skip
        with exact_products(xp, batch):
            found = _METHODS[choose(request)](xp, scaled, request)
            result = scaled.restore(xp, found.normalized(xp, normalize))
        return xp.astype(result, gradient.dtype, copy=False)

    if layout is None:
        return filtered(gradient)
    return layout.merge(in_turn(xp, filtered, layout.split(gradient)))


@dataclass(frozen=True)
class _Filtered:
    """``T(G) = product · size``, where T has its maximum ``peak · size`` over [0, σ_max]."""

    product: Product
    size: Array
    peak: Array

    def normalized(self, xp: Any, normalize: str) -> Array:
        if normalize == "none":
            return self.product.times(self.size)
        if normalize == "spectral":
            return self.product.times(1 / self.peak)
        product = self.product.multiplied()
        entries = xp.astype(product.wide, self.size.dtype, copy=False)  # from bfloat16
        rms = xp.sqrt(xp.mean(entries**2, axis=(-2, -1), keepdims=True))
        return product.times(UPDATE_RMS / xp.where(rms > 0, rms, xp.ones_like(rms)))


def _closed(xp: Any, scaled: ScaledMatrix, request: Request) -> _Filtered:
    if request.alpha != 0:
        return _by_gram(xp, scaled, request)
    peak_size = xp.ones_like(scaled.scale)
    if request.normalize == "spectral":  # otherwise nobody asks for σ_max
        peak_size = xp.sqrt(Gram.of(xp, scaled).top)
    return _Filtered(Product(scaled.wide, 1.0), scaled.scale / (1 + request.damping), peak_size)


def _by_gram(xp: Any, scaled: ScaledMatrix, request: Request) -> _Filtered:
    """Run the methods that take σ_max from Lanczos steps."""
    gram, alpha = Gram.of(xp, scaled), float(request.alpha)
    root = xp.sqrt(gram.top)
    terms = _coefficients(xp, scaled, request, root)
    if alpha < 2:
        product = by_shifts(xp, gram, scaled.wide, request.table())
    else:
        offset = terms.offset
        if request.damping_mode == "absolute":
            offset = xp.maximum(offset, request.shift * terms.slope)
        product = by_factor(xp, gram, scaled.wide, alpha, terms.slope, offset)
    return _filtered(xp, product, root, terms, alpha)


def _eigh(xp: Any, scaled: ScaledMatrix, request: Request) -> _Filtered:
    gram = scaled.finite(xp, scaled.wide @ xp.matrix_transpose(scaled.wide))
    undamped = request.known and request.damping == 0
    vectors, ratios, root = eigen_ratios(xp, gram, undamped)
    terms = _coefficients(xp, scaled, request, root)
    product = by_eigenvalues(
        xp, vectors, ratios, scaled.wide, request.alpha, terms.slope, terms.offset
    )
    return _filtered(xp, product, root, terms, request.alpha)


def _svd(xp: Any, scaled: ScaledMatrix, request: Request) -> _Filtered:
    u, sigma, vh = xp.linalg.svd(scaled.finite(xp, scaled.wide), full_matrices=False)
    sigma = sigma[..., None, :]
    top = sigma[..., :1]
    root = xp.where(top > 0, top, xp.ones_like(top))
    ratios = sigma / root
    if request.known and request.damping == 0:  # what is rounding of zero has no direction
        kept = ratios > request.columns * request.epsilon
        ratios = xp.where(kept, ratios, xp.zeros_like(ratios))
    terms = _coefficients(xp, scaled, request, root)
    values = damped_ratio(xp, ratios, request.alpha, terms.slope, terms.offset)
    spoiled = scaled.scale / scaled.scale  # NaN for a matrix that is not finite, otherwise 1
    product = Product((u * (values * spoiled)) @ vh, 1.0)
    return _filtered(xp, product, xp.ones_like(root), terms, request.alpha)


def _polar(xp: Any, scaled: ScaledMatrix, request: Request) -> _Filtered:
    # The spectral norm is brought below 1, with a margin for the error of the Lanczos steps.
    gram = Gram.of(xp, scaled)
    top = xp.sqrt(gram.top) * POLAR_MARGIN
    matrix = polar_factor(xp, scaled.wide / top, gram.matrix / top**2, request.polar())
    return _Filtered(Product(matrix, 1.0), xp.ones_like(top), xp.ones_like(top))


def _polynomial(xp: Any, scaled: ScaledMatrix, request: Request) -> _Filtered:
    if request.low:
        scaled = scaled.lowered(xp)
    gram = Gram.of(xp, scaled, *([LOW_STEPS] if request.low else []))
    root = xp.sqrt(gram.top)
    terms = _coefficients(xp, scaled, request, root)
    filtered = by_polynomial(xp, gram.matrix, gram.top, scaled.wide, request.polynomial())
    return _filtered(xp, Product(filtered, 1.0), root, terms, float(request.alpha))


_METHODS = {
    "closed": _closed, "shifts": _by_gram, "eigh": _eigh, "svd": _svd, "polar": _polar,
    "polynomial": _polynomial,
}  # fmt: skip


def _coefficients(xp: Any, scaled: ScaledMatrix, request: Request, root: Array) -> Coefficients:
    return Coefficients.of(
        xp, request.alpha, request.damping, request.damping_mode, scaled.scale * root
    )


def _filtered(
    xp: Any, product: Product, root: Array, terms: Coefficients, alpha: float | Array
) -> _Filtered:
    """Return the product, `root` times too large for singular values over σ_max, with its scale."""
    top = peak(xp, alpha, terms.slope, terms.offset, root)
    return _Filtered(product, terms.factor / root, top * root)


def _check(
    alpha: float | Array,
    damping: float | Array,
    damping_mode: str,
    method: str,
    tolerance: float | None,
    normalize: str,
) -> None:
    check_exponent(alpha, damping, damping_mode)
    if method not in METHODS:
        raise InputError(f"method: {method!r} is none of {', '.join(METHODS)}.")
    if normalize not in NORMALIZATIONS:
        raise InputError(f"normalize: {normalize!r} is none of {', '.join(NORMALIZATIONS)}.")
    if tolerance is not None and not (isinstance(tolerance, Real) and 0 < tolerance < 1):
        raise InputError(f"tolerance: {tolerance} is not between 0 and 1; 0.01 is the default.")


def _check_precision(xp: Any, precision: str) -> None:
    if precision not in PRECISIONS:
        raise InputError(f"precision: {precision!r} is none of {', '.join(PRECISIONS)}.")
    if precision == "bfloat16" and not hasattr(xp, "bfloat16"):
        raise InputError(
            f"precision: the arrays' library, {xp.__name__.removeprefix('array_api_compat.')}, "
            "has no bfloat16; use 'working', or arrays of PyTorch or JAX."
        )
