"""The protocol of a backend: the layers of a problem, their gradients and their curvatures."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from spectral_core.curvature.certificate import Engine, LayerCurvature
from spectral_core.errors import LayerError

__all__ = [
    "CurvatureKind",
    "CurvatureProblem",
    "FisherType",
    "KfacApprox",
    "KnowsRounding",
    "KnowsSamples",
    "KroneckerFactors",
    "LayerInfo",
    "ManyLayers",
    "SampleGroup",
]

CurvatureKind = Literal["hessian", "ggn"]
FisherType = Literal["ggn", "fisher-mc", "empirical"]
"""Which output gradients make ``C_δ`` (Theory 4.4)."""
KfacApprox = Literal["expand", "reduce"]
"""How positions that share a weight enter the factors (Theory 4.3)."""


@dataclass(frozen=True)
class LayerInfo:
    """One weight matrix of a model.

    Parameters
    ----------
    name : str
        The name, unique in its problem and chosen so that globs select it: ``"layer2.0.conv1"``.
    kind : str
        The operation that consumes the weight: ``"linear"``, ``"conv2d"``, ``"embedding"``, …
        Several uses of a tied weight are joined: ``"embedding+linear"``.
    shape : tuple of int
        The shape ``(m, n)``: m outputs and n inputs of the matrix (Theory 1).
    parameter : str
        The parameter that holds the matrix; empty if it is not known. Comparisons of layers ignore
        it.
    index : int
        The number of the matrix within its parameter, counted from 0 in the order in which matrices
        begin in the parameter or in which `MatrixLayout.split` returns them.

    Examples
    --------
    >>> import spectral_core as sc
    >>> layer = sc.LayerInfo("layer2.0.conv1", "conv2d", (32, 144))
    >>> layer.shape
    (32, 144)
    """

    name: str
    kind: str
    shape: tuple[int, int]
    parameter: str = field(default="", compare=False)
    index: int = field(default=0, compare=False)


@dataclass(frozen=True)
class KroneckerFactors:
    """``C_δ`` and ``C_A`` of one layer, in the normalisation of Theory 4.

    Parameters
    ----------
    output_covariance : array, shape (m, m)
        The factor ``C_δ = (1/N) Σ δ δᵀ`` of un-reduced terms, in units of loss² per output².
    input_covariance : array, shape (n, n)
        The factor ``C_A``, the mean of ``a aᵀ``, in units of input².
    output_noise : array of shape (m, m), or None
        Half the difference of two independent estimates, if ``C_δ`` is a Monte-Carlo estimate: the
        root mean square of ``uᵀ noise u`` is the standard error of ``uᵀ C_δ u``. None means that
        ``C_δ`` is exact.
    notes : tuple of str
        The remarks that a reader of the factors needs.
    diagonal : array of shape (K,), or None
        The curvatures ``h^diag`` of single positions along the directions that were passed with the
        layer (Theory 5.3). None means that none were passed, or that ``h^diag`` is not known.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> x = np.array([[1.0, 0.0], [1.0, 2.0]])
    >>> factors = sc.KroneckerFactors(np.eye(3), x.T @ x / len(x))
    >>> factors.input_covariance
    array([[1., 1.],
           [1., 2.]])
    """

    output_covariance: Any
    input_covariance: Any
    output_noise: Any = None
    notes: tuple[str, ...] = ()
    diagonal: Any = None


@runtime_checkable
class CurvatureProblem(Protocol):
    """A mean loss ``L = (1/N) Σ_i l_i`` as a function of its weight matrices.

    Any object with these members can be measured. Arrays may belong to any Array API library.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> class LeastSquares:  # L = Σ_i ‖W x_i − y_i‖² / 2N
    ...     def __init__(self, w, x, y):
    ...         self.w, self.x, self.y = w, x, y
    ...
    ...     def layers(self):
    ...         return [sc.LayerInfo("w", "linear", self.w.shape)]
    ...
    ...     def skipped(self):
    ...         return {}
    ...
    ...     def gradients(self, layers):
    ...         return {"w": (self.x @ self.w.T - self.y).T @ self.x / len(self.x)}
    ...
    ...     def curvatures(self, layer, u, v, kind="hessian"):
    ...         return np.sum(u**2, axis=0) * np.mean((self.x @ v) ** 2, axis=0)
    ...
    ...     def kronecker_factors(self, layers, *, fisher_type="ggn", kfac_approx="expand"):
    ...         c_a = self.x.T @ self.x / len(self.x)
    ...         return {"w": sc.KroneckerFactors(np.eye(len(self.w)), c_a)}
    ...
    ...     def describe(self):
    ...         return {"backend": "least squares"}
    >>> rng = np.random.default_rng(0)
    >>> problem = LeastSquares(np.zeros((5, 6)), rng.normal(size=(50, 6)), rng.normal(size=(50, 5)))
    >>> isinstance(problem, sc.CurvatureProblem)
    True
    >>> len(sc.measure(problem, top_k=4, progress=False)["w"].curvature)
    4
    """

    def layers(self) -> Sequence[LayerInfo]:
        """Return the weight matrices in the order of the forward pass."""
        ...

    def skipped(self) -> Mapping[str, str]:
        """Return the parameters of two or more axes that are no layer, with the reason."""
        ...

    def gradients(self, layers: Sequence[str]) -> Mapping[str, Any]:
        """Return ``G = ∂L/∂W``, an array of shape ``(m, n)``, for each named layer."""
        ...

    def curvatures(self, layer: str, u: Any, v: Any, kind: CurvatureKind = "hessian") -> Any:
        """Return ``h_k = <D_k, H[D_k]>`` for ``D_k = u_k v_kᵀ``, an array of shape ``(K,)``.

        ``u`` has shape ``(m, K)`` and ``v`` has shape ``(n, K)``, unit columns. H is the Hessian of
        L in this layer's weight, or its Gauss-Newton part. The method raises `LayerError` if the
        layer cannot be differentiated twice. Certificates name this way of computing by the text in
        an attribute `curvature_engine`, and call it ``"own"`` if there is no such attribute.
        """
        ...

    def kronecker_factors(
        self,
        layers: Sequence[str],
        *,
        fisher_type: FisherType = "ggn",
        kfac_approx: KfacApprox = "expand",
    ) -> Mapping[str, KroneckerFactors]:
        """Return the Kronecker factors of each named layer (Theory 4).

        The method raises `LayerError` if a layer has none. Only `measure` with ``decompose=True``
        calls it. A method that also has an argument `directions` gets u (m, K) and v (n, K) by
        layer there, and returns `KroneckerFactors.diagonal` along them. Without it κ is not split.
        """
        ...

    def describe(self) -> Mapping[str, Any]:
        """Return a description that identifies the problem, as JSON values.

        Keys that reports show: ``backend``, ``versions``, ``dtype``, ``precision`` (where a model
        casts to a narrower type inside), ``device``, ``seed``, ``loss``, ``n_terms``,
        ``n_batches``. Two problems with equal descriptions and layers are
        taken for the same when a measurement is resumed.
        """
        ...


@runtime_checkable
class ManyLayers(Protocol):
    """An optional part of a `CurvatureProblem`: curvatures of many layers computed together."""

    def layer_curvatures(
        self,
        directions: Mapping[str, tuple[Any, Any]],
        kind: CurvatureKind = "hessian",
        *,
        engine: Engine = "auto",
        mc_samples: int = 64,
        done: Collection[str] = (),
        progress_callback: Callable[[str], None] | None = None,
    ) -> Iterator[LayerCurvature | LayerError]:
        """Yield the curvatures of each layer of `directions` that is not in `done`, in any order.

        `directions` are u (m, K) and v (n, K) by layer. Which layers are done must not change the
        values of the others. `mc_samples` is an option of the Monte-Carlo engine.
        `progress_callback` is called with a few words on what is being computed.
        """
        ...


@runtime_checkable
class KnowsRounding(Protocol):
    """An optional part of a `CurvatureProblem`: the error of its gradients."""

    def gradient_errors(
        self, layers: Sequence[str], *, samples: int | None = None
    ) -> Mapping[str, Any]:
        """Return ``G − G'`` of shape ``(m, n)`` for named layers, with G' of a wider type.

        Both are gradients of the same terms: of all data, or of at most about `samples` of them
        that carry the gradient. A layer of which nothing is known is left out.
        """
        ...


@dataclass(frozen=True)
class SampleGroup:
    """A part of a problem's samples, as a problem of its own.

    Parameters
    ----------
    problem : CurvatureProblem
        The mean loss over the group's samples, of the same layers.
    share : float
        The group's share of all terms: the mean loss of all is the mean of the groups' losses with
        the shares as weights, and so are gradients and curvatures.
    """

    problem: CurvatureProblem
    share: float


@runtime_checkable
class KnowsSamples(Protocol):
    """An optional part of a `CurvatureProblem`: its samples can be divided into groups."""

    def sample_groups(self, count: int) -> Sequence[SampleGroup]:
        """Return `count` disjoint groups of whole samples, as equal as the data allow.

        Which samples a group holds depends on them alone, neither on the batches nor on their
        order. The problems of the groups compute curvatures of many layers together
        (`ManyLayers`). The method raises `InputError` if the samples cannot be told apart.
        """
        ...
