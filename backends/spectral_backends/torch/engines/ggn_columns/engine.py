"""The engines of GGN columns: every column for exact values, or random combinations."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from spectral_backends.torch.engines.ggn_columns.column_pass import ColumnPass, ColumnTotals
from spectral_backends.torch.engines.linearity_probe import N_DIRECTIONS
from spectral_backends.torch.engines.setting import Setting
from spectral_backends.torch.layers.discovery import Layer
from spectral_core.curvature.engine import (
    CurvatureEngine,
    CurvatureRequest,
    Declined,
    LayerFinding,
    only_gauss_newton,
)

__all__ = ["GGNColumns", "MonteCarlo"]

COLUMN_PRICE = 1.25
"""The time of one column sent back, over that of the work counted for it."""

MAX_OUTPUTS = 256
"""The number of outputs of a sample beyond which no dense root of the Hessian is made."""


class GGNColumns(CurvatureEngine[Layer]):
    """Sends every GGN column back once, for all layers and directions (Theory 5.4).

    It gives h^GGN, and h if the outputs are piecewise linear in the weight. That is the case if no
    operation behind the weight is nonlinear, on any batch, and the second-order part on random
    directions is rounding.

    Parameters
    ----------
    setting : Setting
        The state that the engines of the problem share.
    """

    name = "columns"

    def __init__(self, setting: Setting) -> None:
        self._setting = setting

    def declines(self, layer: Layer, request: CurvatureRequest) -> str:
        """Return the operation by which the outputs are nonlinear, on the first batch."""
        if request.kind == "ggn":
            return ""
        return self._setting.structure.nonlinear.get(layer.parameter, "")

    def price(self, layers: Sequence[Layer], request: CurvatureRequest) -> float:
        """Return the price of all columns, as far back as the layers reach."""
        outputs = self._setting.structure.n_outputs
        return float("inf") if outputs is None else self._cost(layers, outputs)

    def run(
        self, layers: Sequence[Layer], request: CurvatureRequest
    ) -> Iterator[LayerFinding | Declined]:
        """Yield the curvatures of each layer, or the reason why the columns do not give them."""
        try:
            made = self._made(layers, request)
        except Exception as error:  # the loss has no root, or cannot be taken apart
            if request.engine == self.name:
                raise
            for layer in request.todo(layers):
                yield Declined(layer.info.name, str(error) or type(error).__name__)
            return
        shares = self._probed(layers, made, request)
        directions = request.n_directions(layers)
        predicted = self._cost(layers, self._n_columns(request)) / directions
        cost = self._setting.in_forward_passes(made.work) / directions
        for layer in request.todo(layers):
            name = layer.info.name
            total, share = made.totals[name], shares.get(name)
            if reason := self._why_not(total, share, request):
                refusal = only_gauss_newton(self.name, request.kind, reason)
                yield Declined(name, reason, refusal)
                continue
            own = slice(0, request.n_directions([layer]))
            values = self._setting.cast(total.ggn / made.count)
            derivative = self._setting.cast(total.derivative / made.count)
            yield LayerFinding(
                name,
                values[own],
                ggn=values[own],
                derivative=derivative[own],
                more=(more := values[own.stop :] if name in request.more_directions else None),
                more_ggn=more,
                standard_error=self._standard_error(total, made.count, own),
                piecewise_linear=share is not None,
                second_order=float("nan") if share is None else share,
                tolerance=self._setting.tolerance,
                predicted_cost=predicted,
                cost=cost,
            )

    def _mc_samples(self, request: CurvatureRequest) -> int:
        """Return the number of random combinations that replace the columns; 0 means none."""
        return 0

    def _n_columns(self, request: CurvatureRequest) -> int:
        return self._mc_samples(request) or self._setting.structure.n_outputs or 0

    def _cost(self, layers: Sequence[Layer], n_columns: int) -> float:
        """Return the price of sending columns back for some layers, in forward passes."""
        reach = max(map(self._setting.structure.downstream, layers))
        return 2 + COLUMN_PRICE * reach * (n_columns + 1)

    def _made(self, layers: Sequence[Layer], request: CurvatureRequest) -> ColumnPass:
        def make(channels_last: bool) -> ColumnPass:
            return ColumnPass(
                self._setting.objective, layers, request.all_directions(), self._setting.seed,
                self._setting.together, mc_samples=self._mc_samples(request),
                max_outputs=MAX_OUTPUTS, channels_last=channels_last,
            )  # fmt: skip

        return self._setting.run_pass(make, f"{len(layers)} layers", request.progress_callback)

    def _probed(
        self, layers: Sequence[Layer], made: ColumnPass, request: CurvatureRequest
    ) -> dict[str, float]:
        """Return the second-order share on random directions, or nothing if that fails."""
        flat = [layer for layer in layers if not made.totals[layer.info.name].nonlinear]
        if not flat or request.kind == "ggn":
            return {}
        try:
            return self._setting.second_order(flat)
        except Exception:
            return {}

    def _why_not(self, total: ColumnTotals, share: float | None, request: CurvatureRequest) -> str:
        """Return the reason why the sums are not the curvature that was asked for, or nothing."""
        if total.problem or request.kind == "ggn":
            return total.problem
        if total.nonlinear:
            return total.nonlinear
        if share is None:
            return "its second-order part could not be probed"
        tolerance = self._setting.tolerance
        if share <= tolerance:
            return ""
        return (
            f"second-order part of {share:.2g} on {N_DIRECTIONS} random directions, above "
            f"{tolerance:.2g}"
        )

    def _standard_error(
        self, total: ColumnTotals, count: float, own: slice
    ) -> npt.NDArray[np.float64] | None:
        return None  # every column was sent


class MonteCarlo(GGNColumns):
    """Sends random combinations of the columns back; their spread is the standard error."""

    name = "monte-carlo"
    on_request = True

    def _mc_samples(self, request: CurvatureRequest) -> int:
        return int(request.options["mc_samples"])

    def _standard_error(
        self, total: ColumnTotals, count: float, own: slice
    ) -> npt.NDArray[np.float64]:
        return (total.variance[own].sqrt() / count).cpu().double().numpy()
