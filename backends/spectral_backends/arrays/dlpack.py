"""A problem of one library for code of another: its arrays go across by DLPack, without a copy."""

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import array_api_compat

from spectral_core._renamed import by_new_names, renamed_arguments
from spectral_core.arrays.namespace import Array, device_of
from spectral_core.arrays.plain import plain
from spectral_core.curvature.certificate import Engine, LayerCurvature, way_of
from spectral_core.curvature.factors_along import factors_along
from spectral_core.curvature.problem import (
    CurvatureKind,
    CurvatureProblem,
    FisherType,
    KfacApprox,
    KnowsRounding,
    KnowsSamples,
    KroneckerFactors,
    LayerInfo,
    ManyLayers,
    SampleGroup,
)
from spectral_core.errors import InputError, LayerError

__all__ = ["through_dlpack"]


def through_dlpack(problem: CurvatureProblem, like: Array) -> CurvatureProblem:
    """Return a `CurvatureProblem` whose arrays are those of another library, on the same memory.

    Code of CuPy or NumPy drives the exact products of a PyTorch or JAX model: directions go in as
    its arrays; gradients, curvatures and factors come out so.

    Parameters
    ----------
    problem : CurvatureProblem
        A problem of any library that exports DLPack. Its engines are kept.
    like : array
        An array of the wanted library, on the device of the problem.

    Raises
    ------
    InputError
        If a library has no `from_dlpack`, or the two do not share a device.

    Notes
    -----
    The arrays that come out are the problem's own memory: do not write to them.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from spectral_backends.torch import CurvatureProblem
    >>> model, batch = torch.nn.Linear(3, 1), (torch.ones(4, 3), torch.zeros(4, 1))
    >>> problem = CurvatureProblem(model, torch.nn.functional.mse_loss, [batch])
    >>> type(through_dlpack(problem, np.zeros(1)).gradients(["weight"])["weight"]).__name__
    'ndarray'
    """
    kind = _ManyThroughDLPack if isinstance(problem, ManyLayers) else _ThroughDLPack
    return kind(problem, like)


class _ThroughDLPack:
    """Passes a problem's arrays through DLPack, if the problem has `curvatures` alone."""

    def __init__(self, problem: CurvatureProblem, like: Array) -> None:
        self._problem: Any = problem
        self._xp = array_api_compat.array_namespace(like)
        names = [layer.name for layer in problem.layers()]
        own = problem.gradients(names[:1])[names[0]]
        self._own = array_api_compat.array_namespace(own)
        self._own_device = device_of(own)
        for xp in (self._xp, self._own):
            if not hasattr(xp, "from_dlpack"):
                raise InputError(f"problem: {xp.__name__} has no from_dlpack; convert its arrays.")
        if (device := str(device_of(self._out(own)))) != str(device_of(like)):
            raise InputError(
                f"like: is on {device_of(like)}, and the problem's arrays on {device}; put both on "
                "one device, as nothing is copied."
            )

    @property
    def curvature_engine(self) -> str:
        """Return the problem's name for the engine of `curvatures`."""
        return way_of(self._problem)

    def layers(self) -> Sequence[LayerInfo]:
        """Return the layers of the problem."""
        found: Sequence[LayerInfo] = self._problem.layers()
        return found

    def skipped(self) -> Mapping[str, str]:
        """Return the parameters that the problem skips, with the reason."""
        found: Mapping[str, str] = self._problem.skipped()
        return found

    def describe(self) -> dict[str, Any]:
        """Return the description of the problem, and the library through which it was seen."""
        return {**self._problem.describe(), "through": self._xp.__name__.rpartition(".")[2]}

    def gradients(self, layers: Sequence[str]) -> dict[str, Array]:
        """Return ``G = ∂L/∂W`` of shape ``(m, n)`` for each named layer."""
        found = self._problem.gradients(layers)
        return {name: self._out(found[name]) for name in layers}

    def gradient_errors(
        self, layers: Sequence[str], *, samples: int | None = None
    ) -> dict[str, Array]:
        """Return the rounding of the problem's gradients, if the problem knows it."""
        if not isinstance(self._problem, KnowsRounding):
            return {}
        found = self._problem.gradient_errors(layers, samples=samples)
        return {name: self._out(error) for name, error in found.items()}

    def sample_groups(self, count: int) -> list[SampleGroup]:
        """Return the groups of the problem's samples, if it divides them."""
        if not isinstance(self._problem, KnowsSamples):
            raise InputError("sampling: the problem does not divide its samples into groups.")
        groups = self._problem.sample_groups(count)
        return [replace(group, problem=self._like(group.problem)) for group in groups]

    def _like(self, problem: CurvatureProblem) -> "_ThroughDLPack":
        """Return another problem of the same libraries and devices."""
        found = copy.copy(self)
        found._problem = problem
        return found

    def curvatures(self, layer: str, u: Array, v: Array, kind: CurvatureKind = "hessian") -> Array:
        """Return ``<D_k, H[D_k]>`` along ``u_k v_kᵀ``, shape (K,), for u (m, K) and v (n, K)."""
        return self._out(self._problem.curvatures(layer, self._in(u), self._in(v), kind))

    @renamed_arguments
    def kronecker_factors(
        self,
        layers: Sequence[str],
        *,
        fisher_type: FisherType = "ggn",
        kfac_approx: KfacApprox = "expand",
        directions: Mapping[str, tuple[Array, Array]] | None = None,
    ) -> dict[str, KroneckerFactors]:
        """Return the factors of each named layer (Theory 4), with ``h^diag`` along directions."""
        along = {name: (self._in(u), self._in(v)) for name, (u, v) in (directions or {}).items()}
        found = factors_along(
            self._problem, layers, along, fisher_type=fisher_type, kfac_approx=kfac_approx
        )
        return {
            name: replace(
                factors,
                output_covariance=self._out(factors.output_covariance),
                input_covariance=self._out(factors.input_covariance),
                output_noise=self._out(factors.output_noise),
                diagonal=self._out(factors.diagonal),
            )
            for name, factors in found.items()
        }

    def _out(self, array: Array | None) -> Any:
        """Return an array of the problem as one of the other library."""
        if array is None:
            return None
        try:
            return self._xp.from_dlpack(array)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"like: {self._xp.__name__} cannot take the problem's arrays on "
                f"{self._own_device} ({error}); put both on one device."
            ) from error

    def _in(self, array: Array) -> Any:
        """Return a direction as an array of the problem's library."""
        try:
            found = self._own.from_dlpack(plain("u, v", array))
        except (BufferError, RuntimeError):  # read-only, or strided for JAX; small enough to copy
            xp = array_api_compat.array_namespace(array)
            found = self._own.from_dlpack(xp.asarray(array, dtype=array.dtype, copy=True))
        if str(device_of(found)) != str(self._own_device):
            raise InputError(
                f"u, v: are on {device_of(found)}, the problem on {self._own_device}; put both on "
                "one device."
            )
        return found


class _ManyThroughDLPack(_ThroughDLPack):
    """Passes a problem's arrays through DLPack, if the problem has engines too."""

    @renamed_arguments
    def layer_curvatures(
        self,
        directions: Mapping[str, tuple[Array, Array]],
        kind: CurvatureKind = "hessian",
        *,
        engine: Engine = "auto",
        mc_samples: int = 64,
        done: Collection[str] = (),
        progress_callback: Callable[[str], None] | None = None,
        more_directions: Mapping[str, tuple[Array, Array]] = MappingProxyType({}),
    ) -> Iterator[LayerCurvature | LayerError]:
        """Yield the curvatures of each layer, by the problem's own engines if it has some.

        Parameters
        ----------
        directions, kind, engine, mc_samples, done, progress_callback, more_directions
            The same arguments as those of `ManyLayers.layer_curvatures`.
        """
        own, more = (
            {name: (self._in(u), self._in(v)) for name, (u, v) in these.items()}
            for these in (directions, more_directions)
        )
        options = {"more_directions": more} if more else {}
        for found in by_new_names(self._problem.layer_curvatures)(
            own,
            kind,
            engine=engine,
            mc_samples=mc_samples,
            done=done,
            progress_callback=progress_callback,
            **options,
        ):
            if isinstance(found, LayerError):
                yield found
                continue
            yield replace(
                found,
                values=self._out(found.values),
                ggn=self._out(found.ggn),
                derivative=self._out(found.derivative),
                more=self._out(found.more),
                more_ggn=self._out(found.more_ggn),
            )
