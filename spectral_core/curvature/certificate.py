"""Certificates: the engine behind a layer's curvatures, and the evidence that they are right."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

__all__ = ["OWN_WAY", "Certificate", "Engine", "LayerCurvature", "way_of"]

Engine = Literal["auto", "columns", "tangents", "double-backward", "monte-carlo"]
"""Ways to compute curvatures; ``"auto"`` takes the cheapest that is exact.

- ``"columns"`` (GGN columns) sends the columns of the root of the loss's Hessian in the outputs
  back once for all layers and directions (Theory 5.4). It gives h^GGN, and h where the outputs are
  piecewise linear.
- ``"tangents"`` (forward mode) sends directions forward from their layer, with adjoints that all
  share. It gives h and h^GGN of any layer.
- ``"double-backward"`` (Hessian-vector products) differentiates the graph of one layer's gradient
  once for each direction.
- ``"monte-carlo"`` takes random combinations of the GGN columns and gives a standard error. It is
  never chosen automatically.
"""

OWN_WAY = "own"
"""The engine in the certificates of a problem that computes curvatures in a way of its own."""


@dataclass(frozen=True)
class Certificate:
    """The way in which a layer's curvatures were computed, and the evidence that they are right.

    Parameters
    ----------
    engine : str
        The engine that was used: one of `Engine` other than ``"auto"``, or the name that a problem
        has for its own way, such as ``"complex-step"``. A problem that has `curvatures` alone names
        its way by an attribute `curvature_engine`; without one, the certificate says ``"own"``.
    piecewise_linear : bool
        Whether the outputs were found to be piecewise linear in the weight, so that ``h = h^GGN``
        (Theory 5.8): every operation after the weight is piecewise linear, on every batch, and the
        second-order part on random directions is within the tolerance.
    reason : str
        The operation that is not piecewise linear, as autograd names it, if the outputs are not;
        otherwise the reason why a cheaper engine was not taken. It may be empty.
    second_order : float
        The largest ``|h − h^GGN| / |h^GGN|``. It is taken over random directions and the first
        samples if `piecewise_linear` was examined, and over the measured ones otherwise. NaN means
        that it is not known.
    tolerance : float
        The largest `second_order` that counts as rounding, so that the layer passes for piecewise
        linear.
    derivative_error : float
        The largest ``|<∂L, D_k> − σ_k| / σ_1``, with the derivative along ``D_k`` as the engine
        computed it. A small value shows that no use of the weight was overlooked. NaN means that it
        is not known.
    predicted_cost, cost : float
        The cost per direction, in forward passes of the model: the planned cost, and the cost
        counted in multiply-adds on the first batch (PyTorch) or on all (JAX). NaN means that it is
        not known.
    standard_error : ndarray of shape (K,), or None
        The standard error of the curvatures if they are Monte-Carlo estimates, or the error
        estimate of extrapolated differences. None means that the curvatures are exact.

    Examples
    --------
    >>> import spectral_core as sc
    >>> certificate = sc.Certificate("columns", True, second_order=1e-7, tolerance=1e-5)
    >>> certificate.engine, certificate.second_order <= certificate.tolerance
    ('columns', True)
    """

    engine: str
    piecewise_linear: bool = False
    reason: str = ""
    second_order: float = math.nan
    tolerance: float = math.nan
    derivative_error: float = math.nan
    predicted_cost: float = math.nan
    cost: float = math.nan
    standard_error: npt.NDArray[np.float64] | None = None


@dataclass(frozen=True)
class LayerCurvature:
    """The result of an engine for one layer.

    Parameters
    ----------
    name : str
        The name of the layer.
    values : array, shape (K,)
        The curvatures ``h_k`` or ``h_k^GGN``, whichever was requested.
    certificate : Certificate
        The certificate of the curvatures.
    ggn : array of shape (K,), or None
        The curvatures ``h_k^GGN``, if the engine computed them as well.
    derivative : array of shape (K,), or None
        The derivatives ``<∂L, D_k>`` as the engine computed them.
    more, more_ggn : array of shape (M,), or None
        The values and the ``h_k^GGN`` along further directions that were offered, if the engine
        computed them.
    parts : tuple of LayerCurvature
        The same quantities of each group of samples, if they were put together from groups.

    Examples
    --------
    >>> import numpy as np
    >>> import spectral_core as sc
    >>> found = sc.LayerCurvature("fc", np.array([2.0, 0.5]), sc.Certificate("own"))
    >>> found.name, found.certificate.engine
    ('fc', 'own')
    """

    name: str
    values: Any
    certificate: Certificate
    ggn: Any = None
    derivative: Any = None
    more: Any = None
    more_ggn: Any = None
    parts: tuple["LayerCurvature", ...] = ()


def way_of(problem: Any) -> str:
    """Return the name that certificates give to the way in which `problem.curvatures` computes."""
    named = getattr(problem, "curvature_engine", None)
    return named if isinstance(named, str) and named else OWN_WAY
