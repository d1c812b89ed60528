"""T on the singular values of a matrix, by the cheapest method that reaches the tolerance."""

from numbers import Real
from typing import Any

from spectral_core.arrays.factorize import in_turn, on_cpu
from spectral_core.arrays.namespace import Array, floating, linear_algebra
from spectral_core.arrays.products import exact_products, fast_half
from spectral_core.errors import InputError
from spectral_core.matrices.layout import MatrixSpec, matrices_of
from spectral_core.preconditioning.choice import choose, with_precision
from spectral_core.preconditioning.damped_power import DampedPower
from spectral_core.preconditioning.gram import ScaledMatrix
from spectral_core.preconditioning.methods.base import NORMALIZATIONS
from spectral_core.preconditioning.methods.table import METHODS
from spectral_core.preconditioning.request import PRECISIONS, Request
from spectral_core.preconditioning.spectral_function import SpectralFunction

__all__ = ["apply_function", "check_arguments", "precondition"]


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
        The matrix G, or a batch of independent ones. With `matrices`, any shape is allowed. Float16
        and bfloat16 are computed in float32.
    alpha : float or 0-d array
        The exponent α, in [0, 4]. 0 leaves the direction of G, 1 without damping gives its polar
        factor, 2 is a Newton step where curvature goes with σ².
    damping : float or 0-d array
        The damping δ or d, not negative, and positive if α > 1. Arrays, traced ones too, are for
        methods "eigh" and "svd", and their values are not checked.
    damping_mode : {"spectral", "absolute"}
        The reference of the damping. ``"spectral"`` sets ``d = δ σ_max^α`` with the largest
        singular value of each matrix; ``"absolute"`` takes d itself.
    method : {"auto", "closed", "shifts", "eigh", "svd", "polar", "polynomial", "inversion"}
        The method, see the notes.
    tolerance : float, optional
        The largest error that the method may bring. The default is 0.01, or 0.05 with products in
        bfloat16, whose rounding comes on top.
    normalize : {"none", "spectral", "rms"}
        The normalisation of the result. ``"spectral"`` divides by ``max T`` over [0, σ_max] (Theory
        9.5), so that the spectral norm is at most 1. ``"rms"`` gives ``√(mean T²) = 0.2`` over the
        entries, as AdamW's updates have; a zero matrix stays zero. ``"none"`` leaves T as it is.
    precision : {"working", "bfloat16", "float16", "auto"}
        The precision of products. ``"bfloat16"`` lets method "polynomial" multiply in bfloat16, for
        hardware that does so several times as fast as in float32; "auto" then takes that method, or
        "closed" for α = 0. ``"float16"`` does the same for method "inversion" at α = 2, which
        serves small dampings too. The error is several per cent, see the notes. These are for
        libraries that have the dtype. ``"auto"`` is ``"float16"`` on a GPU if that serves and
        neither a method nor a tolerance is given, and otherwise ``"working"``.
    matrices : MatrixSpec or str, optional
        The rule by which G is made of matrices, see `as_matrices`. ``"conv"`` takes a kernel (out,
        in, height, width) as one matrix (out, in · height · width), ``"stack"`` takes all axes but
        the last two for those of a batch. More than three axes need it, and so does the kernel of a
        convolution in one dimension, whose three axes are a batch otherwise.

    Returns
    -------
    array, shape of the gradient
        The result, in the dtype of the gradient. It is exactly zero for a zero matrix. A matrix
        that holds a NaN or an infinity gives NaN throughout and leaves the others of the batch
        alone.

    Raises
    ------
    InputError
        If an argument is out of range, the method does not serve the request, or more than three
        axes come without `matrices`.

    Notes
    -----
    The methods use ``B = G Gᵀ / σ_max²`` on the small side, of k rows:

    ========== =================== ============================= ===============================
    method     serves              computes                      error
    ========== =================== ============================= ===============================
    closed     α = 0, 2, 4         Cholesky of ``B^(α/2) + δ I`` ρ + λ
    shifts     0 < α < 2           ``w_0 + Σ w_j (B + p_j I)⁻¹`` tolerance + ρ + λ
    eigh       any α               eigenvalues of B              ρ
    svd        any α               singular values of G          ω
    polar      α = 1, damping = 0  odd polynomials (Polar        tolerance + γ, σ ≥ 1e-3 σ_max
                                   Express)
    polynomial α > 0, spectral     polynomial of degree 2 to 36  tolerance + γ + λ
               damping             in B, with 1 to 10 products
    inversion  α = 2, spectral     ``(B + δ I)⁻¹`` by Newton's   0.4 tolerance + γ + λ
               damping             iteration, with 4 to 26
                                   products
    ========== =================== ============================= ===============================

    Errors are ``‖T̂ − T‖₂ / ‖T‖₂``; those of single singular values are relative to
    ``T(max(σ, floor σ_max))``, with a floor of 5e-3 in float32 and 1e-3 in float64.

    - ρ is the loss by squaring. At machine precision ε it moves B by ``η = (4 + √k) ε``, and
      ``ρ = max_σ |T(√(σ² ± η)) − T(σ)| / max T``: about η/δ at α = 2, twice that at α = 4, 1e-4 and
      less at δ = 0.1 in float32; 1e-3 at α = 1 and 8e-3 at α = 1/2. A σ below √η σ_max (some 2e-3
      in float32) is lost in noise, which T keeps small unless δ is small.
    - ω is a small multiple of ``ε √k (1 + max |T'| σ_max / max T)``. With damping that is of order
      ``ε √k max(1, α)/δ``, and without damping ``ε √k (σ_max/σ_min)^α``, as the singular vectors of
      small σ mix.
    - λ is the error of σ_max, which "closed" and "shifts" take from 16 Lanczos steps: ``(α/2) e``
      for an error e of σ_max². It is rounding up to 160 rows and for spectra that fall off;
      for Gaussian noise e was 0.07 % in the median of 60 matrices and 3 % in the worst.
    - γ is the effect of rounding on "polynomial": to first order at most gain · u of max T if each
      matrix that is stored errs by u of its spectral norm, u = ε/2, with the gain that
      `polynomial_table` states: 58 at α = 2, 153 at α = 1, 24 at α = 4, for δ = 0.1. In bfloat16
      (u = 1/256) that is 23 %, 60 % and 10 %, all roundings adding up at their worst. Seen in
      total, with the 5 % tolerance, rounding and λ: 2 to 5 % if singular values fall off, 3 to
      8 % for Gaussian noise. Small δ and α near 1 are the worst; a δ of 0.01 is often refused.
      For "polar" γ is at most 8,400 ε, 1e-3 in float32: its first step takes σ near 0.86 σ_max to
      0.008, and what it rounds grows with them. A quarter of that was seen.
    - In float16 "inversion" multiplies from 512 rows on, and in float32 below. Rounding is seen to
      add up to 1 to 3 % at δ = 0.001, and 6 % in total for exact ranks of 1 to 3 at 512 rows, whose
      other directions are rounding that T magnifies. For it, γ is ``(0.06 + 0.9/√k) 2⁻¹¹/δ``. λ
      comes from six powers of ``B²`` on eight vectors: 3 % of σ_max² where singular values fall off
      or are Gaussian.
    - In bfloat16 λ comes from 8 Lanczos steps: of 230 matrices of Gaussian noise e was 2 % in the
      median and 7 % in the worst. The polynomial is fitted up to an e of 17 %.
    - "closed" and "shifts" refuse a spectral damping below η. The ratio of an absolute damping to
      σ_max^α is not known beforehand, so "closed" raises an absolute damping to ``η σ_max^α``.

    Products are in the dtype of their operands also inside `torch.autocast`, and in JAX whatever
    its default precision is. PyTorch's TF32 is a choice of the whole process that is left alone:
    with it products err by ``2⁻¹¹`` an operand and these bounds do not hold.

    "auto" takes "closed" for α = 0, and "polar" on a GPU if it serves. It takes "svd" with absolute
    damping, with arrays for α or the damping, and if ρ is above the tolerance. Otherwise it tries
    "closed", "shifts" with up to 2 poles (on a GPU, with any number), and "eigh", in this order. On
    a CPU and up to 256 rows, where overhead decides, "eigh" comes before "shifts".

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> gradient = np.array([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> sc.precondition(gradient, alpha=2.0, damping=0.1).round(3)
    array([[0.455, 0.   , 0.   ],
           [0.   , 0.714, 0.   ]])
    >>> sc.precondition(gradient, alpha=1.0, damping=0.0).round(3)
    array([[1., 0., 0.],
           [0., 1., 0.]])
    """
    return apply_function(
        gradient,
        DampedPower(alpha, damping, damping_mode),
        method=method,
        tolerance=tolerance,
        normalize=normalize,
        precision=precision,
        matrices=matrices,
    )


def apply_function(
    gradient: Array,
    function: SpectralFunction,
    *,
    method: str = "auto",
    tolerance: float | None = None,
    normalize: str = "none",
    precision: str = "working",
    matrices: MatrixSpec | str | None = None,
) -> Array:
    """Return ``U T(Σ) Vᵀ`` of ``G = U Σ Vᵀ`` for any function T.

    Parameters
    ----------
    gradient : array
        The gradient G, see `precondition`.
    function : SpectralFunction
        The function T, with its parameters.
    method, tolerance, normalize, precision, matrices
        The arguments of `precondition`.
    """
    xp, (gradient,) = floating(gradient=gradient)
    linear_algebra("gradient", gradient)
    check_arguments(function, method, tolerance, normalize, precision)
    _check_half(xp, precision)
    layout = matrices_of("gradient", tuple(gradient.shape), matrices)

    by_products = precision in ("bfloat16", "float16") or (
        method != "auto" and len(METHODS[method].precisions) > 1
    )

    def filtered(batch: Array) -> Array:
        matrix = ScaledMatrix.of(xp, batch, solved=not by_products)
        rows, columns = matrix.gradient.shape[-2:]
        epsilon = float(xp.finfo(matrix.gradient.dtype).eps)
        request = Request(
            function,
            method,
            tolerance,
            rows,
            columns,
            epsilon,
            on_cpu(xp, matrix.gradient),
            precision,
        )
        request = with_precision(request, fast_half(xp, matrix.gradient))  # fmt: skip
        with exact_products(xp, batch):
            found = METHODS[choose(request)].run(xp, matrix, request)
            result = matrix.restore(xp, found.normalized(xp, normalize))
        return xp.astype(result, gradient.dtype, copy=False)

    if layout is None:
        return filtered(gradient)
    return layout.merge(in_turn(xp, filtered, layout.split(gradient)))


def check_arguments(
    function: SpectralFunction,
    method: str,
    tolerance: float | None,
    normalize: str,
    precision: str,
) -> None:
    """Check all arguments that can be checked without a matrix.

    Raises
    ------
    InputError
        If an argument is out of range.
    """
    function.check()
    if method not in ("auto", *METHODS):
        raise InputError(f"method: {method!r} is none of {', '.join(('auto', *METHODS))}.")
    if normalize not in NORMALIZATIONS:
        raise InputError(f"normalize: {normalize!r} is none of {', '.join(NORMALIZATIONS)}.")
    if tolerance is not None and not (isinstance(tolerance, Real) and 0 < tolerance < 1):
        raise InputError(f"tolerance: {tolerance} is not between 0 and 1; 0.01 is the default.")
    if precision not in PRECISIONS:
        raise InputError(f"precision: {precision!r} is none of {', '.join(PRECISIONS)}.")


def _check_half(xp: Any, precision: str) -> None:
    if precision in ("bfloat16", "float16") and not hasattr(xp, precision):
        raise InputError(
            f"precision: the arrays' library, {xp.__name__.removeprefix('array_api_compat.')}, "
            f"has no {precision}; use 'working', or arrays of PyTorch or JAX."
        )
