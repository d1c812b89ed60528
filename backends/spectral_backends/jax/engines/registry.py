"""Curvatures of many layers: which engine for which layer, and what shows that it is right."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from math import prod
from typing import Any

import jax.numpy as jnp
import numpy as np

from spectral_backends.jax.engines.forward_mode import TangentPass, TangentTotals
from spectral_backends.jax.engines.ggn_columns import ColumnPass, ColumnTotals
from spectral_backends.jax.engines.linearity_probe import N_DIRECTIONS, probe_second_order
from spectral_backends.jax.jaxprs.linearity import find_curvature
from spectral_backends.jax.layers.discovery import Layer
from spectral_backends.jax.objective.compiled import Batch, tallied
from spectral_backends.jax.objective.objective import Objective
from spectral_core.curvature.certificate import Certificate, Engine, LayerCurvature
from spectral_core.curvature.problem import CurvatureKind
from spectral_core.errors import InputError, LayerError

__all__ = ["CurvatureDriver"]

COLUMN_PRICE, DIRECTION_PRICE = 2.0, 3.0
"""Forward passes that it takes to send one output back, and one direction forward twice."""

TANGENT_PRICE = 2.0
"""Forward passes that it takes to send one direction forward once, with all adjoints at hand."""

COMPILING, COMPILING_ELSEWHERE = {"cpu": 4e9}, 1e12
"""Multiply-adds, by platform, in the time by which tangents of a layer take longer to compile."""

MAX_OUTPUTS = 256
"""Outputs of a sample beyond which the columns are never chosen."""

OneLayer = Callable[[str, Any, Any, CurvatureKind], Any]
Finding = LayerCurvature | LayerError


class CurvatureDriver:
    """Computes the curvatures of layers, each by the cheapest engine that is exact for it.

    Parameters
    ----------
    objective : Objective
        The mean loss.
    layers : mapping of str to Layer
        Those to measure.
    directions : mapping of str to (u, v)
        By layer: u of shape ``(m, K)`` and v of shape ``(n, K)``.
    kind : {"hessian", "ggn"}
        Which curvature.
    one_layer : callable
        Computes the curvatures of one layer by itself.
    memory_budget : int
        Bytes that what is computed together may take.
    together : callable
        ``together(batch, layer)`` is the number of directions that go forward together.
    tell : callable
        Is told what is being done.
    """

    def __init__(
        self,
        objective: Objective,
        layers: Mapping[str, Layer],
        directions: Mapping[str, tuple[Any, Any]],
        kind: CurvatureKind,
        *,
        one_layer: OneLayer,
        memory_budget: int,
        together: Callable[[Batch, Layer], int],
        tell: Callable[[str], None],
    ) -> None:
        self._objective, self._directions, self._kind = objective, directions, kind
        self._layers = [layer for name, layer in layers.items() if name in directions]
        self._one_layer, self._tell = one_layer, tell
        self._budget, self._together = memory_budget, together
        self._tolerance = 100 * objective.eps

    def run(self, engine: Engine, done: Collection[str]) -> Iterator[Finding]:
        """Yield the curvatures of each layer that is not done, or why it has none.

        What is done does not change how the others are computed.
        """
        columns, reasons = self._plan(engine)
        for finding in self._by_columns(columns, engine, done):
            if isinstance(finding, LayerCurvature | LayerError):
                yield finding
            else:
                name, reason = finding
                reasons[name] = reason
        todo = {name: reason for name, reason in reasons.items() if name not in done}
        if engine != "double-backward":
            for finding in self._by_tangents(todo, engine):
                if isinstance(finding, LayerCurvature | LayerError):
                    yield finding
                    del todo[finding.name if isinstance(finding, LayerCurvature) else finding.layer]
                else:
                    name, reason = finding
                    todo[name] = reason
        for name, reason in todo.items():
            yield self._alone(name, reason)

    def _plan(self, engine: Engine) -> tuple[list[Layer], dict[str, str]]:
        """Return the layers for the columns, and the reasons why others are measured alone."""
        names = [layer.info.name for layer in self._layers]
        program = self._objective.first().program
        if engine in ("double-backward", "tangents"):
            return [], dict.fromkeys(names, "")
        if not program.single_output:
            if engine == "columns":
                raise InputError(
                    "engine 'columns' needs the model's outputs as one array with an axis of "
                    "samples in front; pass the pair (forward, loss), or choose engine='auto'."
                )
            return [], dict.fromkeys(names, "the outputs are not told as one array of samples")
        if engine == "columns":
            return self._layers, {}
        reasons = {
            name: self._why_not(layer) for name, layer in zip(names, self._layers, strict=True)
        }
        flat = [layer for layer in self._layers if not reasons[layer.info.name]]
        columns_cost = self._columns_cost()
        if self._n_outputs > MAX_OUTPUTS or columns_cost > sum(map(self._alone_cost, flat)):
            why = f"the columns of {self._n_outputs} outputs cost more"
            return [], {name: reason or why for name, reason in reasons.items()}
        return flat, {name: reason for name, reason in reasons.items() if reason}

    def _why_not(self, layer: Layer) -> str:
        """Say why the columns do not give the layer's curvature, as far as its jaxpr shows."""
        if layer.hidden:
            return layer.hidden
        return "" if self._kind == "ggn" else self._curved.get(layer.parameter, "")

    @cached_property
    def _curved(self) -> dict[int, str]:
        """Return the parameters in which the outputs are curved, with the operation."""
        program = self._objective.first().program
        return find_curvature(program.model, len(self._objective.parameters.values))

    @cached_property
    def _n_outputs(self) -> int:
        """Return the number of outputs of a sample."""
        forward = self._objective.first().program.forward
        assert forward is not None
        return prod(forward.out_avals[0].shape[1:])

    def _columns_cost(self) -> float:
        return 2 + COLUMN_PRICE * (self._n_outputs + 1)

    def _alone_cost(self, layer: Layer) -> float:
        """Return the price of a layer's directions in forward passes, of what lies behind it."""
        behind, whole = self._work(layer)
        return DIRECTION_PRICE * self._n_directions(layer) * behind / whole

    def _work(self, layer: Layer) -> tuple[float, float]:
        """Return the multiply-adds of a batch in the layers from this one on, and in all."""
        first = layer.family.uses[0].site
        everything = self._objective.first().program.layers.values()
        behind = sum(other.work for other in everything if other.family.uses[-1].site >= first)
        return behind, sum(other.work for other in everything) or 1.0

    # Columns

    def _by_columns(
        self, layers: Sequence[Layer], engine: Engine, done: Collection[str]
    ) -> Iterator[Finding | tuple[str, str]]:
        """Yield findings, or a layer's name with the reason why the columns do not do for it."""
        todo = [layer.info.name for layer in layers if layer.info.name not in done]
        if not todo:
            return
        made = ColumnPass(self._objective, layers, self._directions, self._budget)
        with tallied() as tally:
            made.run(lambda n: self._tell(f"{len(layers)} layers, batch {n}"))
        directions = sum(map(self._n_directions, layers))
        cost = self._in_forward_passes(tally.work) / directions
        named = {layer.info.name: layer for layer in layers}
        flat = [name for name in todo if not self._curved.get(named[name].parameter)]
        shares = probe_second_order(self._objective, flat) if flat and self._kind != "ggn" else {}
        predicted = self._columns_cost() / directions
        for name in todo:
            reason = self._why_wrong(named[name], made.totals[name], shares.get(name))
            if reason:
                yield self._not_by_columns(name, reason, engine)
                continue
            yield self._finding(name, made.totals[name], shares.get(name), predicted, cost)

    def _why_wrong(self, layer: Layer, total: ColumnTotals, share: float | None) -> str:
        if total.problem or layer.hidden:
            return total.problem or layer.hidden
        if self._kind == "ggn":
            return ""
        if share is None:
            return self._curved[layer.parameter]
        if not share <= self._tolerance:
            return (
                f"second-order part of {share:.2g} on {N_DIRECTIONS} random directions, above "
                f"{self._tolerance:.2g}"
            )
        return ""

    def _finding(
        self,
        name: str,
        total: ColumnTotals,
        share: float | None,
        predicted: float,
        cost: float,
    ) -> LayerCurvature:
        count, dtype = self._objective.n_terms, self._objective.parameters.dtype
        values = jnp.asarray(total.ggn / count, dtype)
        certificate = Certificate(
            engine="columns",
            piecewise_linear=share is not None,
            second_order=float("nan") if share is None else share,
            tolerance=self._tolerance,
            predicted_cost=predicted,
            cost=cost,
        )
        derivative = jnp.asarray(total.derivative / count, dtype)
        return LayerCurvature(name, values, certificate, values, derivative)

    def _not_by_columns(
        self, name: str, reason: str, engine: Engine
    ) -> LayerError | tuple[str, str]:
        if engine == "auto":
            return name, reason
        return LayerError(
            name,
            f"engine 'columns' does not give its {self._kind} curvature ({reason}); choose "
            "engine='auto'" + (" or curvature='ggn'." if self._kind == "hessian" else "."),
        )

    # Tangents

    def _by_tangents(
        self, reasons: Mapping[str, str], engine: Engine
    ) -> Iterator[Finding | tuple[str, str]]:
        """Yield findings, or a layer's name with the reason why it must be measured alone."""
        named = {layer.info.name: layer for layer in self._layers}
        wanted = [name for name in reasons if engine == "tangents" or self._is_long(named[name])]
        if not wanted:
            return
        made = TangentPass(
            self._objective, self._layers, self._directions, bends=self._kind == "hessian",
            together=self._together,
        )  # fmt: skip
        made.run(wanted, self._tell)
        shared = made.shared_work / sum(map(self._n_directions, self._layers))
        for name in wanted:
            total = made.totals[name]
            if not total.problem:
                work = shared + total.work / self._n_directions(named[name])
                yield self._forward_finding(named[name], total, reasons[name], work)
            elif engine == "auto":
                yield name, total.problem
            else:
                yield LayerError(name, f"engine 'tangents': {total.problem}; choose engine='auto'.")

    def _is_long(self, layer: Layer) -> bool:
        """Say whether what the tangents save is worth the time to compile them."""
        platform = next(iter(self._objective.parameters.values[0].devices())).platform
        passes = (DIRECTION_PRICE - TANGENT_PRICE) * self._n_directions(layer)
        saved = passes * self._work(layer)[0] * len(self._objective.terms)
        return saved > COMPILING.get(platform, COMPILING_ELSEWHERE)

    def _forward_finding(
        self, layer: Layer, total: TangentTotals, reason: str, work: float
    ) -> LayerCurvature:
        count, dtype = self._objective.n_terms, self._objective.parameters.dtype
        told = self._objective.first().program.forward is not None
        h, ggn, derivative = (
            jnp.asarray(each / count, dtype) for each in (total.values, total.ggn, total.derivative)
        )
        second_order = float("nan")
        if told and self._kind == "hessian" and np.all(total.ggn):
            second_order = float(np.max(np.abs((total.values - total.ggn) / total.ggn)))
        behind, whole = self._work(layer)
        certificate = Certificate(
            engine="tangents",
            reason=reason,
            second_order=second_order,
            predicted_cost=TANGENT_PRICE * behind / whole,
            cost=self._in_forward_passes(work),
        )
        return LayerCurvature(layer.info.name, h, certificate, ggn if told else None, derivative)

    # One by one

    def _alone(self, name: str, reason: str) -> Finding:
        """Differentiate the loss along each direction of one layer."""
        self._tell(name)
        try:
            with tallied() as tally:
                values = self._one_layer(name, *self._directions[name], self._kind)
        except LayerError as error:
            return error
        work = tally.work / self._directions[name][0].shape[1]
        cost = self._in_forward_passes(work)
        certificate = Certificate(engine="double-backward", reason=reason, cost=cost)
        return LayerCurvature(name, values, certificate, values if self._kind == "ggn" else None)

    def _in_forward_passes(self, work: float) -> float:
        whole = self._objective.work_of_a_pass
        return work / whole if whole else float("nan")

    def _n_directions(self, layer: Layer) -> int:
        return int(self._directions[layer.info.name][0].shape[1])
