"""Curvatures of many layers: which engine for which layer, and what shows that it is right."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from spectral_backends.torch.engines.forward_mode.engine import TangentPass
from spectral_backends.torch.engines.ggn_columns import ColumnPass, ColumnTotals
from spectral_backends.torch.engines.linearity_probe import N_DIRECTIONS, probe_second_order
from spectral_backends.torch.engines.structure import Structure
from spectral_backends.torch.layers.discovery import Layer
from spectral_backends.torch.objective.objective import Objective
from spectral_core.curvature.certificate import Certificate, Engine, LayerCurvature
from spectral_core.curvature.problem import CurvatureKind
from spectral_core.errors import InputError, LayerError

__all__ = ["CurvatureDriver"]

COLUMN_PRICE, TANGENT_PRICE = 1.25, 1.5
"""Time of one column back, and of one direction forward, over that of the work counted for it."""

RECORDING_PRICE = 5.0
"""Forward passes that it takes to record a batch and send its adjoints back."""

MAX_OUTPUTS = 256
"""Outputs of a sample beyond which no dense root of the loss's Hessian is made."""

OneLayer = Callable[[str, Tensor, Tensor, CurvatureKind], Tensor]
Finding = LayerCurvature | LayerError
Pass = TypeVar("Pass", ColumnPass, TangentPass)


class CurvatureDriver:
    """Computes the curvatures of layers, each by the cheapest engine that is exact for it.

    Parameters
    ----------
    objective : Objective
        The mean loss.
    structure : Structure
        Of the model.
    directions : mapping of str to (Tensor, Tensor)
        By layer: u of shape ``(m, K)`` and v of shape ``(n, K)``.
    kind : {"hessian", "ggn"}
        Which curvature.
    one_layer : callable
        Computes the curvatures of one layer by differentiating the graph of its gradient.
    seed : int
        Of every pass.
    columns_together, tangents_together : callable
        How many to send together, of the bytes of one.
    draws : int
        Of the Monte-Carlo engine, for each batch.
    tell : callable
        Is told what is being done.
    precision : torch.dtype
        The narrowest type on the way from the parameters to the loss.
    """

    def __init__(
        self,
        objective: Objective,
        structure: Structure,
        directions: Mapping[str, tuple[Tensor, Tensor]],
        kind: CurvatureKind,
        *,
        one_layer: OneLayer,
        seed: int,
        columns_together: Callable[[int], int],
        tangents_together: Callable[[int], int],
        draws: int,
        tell: Callable[[str], None],
        precision: torch.dtype,
    ) -> None:
        self._objective, self._structure = objective, structure
        self._directions, self._kind, self._one_layer = directions, kind, one_layer
        self._seed, self._draws, self._tell = seed, draws, tell
        self._columns_together, self._tangents_together = columns_together, tangents_together
        self._layers = [layer for name, layer in structure.layers.items() if name in directions]
        self._tolerance = 100 * torch.finfo(precision).eps

    def run(self, engine: Engine, done: Collection[str]) -> Iterator[Finding]:
        """Yield the curvatures of each layer that is not done, or why it has none.

        What is done does not change how the others are computed.
        """
        columns, tangents, reasons = self._plan(engine)
        for finding in self._by_columns(columns, engine, done):
            if isinstance(finding, LayerCurvature | LayerError):
                yield finding
            else:
                name, reason = finding
                reasons[name] = reason
                tangents.append([self._structure.layers[name]])
        for group in tangents:
            yield from self._by_tangents(group, reasons, done)
        if engine == "double-backward" or (
            self._kind == "ggn" and self._structure.n_outputs is None
        ):
            for layer in self._layers:
                if layer.info.name not in done:
                    yield self._alone(layer, "")

    # Planning

    def _plan(self, engine: Engine) -> tuple[list[Layer], list[list[Layer]], dict[str, str]]:
        """Return the layers for the columns, groups of layers for the tangents, and reasons."""
        outputs, layers = self._structure.n_outputs, self._layers
        if engine == "double-backward" or (self._kind == "ggn" and outputs is None):
            return [], [], {}
        if engine in ("columns", "monte-carlo"):
            return layers, [], {}
        flat = [layer for layer in layers if self._is_flat(layer)]
        reasons = {
            layer.info.name: self._structure.curved.get(layer.parameter, "") for layer in layers
        }
        if engine == "tangents" or outputs is None or not flat:
            return [], self._groups(layers), reasons
        if self._columns_cost(flat, outputs) > sum(map(self._tangents_cost, flat)):
            return [], self._groups(layers), reasons
        return flat, self._groups([layer for layer in layers if layer not in flat]), reasons

    def _is_flat(self, layer: Layer) -> bool:
        """Say whether h^GGN is what is asked for, as far as the first batch shows."""
        return self._kind == "ggn" or layer.parameter not in self._structure.curved

    def _columns_cost(self, layers: Sequence[Layer], n_columns: int) -> float:
        """Return the price of sending columns back for some layers, in forward passes."""
        reach = max(map(self._structure.downstream, layers))
        return 2 + COLUMN_PRICE * reach * (n_columns + 1)

    def _tangents_cost(self, layer: Layer) -> float:
        """Return the price of sending a layer's directions forward, in forward passes."""
        return TANGENT_PRICE * self._n_directions(layer) * self._structure.downstream(layer)

    def _groups(self, layers: Sequence[Layer]) -> list[list[Layer]]:
        """Return layers to record together: enough for the recording not to matter.

        Each group is finished before the next one is begun, so that its layers can be kept.
        """
        groups: list[list[Layer]] = []
        cost = 0.0
        for layer in layers:
            if not groups or cost > 20 * RECORDING_PRICE:
                groups.append([])
                cost = 0.0
            groups[-1].append(layer)
            cost += self._tangents_cost(layer)
        return groups

    # Columns

    def _by_columns(
        self, layers: list[Layer], engine: Engine, done: Collection[str]
    ) -> Iterator[Finding | tuple[str, str]]:
        """Yield findings, or a layer's name with the reason why the columns do not do for it."""
        todo = [layer.info.name for layer in layers if layer.info.name not in done]
        if not todo:
            return
        draws = self._draws if engine == "monte-carlo" else 0

        def make(channels_last: bool) -> ColumnPass:
            return ColumnPass(
                self._objective, layers, self._directions, self._seed, self._columns_together,
                draws=draws, max_outputs=MAX_OUTPUTS, channels_last=channels_last,
            )  # fmt: skip

        try:
            made = self._run(make, f"{len(layers)} layers")
        except Exception as error:  # a loss without a root, or that cannot be taken apart
            if engine != "auto":
                raise
            yield from ((name, str(error)) for name in todo)
            return
        shares = self._probed(
            [layer for layer in layers if not made.totals[layer.info.name].curved]
        )
        directions = sum(map(self._n_directions, layers))
        n_columns = draws or self._structure.n_outputs or 0
        for name in todo:
            total, share = made.totals[name], shares.get(name)
            flat = not total.curved and share is not None and share <= self._tolerance
            reason = total.problem or ("" if flat else self._why_curved(total, share))
            if self._kind == "ggn":
                reason = total.problem
            if total.problem or (self._kind == "hessian" and not flat):
                yield self._not_by_columns(name, reason, engine)
                continue
            spread = None
            if draws:
                spread = (total.variance.sqrt() / made.count).cpu().double().numpy()
            certificate = Certificate(
                engine="monte-carlo" if draws else "columns",
                piecewise_linear=flat,
                reason=reason,
                second_order=float("nan") if share is None else share,
                tolerance=self._tolerance,
                predicted_cost=self._columns_cost(layers, n_columns) / directions,
                cost=self._in_forward_passes(made.work) / directions,
                standard_error=spread,
            )
            values = self._cast(total.ggn / made.count)
            yield LayerCurvature(
                name, values, certificate, values, self._cast(total.derivative / made.count)
            )

    def _not_by_columns(
        self, name: str, reason: str, engine: Engine
    ) -> LayerError | tuple[str, str]:
        if engine == "auto":
            return name, reason
        return LayerError(
            name,
            f"engine {engine!r} does not give its {self._kind} curvature ({reason}); choose "
            "engine='auto'" + (" or curvature='ggn'." if self._kind == "hessian" else "."),
        )

    def _probed(self, layers: list[Layer]) -> dict[str, float]:
        """Return the second-order share on random directions; nothing where it cannot be had."""
        if not layers or self._kind == "ggn":
            return {}
        try:
            return probe_second_order(self._objective, layers, self._seed)
        except Exception:
            return {}

    def _why_curved(self, total: ColumnTotals, share: float | None) -> str:
        if total.curved:
            return total.curved
        if share is None:
            return "its second-order part could not be probed"
        return (
            f"second-order part of {share:.2g} on {N_DIRECTIONS} random directions, above "
            f"{self._tolerance:.2g}"
        )

    # Tangents

    def _by_tangents(
        self, group: list[Layer], reasons: Mapping[str, str], done: Collection[str]
    ) -> Iterator[Finding]:
        todo = [layer for layer in group if layer.info.name not in done]
        if not todo:
            return
        names = ", ".join(layer.info.name for layer in group[:2]) + (", …" if group[2:] else "")

        def make(channels_last: bool) -> TangentPass:
            return TangentPass(
                self._objective, group, self._directions, self._seed, self._tangents_together,
                channels_last=channels_last,
            )  # fmt: skip

        try:
            made = self._run(make, names)
        except InputError:
            raise
        except Exception as error:  # a model that cannot be taken apart, or not enough memory
            first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            for layer in todo:
                yield self._alone(layer, f"not by tangents: {first}")
            return
        directions = sum(map(self._n_directions, group))
        predicted = RECORDING_PRICE + sum(map(self._tangents_cost, group))
        for layer in todo:
            name = layer.info.name
            total, told = made.totals[name], made.tells_ggn(layer)
            if self._kind == "ggn" and not told:
                yield self._alone(layer, "the loss uses its weight directly")
                continue
            share = float("nan")
            if told and bool((total.ggn != 0).all()):
                share = float((total.second_order / total.ggn).abs().max())
            ggn = self._cast(total.ggn / made.count) if told else None
            h = self._cast((total.ggn + total.second_order) / made.count)
            certificate = Certificate(
                engine="tangents",
                reason=reasons.get(name, ""),
                second_order=share,
                tolerance=self._tolerance,
                predicted_cost=predicted / directions,
                cost=self._in_forward_passes(made.work) / directions,
            )
            values = ggn if self._kind == "ggn" else h
            derivative = self._cast(total.derivative / made.count)
            yield LayerCurvature(name, values, certificate, ggn, derivative)

    def _run(self, make: Callable[[bool], Pass], what: str) -> Pass:
        """Make a pass and run it: with the faster layout, unless the model does not allow for it.

        A model may ask for a view that only the usual layout has.
        """
        made = make(self._objective.model.device.type == "cpu")
        try:
            made.run(lambda n: self._tell(f"{what}, batch {n}"))
        except InputError:
            raise
        except Exception:
            made = make(False)
            made.run(lambda n: self._tell(f"{what}, batch {n}"))
        return made

    def _alone(self, layer: Layer, reason: str) -> Finding:
        """Differentiate the graph of the layer's gradient once for each direction."""
        name = layer.info.name
        self._tell(name)
        try:
            values = self._one_layer(name, *self._directions[name], self._kind)
        except LayerError as error:
            return error
        certificate = Certificate(engine="double-backward", reason=reason)
        ggn = values if self._kind == "ggn" else None
        return LayerCurvature(name, values, certificate, ggn)

    def _n_directions(self, layer: Layer) -> int:
        return int(self._directions[layer.info.name][0].shape[1])

    def _in_forward_passes(self, work: float) -> float:
        return work / self._structure.work if self._structure.work else float("nan")

    def _cast(self, values: Tensor) -> Tensor:
        return values.to(self._objective.model.dtype)
