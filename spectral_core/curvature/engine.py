"""Engines: one way each to the curvatures of layers, with their requests and findings."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import array_api_compat
import numpy as np
import numpy.typing as npt

from spectral_core.arrays.namespace import Array
from spectral_core.curvature.certificate import Certificate, Engine, LayerCurvature
from spectral_core.curvature.problem import CurvatureKind, LayerInfo
from spectral_core.errors import LayerError

__all__ = [
    "CurvatureEngine",
    "CurvatureRequest",
    "Declined",
    "HasInfo",
    "LayerFinding",
    "LayerT",
    "only_gauss_newton",
    "second_order_share",
]


class HasInfo(Protocol):
    """A layer as a backend knows it."""

    @property
    def info(self) -> LayerInfo:
        """The layer's name, kind and shape."""
        ...


LayerT = TypeVar("LayerT", bound=HasInfo)


def _silent(text: str) -> None:
    """Take a progress text and do nothing with it."""


@dataclass(frozen=True)
class CurvatureRequest:
    """A request for curvatures: the layers, the directions and the options.

    Parameters
    ----------
    directions : mapping of str to (u, v)
        The directions of each layer: u has shape ``(m, K)`` and v has shape ``(n, K)``.
    kind : {"hessian", "ggn"}
        The curvature that is wanted.
    engine : Engine
        ``"auto"``, or the name of the engine that must serve.
    options : mapping of str to object
        The options of single engines by name, such as ``mc_samples`` of ``"monte-carlo"``. An
        engine reads its own and leaves the others alone.
    done : collection of str
        The layers that are not wanted. Skipping them leaves the others bit-identical.
    progress_callback : callable
        A function that is told, in a few words, what is being computed.
    more_directions : mapping of str to (u, v)
        Further directions of some layers, of shapes ``(m, M)`` and ``(n, M)``. Engines to which a
        direction costs little compute them as well (`all_directions`); others leave them alone, and
        no price counts them.
    """

    directions: Mapping[str, tuple[Any, Any]]
    kind: CurvatureKind = "hessian"
    engine: Engine = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)
    done: Collection[str] = ()
    progress_callback: Callable[[str], None] = _silent
    more_directions: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)

    def n_directions(self, layers: Iterable[HasInfo]) -> int:
        """Return the number of directions of some layers, all together."""
        return sum(int(self.directions[layer.info.name][0].shape[1]) for layer in layers)

    def all_directions(self) -> dict[str, tuple[Any, Any]]:
        """Return the directions of each layer with its further ones behind them."""
        return {name: self._joined(name, u, v) for name, (u, v) in self.directions.items()}

    def _joined(self, name: str, u: Any, v: Any) -> tuple[Any, Any]:
        if name not in self.more_directions:
            return u, v
        more_u, more_v = self.more_directions[name]
        xp = array_api_compat.array_namespace(u)
        return xp.concat([u, more_u], axis=1), xp.concat([v, more_v], axis=1)

    def todo(self, layers: Iterable[LayerT]) -> list[LayerT]:
        """Return those of the layers that are not done."""
        return [layer for layer in layers if layer.info.name not in self.done]


@dataclass(frozen=True)
class LayerFinding:
    """The finding of an engine for one layer; `certified` makes of it what the user gets.

    Parameters
    ----------
    name : str
        The name of the layer.
    values : array, shape (K,)
        The curvatures that were asked for.
    ggn, derivative : array of shape (K,), or None
        The values of the same names in `LayerCurvature`, if the engine computed them as well.
    more, more_ggn : array of shape (M,), or None
        The curvatures along the further directions of the request, and their ``h^GGN``, if the
        engine computed them.
    standard_error : ndarray of shape (K,), or None
        The error of the curvatures, if they are estimates.
    reason, piecewise_linear, second_order, tolerance, predicted_cost, cost
        The values of the same names in `Certificate`.
    """

    name: str
    values: Any
    ggn: Any = None
    derivative: Any = None
    standard_error: npt.NDArray[np.float64] | None = None
    reason: str = ""
    piecewise_linear: bool = False
    second_order: float = math.nan
    tolerance: float = math.nan
    predicted_cost: float = math.nan
    cost: float = math.nan
    more: Any = None
    more_ggn: Any = None

    def certified(self, engine: str, kind: CurvatureKind, reason: str = "") -> LayerCurvature:
        """Return the curvatures with their certificate.

        Parameters
        ----------
        engine : str
            The name of the engine that found them.
        kind : {"hessian", "ggn"}
            The curvature that was requested.
        reason : str
            The reason why no earlier engine served. If it is empty, the finding's own reason
            stands.
        """
        certificate = Certificate(
            engine=engine,
            piecewise_linear=self.piecewise_linear,
            reason=reason or self.reason,
            second_order=self.second_order,
            tolerance=self.tolerance,
            predicted_cost=self.predicted_cost,
            cost=self.cost,
            standard_error=self.standard_error,
        )
        ggn, more_ggn = (self.values, self.more) if kind == "ggn" else (self.ggn, self.more_ggn)
        return LayerCurvature(
            self.name, self.values, certificate, ggn, self.derivative, self.more, more_ggn
        )


@dataclass(frozen=True)
class Declined:
    """A layer whose curvature an engine, having run, does not certify.

    Parameters
    ----------
    name : str
        The name of the layer.
    reason : str
        The observation. The certificate of the engine that takes the layer over cites it.
    refusal : str
        The sentence for a user who asked for this engine by name. If it is empty, the next engine
        takes the layer over in this case, too.
    """

    name: str
    reason: str
    refusal: str = ""


class CurvatureEngine(ABC, Generic[LayerT]):
    """One way to the curvatures of layers.

    The planner asks every engine in the order of its backend's list; see `planner`. A request
    changes no state of an engine except caches that save time.

    Attributes
    ----------
    name : str
        The name in certificates, by which the engine can be asked for.
    independent : bool
        Whether neither the bits nor the price of a layer depend on the layers that run with it. If
        so, the planner decides layer by layer. If not, it decides on all layers that the engine
        would take together, and a layer on which an earlier engine failed has a run of its own.
    shares_a_pass : bool
        Whether layers of an independent engine run together all the same, as that takes less time.
    rough_price : bool
        Whether the price is a guess, such as one at the time of compiling. It then decides only
        between this engine and those after it: engines before it are not weighed against it.
    on_request : bool
        Whether the engine serves only if it is asked for by name.
    """

    name: str
    independent: ClassVar[bool] = False
    shares_a_pass: ClassVar[bool] = False
    rough_price: ClassVar[bool] = False
    on_request: ClassVar[bool] = False

    def declines(self, layer: LayerT, request: CurvatureRequest) -> str:
        """Return the reason why the layer's curvature would not be exact, as far as known now.

        An empty text means that the engine serves. An engine that is asked for by name is not
        asked this.
        """
        return ""

    def price(self, layers: Sequence[LayerT], request: CurvatureRequest) -> float:
        """Return the price of some layers together, in forward passes of the model.

        Infinity means that the engine is never chosen as long as another one serves.
        """
        return math.inf

    def too_dear(self, request: CurvatureRequest) -> str:
        """Return the reason in certificates if the engine was passed over for its price."""
        return ""

    @abstractmethod
    def run(
        self, layers: Sequence[LayerT], request: CurvatureRequest
    ) -> Iterator[LayerFinding | Declined | LayerError]:
        """Yield a result for each of the layers that is not done.

        Parameters
        ----------
        layers : sequence
            The layers that run together, those that are done among them.
        request : CurvatureRequest
            The request.

        Yields
        ------
        LayerFinding, Declined or LayerError
            The curvatures, the reason why another engine must take over, or the reason why there
            are none at all.
        """


def only_gauss_newton(engine: str, kind: CurvatureKind, reason: str) -> str:
    """Return the refusal of an engine that was asked for by name and gives h^GGN alone."""
    remedy = " or curvature='ggn'." if kind == "hessian" else "."
    return (
        f"engine {engine!r} does not give its {kind} curvature ({reason}); choose engine='auto'"
        f"{remedy}"
    )


def second_order_share(second_order: Array, ggn: Array) -> float:
    """Return the largest ``|h − h^GGN| / |h^GGN|``; NaN where an h^GGN is zero."""
    xp = array_api_compat.array_namespace(second_order, ggn)
    if not bool(xp.all(ggn != 0)):
        return math.nan
    return float(xp.max(xp.abs(second_order / ggn)))
