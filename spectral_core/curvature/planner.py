"""The planner assigns layers to engines and passes those on which one fails to the next.

A backend lists its engines in order; the last is the one that serves where no other does. Each in
turn takes the layers for which it is exact, unless later engines would do the same for less. A
layer that an engine declines, before a run or after it, goes on to the next engine, and its
certificate says why. Which layers are done changes nothing for the others.
"""

from collections.abc import Generator, Iterator, Sequence
from typing import Generic

from spectral_core.curvature.certificate import LayerCurvature
from spectral_core.curvature.engine import (
    CurvatureEngine,
    CurvatureRequest,
    LayerFinding,
    LayerT,
)
from spectral_core.errors import LayerError

__all__ = ["curvatures_by"]


def curvatures_by(
    engines: Sequence[CurvatureEngine[LayerT]],
    layers: Sequence[LayerT],
    request: CurvatureRequest,
) -> Iterator[LayerCurvature | LayerError]:
    """Yield the curvatures of each layer that is not done, or the reason why it has none.

    Parameters
    ----------
    engines : sequence of CurvatureEngine
        The engines of a backend, in the order in which they are asked.
    layers : sequence
        The layers of the request, as the backend knows them.
    request : CurvatureRequest
        The request. An engine that it names computes all layers.
    """
    chain = _chain(engines, request.engine)
    apart = all(engine.independent and not engine.shares_a_pass for engine in chain)
    for group in [[layer] for layer in layers] if apart else [layers]:
        if request.todo(group):
            yield from _Planner(chain, request).run(group)


def _chain(engines: Sequence[CurvatureEngine[LayerT]], asked: str) -> list[CurvatureEngine[LayerT]]:
    """Return the engine that is asked for and those after it, or all that serve unasked."""
    names = [engine.name for engine in engines]
    start = 0 if asked == "auto" else names.index(asked)
    return [e for e in engines[start:] if e.name == asked or not e.on_request]


class _Planner(Generic[LayerT]):
    """The way of some layers along a chain of engines."""

    def __init__(self, chain: list[CurvatureEngine[LayerT]], request: CurvatureRequest) -> None:
        self._chain, self._request = chain, request
        self._reasons: dict[str, list[str]] = {}

    def run(self, layers: Sequence[LayerT]) -> Iterator[LayerCurvature | LayerError]:
        """Let each engine compute what it takes of the layers that are left."""
        left, fallen = list(layers), list[LayerT]()
        for position, engine in enumerate(self._chain):
            planned = self._taken(position, left)
            late = [layer for layer in fallen if self._taken(position, [layer])]
            left = _without(left, planned)
            fallen = _without(fallen, late)
            for group in _groups(engine, planned, late):
                if self._request.todo(group):
                    fallen += yield from self._computed(engine, group)
        for layer in self._request.todo(left) + fallen:
            name = layer.info.name
            reasons = self._reasons.get(name, ["no engine gives its curvature."])
            yield LayerError(name, " And ".join(reasons))

    def _taken(self, position: int, layers: Sequence[LayerT]) -> list[LayerT]:
        """Return the layers that an engine of the chain takes."""
        engine, later = self._chain[position], self._chain[position + 1 :]
        if engine.name == self._request.engine:
            return list(layers)
        exact = [layer for layer in layers if not self._declines(engine, layer)]
        if engine.independent:
            return [layer for layer in exact if self._is_worth_it(engine, [layer], later)]
        return exact if exact and self._is_worth_it(engine, exact, later) else []

    def _declines(self, engine: CurvatureEngine[LayerT], layer: LayerT) -> bool:
        if engine.independent and not self._request.todo([layer]):
            return True  # a finished layer has no part in such an engine's decisions
        return self._noted(layer, engine.declines(layer, self._request))

    def _is_worth_it(
        self,
        engine: CurvatureEngine[LayerT],
        layers: Sequence[LayerT],
        later: Sequence[CurvatureEngine[LayerT]],
    ) -> bool:
        """Return whether later engines, each layer by its cheapest, would not cost less."""
        later = [each for each in later if not each.rough_price]
        if not later:
            return True
        request = self._request
        if engine.price(layers, request) <= sum(self._cheapest(each, later) for each in layers):
            return True
        for layer in layers:
            self._noted(layer, engine.too_dear(request))
        return False

    def _cheapest(self, layer: LayerT, engines: Sequence[CurvatureEngine[LayerT]]) -> float:
        request = self._request
        serving = (each for each in engines if not each.declines(layer, request))
        return min((each.price([layer], request) for each in serving), default=float("inf"))

    def _computed(
        self, engine: CurvatureEngine[LayerT], layers: Sequence[LayerT]
    ) -> Generator[LayerCurvature | LayerError, None, list[LayerT]]:
        """Yield what an engine finds; return the layers that must go on to the next one."""
        named, fallen = {layer.info.name: layer for layer in layers}, []
        for found in engine.run(layers, self._request):
            if isinstance(found, LayerFinding):
                reason = self._reasons.get(found.name, [""])[-1]
                yield found.certified(engine.name, self._request.kind, reason)
            elif isinstance(found, LayerError):
                yield found
            elif found.refusal and engine.name == self._request.engine:
                yield LayerError(found.name, found.refusal)
            else:
                self._noted(named[found.name], found.reason)
                fallen.append(named[found.name])
        return fallen

    def _noted(self, layer: LayerT, reason: str) -> bool:
        """Keep a reason why an engine does not take a layer; say whether there is one."""
        if reason:
            self._reasons.setdefault(layer.info.name, []).append(reason)
        return bool(reason)


def _groups(
    engine: CurvatureEngine[LayerT], planned: list[LayerT], late: list[LayerT]
) -> list[list[LayerT]]:
    """Return the groups that run together; a layer that fails must not change the others' bits."""
    return [planned + late] if engine.independent else [planned, *([layer] for layer in late)]


def _without(layers: list[LayerT], taken: list[LayerT]) -> list[LayerT]:
    names = {layer.info.name for layer in taken}
    return [layer for layer in layers if layer.info.name not in names]
