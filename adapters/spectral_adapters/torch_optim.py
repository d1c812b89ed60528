"""`SpectralNewton` for PyTorch: T on the weight matrices, AdamW on everything else."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw as adamw_update

from spectral_adapters.alpha_choice import Alpha, AlphaMeasurement, choose_alphas
from spectral_adapters.parameter_routing import (
    Overrides,
    Route,
    RoutingTable,
    route_parameter,
    route_parameters,
)
from spectral_core import (
    CurvatureProblem,
    InputError,
    MatrixLayout,
    as_matrices,
    spectral_newton_step,
)

__all__ = ["SpectralNewton"]

_ADAMW_OPTIONS = ("lr", "betas", "eps", "weight_decay")
# So that the copies of a batch stay small beside a large model: 256 MiB in float32.
_BATCH_ELEMENTS = 2**26


class SpectralNewton(torch.optim.Optimizer):
    """Spectral Newton on weight matrices, AdamW on the other parameters (Theory 9.9).

    Parameters
    ----------
    params : nn.Module or iterable
        A model, whose parameters are routed by what they are (`optimizer.routing` prints how); or
        parameters, named parameters or groups as of any torch optimizer. Of those, T gets what has
        two or more axes and no side of 1 unless the group says ``"rule": "adamw"``; a mixed group
        becomes two.
    lr : float or Tensor
        Learning rate. With ``scale="rms"`` that of AdamW serves.
    alpha : float, str, mapping, SpectralReport or path
        The exponent: one number, or ``"per-type"`` (`TYPE_ALPHAS`), or numbers by layer type or
        glob of parameter names, or those measured in a saved report, or ``"auto"``: measured
        every `measure_every` steps.
    damping, damping_mode, method, tolerance
        As in `spectral_core.precondition`.
    momentum : float
        Coefficient of the exponential moving average of gradients.
    nesterov : bool
        Whether momentum looks ahead.
    weight_decay : float
        Decoupled.
    scale : {"rms", "spectral", "none"}
        Of a step, as in `spectral_core.spectral_newton_step`.
    adamw : mapping, optional
        ``lr``, ``betas``, ``eps`` and ``weight_decay`` of the parameters that AdamW updates.
        Learning rate and weight decay are otherwise those above, but with another scale than
        ``"rms"`` a learning rate of 1e-3.
    route : mapping, optional
        Of a model: globs of parameter names to ``"spectral"``, ``"adamw"`` or a dict of options:
        ``alpha``, ``matrices`` (a spec of `as_matrices`), ``lr`` or any other of a group.
    problem : callable, optional
        For ``alpha="auto"``: returns a `CurvatureProblem` of the model on a small batch. The model
        is in eval mode meanwhile, and as it was afterwards.
    measure_every : int
        Steps between measurements.
    measure_options : mapping, optional
        Of `spectral_core.measure`, such as ``{"top_k": 10}``; ``{"curvature": "ggn"}`` by default,
        as the Hessian far from a minimum has few positive curvatures to fit.
    maximize : bool
        Climb instead of descending.
    capturable : bool
        Keep AdamW's step counts on the device, for CUDA graphs.

    Raises
    ------
    InputError
        If an option is out of range, or a parameter is sparse, complex or a shard of a matrix.

    Notes
    -----
    All options are those of a parameter group, so schedulers and `add_param_group` work as ever;
    ``alpha`` and ``matrices`` of a group are one value or a list with one for each parameter.
    Matrices of one shape, dtype and α in a group are updated in one call. Momentum is kept in
    float32 or wider. A matrix with a non-finite gradient is skipped without touching its state;
    AdamW's parameters are treated exactly as by `torch.optim.AdamW`. `torch.compile` of `step`
    compiles AdamW's part and calls T's as it is.
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float | Tensor = 1e-3,
        *,
        alpha: Alpha = "per-type",
        damping: float = 0.1,
        damping_mode: str = "spectral",
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        scale: str = "rms",
        method: str = "auto",
        tolerance: float | None = None,
        adamw: Mapping[str, Any] | None = None,
        route: Overrides | None = None,
        problem: Callable[[], CurvatureProblem] | None = None,
        measure_every: int = 500,
        measure_options: Mapping[str, Any] | None = None,
        maximize: bool = False,
        capturable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr, "damping": damping, "damping_mode": damping_mode, "momentum": momentum,
            "nesterov": nesterov, "weight_decay": weight_decay, "scale": scale, "method": method,
            "tolerance": tolerance, "betas": (0.9, 0.999), "eps": 1e-8, "maximize": maximize,
            "capturable": capturable,
        }  # fmt: skip
        self._adamw_options = _adamw_options(adamw or {}, scale)
        self._alpha = alpha
        self._routes: dict[Tensor, Route] = {}
        self._left_out: list[Route] = []
        self._measurement = None
        if isinstance(params, nn.Module):
            routes = choose_alphas(alpha, route_parameters(params, route))
            self._left_out = [r for r in routes if r.rule == "left out"]
            groups: Iterable[Any] = _groups(routes)
            self._routes = {route.parameter: route for route in routes}
        elif route is not None:
            raise InputError("route: it is for a model; of parameter groups say 'rule' in each.")
        else:
            groups = params
        if alpha == "auto":
            if not isinstance(params, nn.Module):
                raise InputError("alpha: 'auto' measures a model; pass it instead of parameters.")
            options = dict(measure_options or {})
            self._measurement = AlphaMeasurement(params, problem, measure_every, options)  # type: ignore[arg-type]
        super().__init__(groups, defaults)

    @property
    def routing(self) -> RoutingTable:
        """The rule, α and matrices of every parameter, as they are now; ``print`` it."""
        routes = []
        for group in self.param_groups:
            alphas = _each(group, "alpha")
            for parameter, alpha in zip(group["params"], alphas, strict=True):
                routes.append(replace(self._routes[parameter], alpha=alpha))
        order = {parameter: i for i, parameter in enumerate(self._routes)}
        return RoutingTable(sorted(routes + self._left_out, key=lambda r: order[r.parameter]))

    def routing_table(self) -> list[dict[str, Any]]:
        """Return one dict per parameter: name, shape, rule, alpha, type, matrices, reason."""
        return self.routing.rows()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters; a group without a rule becomes one for T and one for AdamW.

        Parameters
        ----------
        param_group : dict
            ``"params"`` and any options.

        Raises
        ------
        InputError
            If a parameter or an option cannot be used.
        """
        param_group = dict(param_group)
        members = _members(param_group)
        if members is None:
            super().add_param_group(param_group)  # which says what is wrong
            return
        for group in self._split(param_group, members):
            own = self._adamw_options if group["rule"] == "adamw" else {}
            options = self.defaults | own | group
            if isinstance(options["lr"], Tensor):  # schedulers write into it, group by group
                options["lr"] = options["lr"].clone()
            _check_options(options)
            super().add_param_group(options)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient.

        Parameters
        ----------
        closure : callable, optional
            Evaluates the model again and returns the loss.

        Returns
        -------
        The loss that the closure returned, or None.

        Raises
        ------
        InputError
            If a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._measurement is not None:
            self._measure_if_due()
        for group in self.param_groups:
            if group["rule"] == "adamw":
                self._adamw_step(group)
            else:
                self._spectral_step(group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, momentum in the dtype in which it was saved.

        Parameters
        ----------
        state_dict : dict
            From `state_dict` of an optimizer of the same parameters.
        """
        super().load_state_dict(state_dict)
        saved = [i for group in state_dict["param_groups"] for i in group["params"]]
        own = [parameter for group in self.param_groups for parameter in group["params"]]
        for index, parameter in zip(saved, own, strict=True):
            momentum = state_dict["state"].get(index, {}).get("momentum")
            if momentum is not None:  # torch casts states to the dtype of the parameter
                self.state[parameter]["momentum"] = momentum.to(parameter.device, copy=True)

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies and pickles hold; they do not measure."""
        own = ("_adamw_options", "_routes", "_left_out")
        kept = {name: self.__dict__[name] for name in own}
        alpha = "per-type" if isinstance(self._alpha, str) else self._alpha
        return super().__getstate__() | kept | {"_alpha": alpha, "_measurement": None}

    def _split(
        self, given: dict[str, Any], members: Sequence[tuple[str, Tensor]]
    ) -> list[dict[str, Any]]:
        """Return groups with a rule, an α and a layout for each parameter."""
        for _, parameter in members:
            _check_parameter(parameter)
        if members and all(parameter in self._routes for _, parameter in members):
            return [given]  # from the routes of a model
        routes = self._routes_of(members, given)
        self._routes |= {route.parameter: route for route in routes}
        rest = {k: v for k, v in given.items() if k not in ("params", "rule", "alpha", "matrices")}
        named = all(name for name, _ in members)
        empty = {"params": [], "rule": "spectral", "alpha": 1.0, "matrices": "matrix"}
        return [rest | group for group in _groups(routes, named) or [empty]]

    def _routes_of(
        self, members: Sequence[tuple[str, Tensor]], given: Mapping[str, Any]
    ) -> list[Route]:
        """Route parameters of which a group says the rest."""
        alpha, rule = given.get("alpha"), given.get("rule")
        if rule not in (None, "spectral", "adamw"):
            raise InputError(f"rule: {rule!r} is neither 'spectral' nor 'adamw'.")
        if isinstance(alpha, str) and alpha == "auto":
            raise InputError("alpha: 'auto' measures a model; pass it instead of parameters.")
        specs = _each(given, "matrices", len(members))
        routes = [
            route_parameter(parameter, name, str(spec or ""))
            for (name, parameter), spec in zip(members, specs, strict=True)
        ]
        if rule == "adamw":
            routes = [replace(route, rule="adamw", reason="its group says so") for route in routes]
        if isinstance(alpha, list):
            alphas = _each(given, "alpha", len(members))
            return [replace(r, alpha=float(a)) for r, a in zip(routes, alphas, strict=True)]
        return choose_alphas(self._alpha if alpha is None else alpha, routes)

    # Dynamo would trace into the core's caches, and linear algebra has no compiled form anyway.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _spectral_step(self, group: dict[str, Any]) -> None:
        taken = [i for i, p in enumerate(group["params"]) if p.grad is not None]
        if not taken:
            return
        alphas, specs = _each(group, "alpha"), _each(group, "matrices")
        parts: list[_Part] = []
        layouts = []
        for index, i in enumerate(taken):
            parameter = group["params"][i]
            _check_gradient(parameter)
            state, layout = self.state[parameter], _layout(tuple(parameter.shape), specs[i])
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(parameter, dtype=_momentum_dtype(parameter))
            arrays = [layout.split(a) for a in (parameter, parameter.grad, state["momentum"])]
            parts += [
                _Part(index, place, alphas[i], *tensors)
                for place, tensors in enumerate(zip(*arrays, strict=True))
            ]
            layouts.append(layout)
        steps: list[dict[int, Tensor]] = [{} for _ in taken]
        momenta: list[dict[int, Tensor]] = [{} for _ in taken]
        for batch in _batches(parts):
            for part, step, momentum in _update(batch, group):
                steps[part.parameter][part.place] = step
                momenta[part.parameter][part.place] = momentum
        for index, i in enumerate(taken):
            parameter, layout = group["params"][i], layouts[index]
            places = range(len(layout.matrices))
            parameter.add_(layout.merge([steps[index][j] for j in places]))
            self.state[parameter]["momentum"].copy_(
                layout.merge([momenta[index][j] for j in places])
            )

    def _adamw_step(self, group: dict[str, Any]) -> None:
        taken = [p for p in group["params"] if p.grad is not None]
        for parameter in taken:
            _check_gradient(parameter)
            if "step" not in self.state[parameter]:
                self.state[parameter].update(_adamw_state(parameter, group["capturable"]))
        states = [self.state[parameter] for parameter in taken]
        if not taken:
            return
        adamw_update(
            taken,
            [parameter.grad for parameter in taken],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            capturable=group["capturable"],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
        )

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _measure_if_due(self) -> None:
        assert self._measurement is not None
        groups = [group for group in self.param_groups if group["rule"] == "spectral"]
        count = max((group.get("steps", 0) for group in groups), default=0)
        for group in groups:
            group["steps"] = count + 1
        if count % self._measurement.every:
            return
        names = {p: self._routes[p].name for group in groups for p in group["params"]}
        found = self._measurement.run(list(names.values()))
        for group in groups:
            alphas = _each(group, "alpha")
            for i, parameter in enumerate(group["params"]):
                value, reason = found[names[parameter]]
                if value is not None:
                    alphas[i] = value
                else:
                    reason = f"α kept: {reason}"
                self._routes[parameter] = replace(self._routes[parameter], alpha_reason=reason)
            group["alpha"] = _one_or_all(alphas)


@dataclass(frozen=True)
class _Part:
    """Matrices (B, m, n) of one shape in a parameter: weight, gradient, momentum."""

    parameter: int
    place: int
    alpha: float
    weight: Tensor
    gradient: Tensor
    momentum: Tensor

    @property
    def key(self) -> tuple[Any, ...]:
        """Parts with equal keys can be updated together."""
        tensors = (self.weight, self.gradient, self.momentum)
        dtypes = tuple(t.dtype for t in tensors)
        return self.alpha, self.weight.shape[1:], dtypes, self.weight.device


def _batches(parts: Iterable[_Part]) -> list[list[_Part]]:
    """Return what is updated together, in an order that depends on the parameters alone."""
    open_batches: dict[tuple[Any, ...], list[_Part]] = {}
    done: list[list[_Part]] = []
    for part in parts:
        batch = open_batches.setdefault(part.key, [])
        if batch and sum(p.weight.numel() for p in (*batch, part)) > _BATCH_ELEMENTS:
            done.append(batch)
            batch = open_batches[part.key] = []
        batch.append(part)
    return done + list(open_batches.values())


def _update(
    batch: Sequence[_Part], group: Mapping[str, Any]
) -> Iterable[tuple[_Part, Tensor, Tensor]]:
    gradient = _joined([part.gradient for part in batch])
    step, momentum = spectral_newton_step(
        _joined([part.weight for part in batch]),
        -gradient if group["maximize"] else gradient,
        _joined([part.momentum for part in batch]),
        lr=group["lr"],
        alpha=batch[0].alpha,
        damping=group["damping"],
        damping_mode=group["damping_mode"],
        beta=group["momentum"],
        nesterov=group["nesterov"],
        weight_decay=group["weight_decay"],
        scale=group["scale"],
        method=group["method"],
        tolerance=group["tolerance"],
    )
    sizes = [len(part.weight) for part in batch]
    return zip(batch, step.split(sizes), momentum.split(sizes), strict=True)


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(tensors)) if len(tensors) > 1 else tensors[0]


@lru_cache(maxsize=4096)
def _layout(shape: tuple[int, ...], spec: str) -> MatrixLayout:
    return as_matrices(shape, spec)


def _momentum_dtype(parameter: Tensor) -> torch.dtype:
    return torch.promote_types(parameter.dtype, torch.float32)


def _adamw_state(parameter: Tensor, capturable: bool) -> dict[str, Tensor]:
    """Return the state as `torch.optim.AdamW` begins it."""
    wide = torch.get_default_dtype() == torch.float64
    return {
        "step": torch.zeros(
            (),
            dtype=torch.float64 if wide else torch.float32,
            device=parameter.device if capturable else "cpu",
        ),
        "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
    }


def _adamw_options(given: Mapping[str, Any], scale: str) -> dict[str, Any]:
    if unknown := set(given) - set(_ADAMW_OPTIONS):
        raise InputError(f"adamw: {sorted(unknown)} are none of {', '.join(_ADAMW_OPTIONS)}.")
    return ({} if scale == "rms" else {"lr": 1e-3}) | dict(given)


def _groups(routes: Sequence[Route], named: bool = True) -> list[dict[str, Any]]:
    """Return one parameter group for each rule and set of options."""
    found: list[tuple[tuple[Any, ...], list[Route]]] = []
    for route in routes:
        if route.rule == "left out":
            continue
        key = (route.rule, dict(route.options))
        for other, members in found:
            if other == key:
                members.append(route)
                break
        else:
            found.append((key, [route]))
    groups = []
    for (rule, options), members in found:
        group = {"params": [(r.name, r.parameter) if named else r.parameter for r in members]}
        if rule == "spectral":
            group["alpha"] = _one_or_all([r.alpha for r in members])
            group["matrices"] = _one_or_all([r.matrices for r in members])
        groups.append(group | {"rule": rule} | options)
    return sorted(groups, key=lambda group: group["rule"] == "adamw")


def _members(group: dict[str, Any]) -> list[tuple[str, Tensor]] | None:
    """Return names (or "") and tensors of a group, or None where torch will refuse them."""
    if isinstance(group["params"], Tensor):
        group["params"] = [group["params"]]
    if isinstance(group["params"], set):
        return None
    group["params"] = list(group["params"])
    pairs = [p if isinstance(p, tuple) else ("", p) for p in group["params"]]
    return pairs if all(isinstance(p, Tensor) for _, p in pairs) else None


def _each(group: Mapping[str, Any], key: str, count: int | None = None) -> list[Any]:
    """Return an option of a group for each of its parameters."""
    value, count = group.get(key), len(group["params"]) if count is None else count
    if not isinstance(value, list):
        return [value] * count
    if len(value) != count:
        raise InputError(
            f"{key}: {len(value)} values for {count} parameters of a group; pass one for each, or "
            "one for all."
        )
    return list(value)


def _one_or_all(values: list[Any]) -> Any:
    return values[0] if all(value == values[0] for value in values) else values


def _check_options(group: Mapping[str, Any]) -> None:
    """Let those who will use the options refuse them now."""
    lr = 0.0 if isinstance(group["lr"], Tensor) else group["lr"]
    if group["rule"] == "adamw":
        options = {name: group[name] for name in ("betas", "eps", "weight_decay")}
        torch.optim.AdamW([torch.zeros(1)], lr=lr, **options)
        return
    matrix = torch.zeros(1, 2, 2)
    for alpha in set(_each(group, "alpha")):
        _update([_Part(0, 0, alpha, matrix, matrix, matrix)], {**group, "lr": lr})


def _check_parameter(parameter: Tensor) -> None:
    shape = tuple(parameter.shape)
    if parameter.is_complex() or not parameter.is_floating_point():
        raise InputError(
            f"params: one of shape {shape} has dtype {parameter.dtype}; pass real floating point "
            "parameters, and leave this one to another optimizer."
        )
    if parameter.layout != torch.strided:
        raise InputError(
            f"params: one of shape {shape} has layout {parameter.layout}; pass dense parameters."
        )
    if type(parameter.data).__name__ == "DTensor":
        raise InputError(
            f"params: one of shape {shape} is a distributed tensor; T of a shard is not a shard of "
            "T. Leave it to another optimizer."
        )


def _check_gradient(parameter: Tensor) -> None:
    if parameter.grad is not None and parameter.grad.layout != torch.strided:
        raise InputError(
            f"gradient: that of a parameter of shape {tuple(parameter.shape)} is sparse; use "
            "sparse=False in its embedding."
        )
