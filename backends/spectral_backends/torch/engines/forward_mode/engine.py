"""The engine of forward mode: directions go forward, adjoints back for all (Theory 5.9)."""

from collections.abc import Iterator, Sequence

from spectral_backends.torch.engines.forward_mode.tangent_pass import TangentPass, TangentTotals
from spectral_backends.torch.engines.setting import Setting
from spectral_backends.torch.layers.discovery import Layer
from spectral_core.curvature.engine import (
    CurvatureEngine,
    CurvatureRequest,
    Declined,
    LayerFinding,
    second_order_share,
)
from spectral_core.errors import InputError

__all__ = ["ForwardMode"]

TANGENT_PRICE = 1.5
"""The time of one direction sent forward, over that of the work counted for it."""

RECORDING_PRICE = 5.0
"""The price of recording a batch and sending its adjoints back, in forward passes."""

DIRECT_USE = "the loss uses its weight directly"


class ForwardMode(CurvatureEngine[Layer]):
    """Sends each direction forward over a recorded batch: h and h^GGN of any layer.

    Parameters
    ----------
    setting : Setting
        The state that the engines of the problem share.
    """

    name = "tangents"

    def __init__(self, setting: Setting) -> None:
        self._setting = setting

    def declines(self, layer: Layer, request: CurvatureRequest) -> str:
        """Return a reason if h^GGN is asked for and the outputs are not told from the loss."""
        return "the outputs are not told from the loss" if self._lacks_outputs(request) else ""

    def price(self, layers: Sequence[Layer], request: CurvatureRequest) -> float:
        """Return the price of all directions, through the network behind their layers."""
        return sum(
            TANGENT_PRICE
            * request.n_directions([layer])
            * self._setting.structure.downstream(layer)
            for layer in layers
        )

    def run(
        self, layers: Sequence[Layer], request: CurvatureRequest
    ) -> Iterator[LayerFinding | Declined]:
        """Yield the findings, group after group, so that finished layers can be kept."""
        for group in self._groups(layers, request):
            if todo := request.todo(group):
                yield from self._of_group(group, todo, request)

    def _groups(self, layers: Sequence[Layer], request: CurvatureRequest) -> list[list[Layer]]:
        """Return layers to record together: so many that the price of recording is small."""
        groups: list[list[Layer]] = []
        cost = 0.0
        for layer in layers:
            if not groups or cost > 20 * RECORDING_PRICE:
                groups.append([])
                cost = 0.0
            groups[-1].append(layer)
            cost += self.price([layer], request)
        return groups

    def _of_group(
        self, group: list[Layer], todo: list[Layer], request: CurvatureRequest
    ) -> Iterator[LayerFinding | Declined]:
        if self._lacks_outputs(request):
            yield from (Declined(layer.info.name, DIRECT_USE) for layer in todo)
            return
        try:
            made = self._made(group, request)
        except InputError:
            raise
        except Exception as error:  # the model cannot be taken apart, or memory is short
            first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            yield from (Declined(layer.info.name, f"not by tangents: {first}") for layer in todo)
            return
        directions = request.n_directions(group)
        predicted = (RECORDING_PRICE + self.price(group, request)) / directions
        cost = self._setting.in_forward_passes(made.work) / directions
        for layer in todo:
            told = made.tells_ggn(layer)
            if request.kind == "ggn" and not told:
                yield Declined(layer.info.name, DIRECT_USE)
                continue
            total = made.totals[layer.info.name]
            yield self._finding(layer, total, made.count, told, request, predicted, cost)

    def _made(self, group: list[Layer], request: CurvatureRequest) -> TangentPass:
        names = ", ".join(layer.info.name for layer in group[:2]) + (", …" if group[2:] else "")

        def make(channels_last: bool) -> TangentPass:
            return TangentPass(
                self._setting.objective, group, request.directions, self._setting.seed,
                self._setting.together, channels_last=channels_last,
            )  # fmt: skip

        return self._setting.run_pass(make, names, request.progress_callback)

    def _finding(
        self,
        layer: Layer,
        total: TangentTotals,
        count: float,
        told: bool,
        request: CurvatureRequest,
        predicted: float,
        cost: float,
    ) -> LayerFinding:
        cast, structure = self._setting.cast, self._setting.structure
        ggn = cast(total.ggn / count) if told else None
        h = cast((total.ggn + total.second_order) / count)
        return LayerFinding(
            layer.info.name,
            ggn if request.kind == "ggn" else h,
            ggn=ggn,
            derivative=cast(total.derivative / count),
            reason=structure.nonlinear.get(layer.parameter, ""),
            second_order=second_order_share(total.second_order, total.ggn)
            if told
            else float("nan"),
            tolerance=self._setting.tolerance,
            predicted_cost=predicted,
            cost=cost,
        )

    def _lacks_outputs(self, request: CurvatureRequest) -> bool:
        return request.kind == "ggn" and self._setting.structure.n_outputs is None
