"""The common base of the problems of all backends: arguments are checked and documented once."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Generic

from spectral_core._renamed import renamed_arguments
from spectral_core.arrays.namespace import Array
from spectral_core.curvature.argument_checks import check_kind, check_mc_samples, find_layer
from spectral_core.curvature.certificate import OWN_WAY, Engine, LayerCurvature
from spectral_core.curvature.engine import CurvatureEngine, CurvatureRequest, LayerT
from spectral_core.curvature.factor_options import FactorOptions
from spectral_core.curvature.planner import curvatures_by
from spectral_core.curvature.problem import (
    CurvatureKind,
    FisherType,
    KfacApprox,
    KroneckerFactors,
    LayerInfo,
)
from spectral_core.errors import InputError, LayerError

__all__ = ["BaseProblem"]


class BaseProblem(ABC, Generic[LayerT]):
    """A mean loss of weight matrices, as a `CurvatureProblem` of a backend.

    A backend sets `_layers`, `_skipped` and `_engines`, and says how directions become its own
    (`_directions`) and how gradients and factors are made (`_gradients`, `_factors`). Names, kinds,
    shapes and options are checked here, and the core plans which engine serves. Nothing but a
    backend needs this class: any object that keeps to the protocol can be measured.

    Attributes
    ----------
    _layers : mapping of str to a backend's layer
        The layers by name, in the order of the forward pass.
    _skipped : mapping of str to str
        The parameters of two or more axes that are no layer, with the reason.
    _engines : sequence of CurvatureEngine
        The engines in the order in which the planner asks them.
    """

    _layers: Mapping[str, LayerT]
    _skipped: Mapping[str, str]
    _engines: Sequence[CurvatureEngine[LayerT]]

    def _engines_for(self, kind: CurvatureKind) -> Sequence[CurvatureEngine[LayerT]]:
        """Return the engines for a kind of curvature; by default all."""
        return self._engines

    def _one_by_one(self, kind: CurvatureKind) -> Sequence[CurvatureEngine[LayerT]]:
        """Return the engines that `curvatures` may take; by default the last, which serves all."""
        return self._engines_for(kind)[-1:]

    @abstractmethod
    def _directions(self, layer: LayerT, u: Any, v: Any) -> tuple[Any, Any]:
        """Return directions as arrays of the backend, checked."""

    @abstractmethod
    def _gradients(self, layers: Sequence[LayerT]) -> Sequence[Array]:
        """Return ``G = ∂L/∂W`` of each layer, shape ``(m, n)``."""

    @abstractmethod
    def _factors(
        self, layers: Sequence[LayerT], options: FactorOptions
    ) -> dict[str, KroneckerFactors]:
        """Return the Kronecker factors of each layer; the options have been checked."""

    def _factors_along(
        self,
        layers: Sequence[LayerT],
        options: FactorOptions,
        directions: Mapping[str, tuple[Any, Any]],
    ) -> dict[str, KroneckerFactors]:
        """Return the factors with their `diagonal` along directions; by default without it."""
        return self._factors(layers, options)

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what identifies the problem: numbers of the data, loss, types and versions."""

    @property
    def engine_names(self) -> tuple[str, ...]:
        """The engines that can be asked for by name."""
        return tuple(engine.name for engine in self._engines)

    @property
    def curvature_engine(self) -> str:
        """The engine behind `curvatures`; ``"own"`` where it depends on the layer."""
        names = {engine.name for engine in self._one_by_one("hessian")}
        return names.pop() if len(names) == 1 else OWN_WAY

    def layers(self) -> list[LayerInfo]:
        """Return the weight matrices in the order of the forward pass."""
        return [layer.info for layer in self._layers.values()]

    def skipped(self) -> dict[str, str]:
        """Return the parameters of two or more axes that are no layer, with the reason."""
        return dict(self._skipped)

    def gradients(self, layers: Sequence[str]) -> dict[str, Any]:
        """Return ``G = ∂L/∂W`` of shape ``(m, n)`` for each named layer, in one pass.

        Raises
        ------
        InputError
            If a name is not a layer.
        """
        located = [self._find(name) for name in layers]
        found = self._gradients(located)
        return {layer.info.name: matrix for layer, matrix in zip(located, found, strict=True)}

    def curvatures(self, layer: str, u: Any, v: Any, kind: CurvatureKind = "hessian") -> Any:
        """Return ``h_k = <D_k, H[D_k]>`` along ``D_k = u_k v_kᵀ``, in one pass.

        Parameters
        ----------
        layer : str
            The name of the layer.
        u, v : array
            The directions, of shapes ``(m, K)`` and ``(n, K)``.
        kind : {"hessian", "ggn"}
            The Hessian of L in this layer's weight, or its generalised Gauss-Newton part.

        Returns
        -------
        array
            The curvatures, of shape ``(K,)``, in the problem's dtype and on its device.

        Raises
        ------
        InputError
            If the layer is unknown, the shapes do not fit it, or the outputs are not told and
            `kind` needs them.
        LayerError
            If no engine can compute the layer's curvature, for instance because the framework lacks
            a second derivative.
        """
        located = self._find(layer)
        check_kind(kind)
        request = CurvatureRequest({located.info.name: self._directions(located, u, v)}, kind)
        (found,) = curvatures_by(self._one_by_one(kind), [located], request)
        if isinstance(found, LayerError):
            raise found
        return found.values

    @renamed_arguments
    def layer_curvatures(
        self,
        directions: Mapping[str, tuple[Any, Any]],
        kind: CurvatureKind = "hessian",
        *,
        engine: Engine = "auto",
        mc_samples: int = 64,
        done: Collection[str] = (),
        progress_callback: Callable[[str], None] | None = None,
        more_directions: Mapping[str, tuple[Any, Any]] = MappingProxyType({}),
    ) -> Iterator[LayerCurvature | LayerError]:
        """Yield the curvatures of many layers, computed together.

        Parameters
        ----------
        directions : mapping of str to (u, v)
            The directions of each layer, of shapes ``(m, K)`` and ``(n, K)``.
        kind : {"hessian", "ggn"}
            The curvature that is computed, see `curvatures`.
        engine : str
            ``"auto"`` takes the cheapest engine that is exact for each layer. An engine's name, see
            `Engine`, makes it compute all layers; not every backend has every engine.
        mc_samples : int
            The number of random draws of ``"monte-carlo"`` for each batch, 2 or more.
        done : collection of str
            The layers that are not wanted. Skipping them leaves the others bit-identical.
        progress_callback : callable, optional
            A function that is told, in a few words, what is being computed.
        more_directions : mapping of str to (u, v)
            Further directions of some layers. Their curvatures are in `LayerCurvature.more` where
            the engine of the layer gets them for little, as ``"columns"`` does.

        Yields
        ------
        LayerCurvature or LayerError
            One result for each layer, as soon as it is computed, in any order.

        Raises
        ------
        InputError
            If a layer or engine is unknown, or the shapes do not fit.
        """
        check_kind(kind)
        self._check_engine(engine)
        check_mc_samples(mc_samples)
        given, more = (
            {name: self._directions(self._find(name), *d) for name, d in these.items()}
            for these in (directions, more_directions)
        )
        options = {"mc_samples": int(mc_samples)}
        request = CurvatureRequest(given, kind, engine, options, done, more_directions=more)
        if progress_callback is not None:
            request = replace(request, progress_callback=progress_callback)
        wanted = [layer for name, layer in self._layers.items() if name in given]
        return curvatures_by(self._engines_for(kind), wanted, request)

    @renamed_arguments
    def kronecker_factors(
        self,
        layers: Sequence[str],
        *,
        fisher_type: FisherType = "ggn",
        kfac_approx: KfacApprox = "expand",
        mc_samples: int = 16,
        max_columns: int = 128,
        directions: Mapping[str, tuple[Any, Any]] | None = None,
    ) -> dict[str, KroneckerFactors]:
        """Return ``C_δ`` and ``C_A`` of each named layer in one pass over the data (Theory 4).

        ``C_A`` is the mean of ``a aᵀ`` over positions and terms, ``C_δ = (1/N) Σ δ δᵀ`` with the
        un-reduced terms' gradients δ at the layer's outputs; all loss scaling is in ``C_δ``.
        Memory is O(m² + n²) for each layer, and sums over batches are in float64.

        Parameters
        ----------
        layers : sequence of str
            The names of layers.
        fisher_type : {"ggn", "fisher-mc", "empirical"}
            The output gradients that make ``C_δ``. ``"ggn"`` takes the columns of the root of the
            loss's Hessian in the outputs, ``"fisher-mc"`` gradients for targets drawn from the
            model, and ``"empirical"`` gradients for the true targets.
        kfac_approx : {"expand", "reduce"}
            The treatment of positions that share the weight (Theory 4.3). ``"expand"`` counts each
            position, as KFAC-expand does; ``"reduce"`` first averages the inputs and sums the
            output gradients over them, as KFAC-reduce does.
        mc_samples : int
            The number of Monte-Carlo draws per batch, an even number, where ``C_δ`` cannot be
            exact.
        max_columns : int
            The largest number of root vectors per sample for which ``C_δ`` is exact. The loss has
            as many as classes (less one) times positions of the outputs. Beyond this number, or if
            samples of the outputs meet in the network (flattened tokens), ``C_δ`` is an unbiased
            estimate from `mc_samples` random combinations of all of them, with
            `KroneckerFactors.output_noise` for its standard error.
        directions : mapping of str to (u, v), optional
            The directions of some of the layers, of shapes ``(m, K)`` and ``(n, K)``. The same pass
            then gives ``h^diag`` along them (Theory 5.3) in `KroneckerFactors.diagonal`, from the
            same columns or draws as ``C_δ``. It is None with ``fisher_type="empirical"`` or
            ``kfac_approx="reduce"``, and where the pass does not see every use of the matrix.

        Returns
        -------
        dict of str to KroneckerFactors
            The factors by layer. Their arrays are on the problem's device, in float64 where the
            framework has it enabled.

        Raises
        ------
        InputError
            If a name is no layer, an option is unknown, the outputs are not told, or the loss is
            not convex in them.
        LayerError
            If the operation of a layer hides its inputs and outputs (fused recurrent layers), a
            factor would be too large, positions cannot be told from samples, or the problem was
            not given what `fisher_type` needs.
        """
        located = [self._find(name) for name in layers]
        options = FactorOptions(fisher_type, kfac_approx, mc_samples, max_columns)
        options.check()
        if directions is None:
            return self._factors(located, options)
        given = {
            layer.info.name: self._directions(layer, *directions[layer.info.name])
            for layer in located
            if layer.info.name in directions
        }
        return self._factors_along(located, options, given if options.know_positions else {})

    def _find(self, name: str) -> LayerT:
        return find_layer(name, self._layers, self._skipped)

    def _check_engine(self, engine: Any) -> None:
        """Raise `InputError` for an engine that the backend does not have."""
        known = ("auto", *self.engine_names)
        if engine not in known:
            raise InputError(
                f"engine: {engine!r} is unknown to this backend; choose one of "
                f"{', '.join(map(repr, known))}."
            )
