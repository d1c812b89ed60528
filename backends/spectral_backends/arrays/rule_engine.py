"""The engine of a curvature rule: summed over the data, held against the gradient."""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import array_api_compat

from spectral_backends.arrays.curvature_rules import CurvatureRule, Found
from spectral_backends.arrays.data_pass import DataPass
from spectral_backends.arrays.gradient_function import Params
from spectral_backends.arrays.layer_slices import LayerSlice
from spectral_core.arrays.namespace import Array, to_numpy
from spectral_core.curvature.engine import CurvatureEngine, CurvatureRequest, LayerFinding
from spectral_core.errors import LayerError

__all__ = ["RuleEngine"]


class RuleEngine(CurvatureEngine[LayerSlice]):
    """Computes one layer after the other by a rule, if the rule passes its test.

    Parameters
    ----------
    rule : CurvatureRule
        The rule; the engine has its name.
    data : DataPass
        The batches that the rule is summed over.
    gradients : mapping of str to array
        The gradient of the mean loss, by parameter.
    why_not : callable, optional
        ``why_not(layer)`` returns the reason why the rule does not serve for a layer, or nothing.
        It is called once for each layer.
    better : RuleEngine, optional
        The engine that is asked before this one. An error says why it does not serve.
    """

    independent = True

    def __init__(
        self,
        rule: CurvatureRule,
        data: DataPass,
        gradients: Params,
        why_not: Callable[[LayerSlice], str] | None = None,
        better: "RuleEngine | None" = None,
    ) -> None:
        self.name = rule.name
        self._rule, self._data, self._gradients = rule, data, gradients
        self._why_not, self._better = why_not, better
        self._known: dict[str, str] = {}

    def on_data(self, data: DataPass, gradients: Params) -> "RuleEngine":
        """Return the engine for other data, with what is known of the rule already."""
        found = copy.copy(self)
        found._data, found._gradients = data, gradients
        return found

    def declines(self, layer: LayerSlice, request: CurvatureRequest) -> str:
        """Return the reason why the rule does not serve for the layer."""
        return self.refusal(layer)

    def refusal(self, layer: LayerSlice) -> str:
        """Return the reason why the rule does not serve for a layer, or nothing."""
        name = layer.info.name
        if name not in self._known:
            try:
                self._known[name] = self._why_not(layer) if self._why_not else ""
            except LayerError as error:
                self._known[name] = error.reason
        return self._known[name]

    def run(
        self, layers: Sequence[LayerSlice], request: CurvatureRequest
    ) -> Iterator[LayerFinding | LayerError]:
        """Yield the curvatures of one layer after the other."""
        for layer in request.todo(layers):
            request.progress_callback(layer.info.name)
            u, v = request.directions[layer.info.name]
            try:
                found = self._found(layer, u, v)
            except LayerError as error:
                yield error
                continue
            derivative, remark = self._derivative(layer, u, v, found)
            error_estimate = None if found.error is None else to_numpy(found.error)
            yield LayerFinding(
                layer.info.name,
                found.values,
                derivative=derivative,
                reason=remark,
                standard_error=error_estimate,
            )

    def _found(self, layer: LayerSlice, u: Array, v: Array) -> Found:
        """Return the curvatures that the rule makes of its means over all terms."""
        count, totals = 0.0, None
        for batch, terms in self._data:
            values = terms * self._rule.batch_values(layer, u, v, batch)
            totals = values if totals is None else totals + values
            count += terms
        assert totals is not None
        try:
            found = self._rule.finish(layer, totals / count)
        except LayerError as error:
            before = self._better.refusal(layer) if self._better else ""
            raise LayerError(layer.info.name, f"{error.reason} {before}".rstrip()) from error
        xp = array_api_compat.array_namespace(found.values)
        if not bool(xp.all(xp.isfinite(found.values))):
            raise LayerError(
                layer.info.name,
                f"{self.name} gives NaN or infinite curvatures; look for an overflow, a division "
                "by zero or a square root at zero behind this layer.",
            )
        return found

    def _derivative(self, layer: LayerSlice, u: Array, v: Array, found: Found) -> tuple[Any, str]:
        """Return the derivatives along the directions, or a remark if they are rounding."""
        if found.derivative is None:
            return None, ""
        gradient = layer.matrix(self._gradients[layer.parameter])
        xp = array_api_compat.array_namespace(gradient)
        wanted = xp.sum(u * (gradient @ v), axis=0)
        largest = float(xp.max(xp.abs(wanted)))
        off = float(xp.max(xp.abs(found.derivative - wanted)))
        if off <= 0.5 * float(xp.finfo(gradient.dtype).eps) ** 0.5 * largest:
            return found.derivative, ""
        return None, (
            f"derivatives along D_k differ by {off / largest:.1g} σ_1 from those of the real "
            "gradient, which is left over from a cancellation and has no more digits"
        )
