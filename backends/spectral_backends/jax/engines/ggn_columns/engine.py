"""The engine of GGN columns: every output sent back once, for all layers and directions."""

from collections.abc import Iterator, Sequence

from spectral_backends.jax.engines.ggn_columns.column_pass import ColumnPass, ColumnTotals
from spectral_backends.jax.engines.linearity_probe import N_DIRECTIONS, probe_second_order
from spectral_backends.jax.engines.setting import Setting
from spectral_backends.jax.layers.discovery import Layer
from spectral_backends.jax.objective.compiled import tallied
from spectral_core.curvature.engine import (
    CurvatureEngine,
    CurvatureRequest,
    Declined,
    LayerFinding,
    only_gauss_newton,
)
from spectral_core.errors import InputError

__all__ = ["GGNColumns"]

COLUMN_PRICE = 2.0
"""The price of sending one output back, in forward passes."""

MAX_OUTPUTS = 256
"""The number of outputs of a sample beyond which the columns are never chosen."""


class GGNColumns(CurvatureEngine[Layer]):
    """Sends every output back once, for all layers and directions (Theory 5.4).

    It gives h^GGN, and h if the outputs are piecewise linear in the weight. That is the case if no
    operation behind the weight is nonlinear, and the second-order part on random directions is
    rounding.

    Parameters
    ----------
    setting : Setting
        The loss, layers and memory that the engines of the problem share.
    """

    name = "columns"

    def __init__(self, setting: Setting) -> None:
        self._setting = setting

    def declines(self, layer: Layer, request: CurvatureRequest) -> str:
        """Return why the columns do not give the layer's curvature, as far as its jaxpr tells."""
        if self._setting.n_outputs is None:
            return "the outputs are not told as one array of samples"
        if layer.hidden or request.kind == "ggn":
            return layer.hidden
        return self._setting.nonlinear.get(layer.parameter, "")

    def price(self, layers: Sequence[Layer], request: CurvatureRequest) -> float:
        """Return the price of all columns, which does not depend on the layers."""
        outputs = self._setting.n_outputs
        return float("inf") if outputs is None or outputs > MAX_OUTPUTS else self._cost(outputs)

    def too_dear(self, request: CurvatureRequest) -> str:
        """Return a sentence on the number of columns."""
        return f"the columns of {self._setting.n_outputs} outputs cost more"

    def run(
        self, layers: Sequence[Layer], request: CurvatureRequest
    ) -> Iterator[LayerFinding | Declined]:
        """Yield the curvatures of each layer, or the reason why the columns do not give them."""
        outputs = self._setting.n_outputs
        if outputs is None:
            raise InputError(
                "engine 'columns' needs the model's outputs as one array with an axis of samples "
                "in front; pass the pair (forward, loss), or choose engine='auto'."
            )
        with tallied() as tally:
            made = self._made(layers, request)
        shares = self._probed(layers, request)
        directions = request.n_directions(layers)
        cost = self._setting.in_forward_passes(tally.work) / directions
        for layer in request.todo(layers):
            name = layer.info.name
            total, share = made.totals[name], shares.get(name)
            if reason := self._why_not(layer, total, share, request):
                yield Declined(name, reason, only_gauss_newton(self.name, request.kind, reason))
                continue
            own = slice(0, request.n_directions([layer]))
            values, derivative = map(self._setting.mean, (total.ggn, total.derivative))
            yield LayerFinding(
                name,
                values[own],
                ggn=values[own],
                derivative=derivative[own],
                more=(more := values[own.stop :] if name in request.more_directions else None),
                more_ggn=more,
                piecewise_linear=share is not None,
                second_order=float("nan") if share is None else share,
                tolerance=self._setting.tolerance,
                predicted_cost=self._cost(outputs) / directions,
                cost=cost,
            )

    def _cost(self, outputs: int) -> float:
        return 2 + COLUMN_PRICE * (outputs + 1)

    def _made(self, layers: Sequence[Layer], request: CurvatureRequest) -> ColumnPass:
        setting = self._setting
        made = ColumnPass(
            setting.objective, layers, request.all_directions(), setting.memory_budget
        )
        made.run(lambda n: request.progress_callback(f"{len(layers)} layers, batch {n}"))
        return made

    def _probed(self, layers: Sequence[Layer], request: CurvatureRequest) -> dict[str, float]:
        """Return the second-order share on random directions of layers that look flat.

        Those that are done are among them, as each layer's directions depend on those before it.
        """
        flat = [
            layer.info.name for layer in layers if not self._setting.nonlinear.get(layer.parameter)
        ]
        if not flat or request.kind == "ggn":
            return {}
        whole = self._setting.whole
        return whole.cache.once(("second order", *flat), lambda: probe_second_order(whole, flat))

    def _why_not(
        self, layer: Layer, total: ColumnTotals, share: float | None, request: CurvatureRequest
    ) -> str:
        """Return the reason why the sums are not the curvature that was asked for, or nothing."""
        hidden, tolerance = total.problem or layer.hidden, self._setting.tolerance
        if hidden or request.kind == "ggn":
            return hidden
        if share is None:
            return self._setting.nonlinear[layer.parameter]
        if share <= tolerance:
            return ""
        return (
            f"second-order part of {share:.2g} on {N_DIRECTIONS} random directions, above "
            f"{tolerance:.2g}"
        )
