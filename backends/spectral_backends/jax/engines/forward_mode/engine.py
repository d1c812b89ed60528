"""The engine of forward mode: directions go forward, adjoints back for all (Theory 5.9)."""

from collections.abc import Iterator, Sequence

from spectral_backends.jax.engines.forward_mode.tangent_pass import TangentPass, TangentTotals
from spectral_backends.jax.engines.setting import Setting
from spectral_backends.jax.layers.discovery import Layer
from spectral_core.curvature.engine import (
    CurvatureEngine,
    CurvatureRequest,
    Declined,
    LayerFinding,
    second_order_share,
)

__all__ = ["ForwardMode"]

PRICE = 2.0
"""The price of sending one direction forward with all adjoints at hand, in forward passes."""

COMPILING, COMPILING_ELSEWHERE = {"cpu": 4e9}, 1e12
"""The extra time to compile a layer, compared with it alone, in multiply-adds by platform."""


class ForwardMode(CurvatureEngine[Layer]):
    """Sends each direction forward, with adjoints that all layers share: h and h^GGN of any layer.

    The adjoints are those for all layers of a request, so that neither bits nor costs of a layer
    depend on which others are left to this engine.

    Parameters
    ----------
    setting : Setting
        The loss, layers and memory that the engines of the problem share.
    """

    name = "tangents"
    independent = True
    shares_a_pass = True
    rough_price = True  # the time to compile depends on the machine

    def __init__(self, setting: Setting) -> None:
        self._setting = setting

    def price(self, layers: Sequence[Layer], request: CurvatureRequest) -> float:
        """Return the price of all directions, and of the compilation for each layer."""
        setting = self._setting
        platform = next(iter(setting.program.parameters.values[0].devices())).platform
        compiling = setting.of_one_batch(COMPILING.get(platform, COMPILING_ELSEWHERE))
        return sum(
            setting.passes(PRICE * request.n_directions([layer]), layer) + compiling
            for layer in layers
        )

    def run(
        self, layers: Sequence[Layer], request: CurvatureRequest
    ) -> Iterator[LayerFinding | Declined]:
        """Yield the curvatures of each layer, or the reason why tangents cannot be sent."""
        setting = self._setting
        everything = [layer for name, layer in setting.layers.items() if name in request.directions]
        made = TangentPass(
            setting.objective, everything, request.directions,
            second_order=request.kind == "hessian", together=setting.together,
        )  # fmt: skip
        todo = request.todo(layers)
        made.run([layer.info.name for layer in todo], request.progress_callback)
        shared = made.shared_work / request.n_directions(everything)
        for layer in todo:
            name = layer.info.name
            total = made.totals[name]
            if total.problem:
                refusal = f"engine {self.name!r}: {total.problem}; choose engine='auto'."
                yield Declined(name, total.problem, refusal)
                continue
            cost = setting.in_forward_passes(shared + total.work / request.n_directions([layer]))
            yield self._finding(layer, total, request, cost)

    def _finding(
        self, layer: Layer, total: TangentTotals, request: CurvatureRequest, cost: float
    ) -> LayerFinding:
        told, second_order = self._setting.tells_outputs, float("nan")
        if told and request.kind == "hessian":
            second_order = second_order_share(total.values - total.ggn, total.ggn)
        return LayerFinding(
            layer.info.name,
            self._setting.mean(total.values),
            ggn=self._setting.mean(total.ggn) if told else None,
            derivative=self._setting.mean(total.derivative),
            second_order=second_order,
            predicted_cost=self._setting.passes(PRICE, layer),
            cost=cost,
        )
