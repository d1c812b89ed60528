"""`SpectralNewton` for PyTorch: T on the weight matrices, AdamW on everything else."""

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw as adamw_update

from spectral_adapters.routing.alphas import Alpha, choose_alphas
from spectral_adapters.routing.torch_parameters import (
    Overrides,
    Route,
    RoutingTable,
    route_parameters,
)
from spectral_adapters.torch_updates.alpha_measurement import AlphaMeasurement
from spectral_adapters.torch_updates.batched_step import Update, layout_of
from spectral_adapters.torch_updates.exact_steps import exact_steps
from spectral_adapters.torch_updates.parameter_groups import (
    check_gradient,
    check_options,
    check_parameter,
    each_value,
    group_members,
    one_or_all,
    routes_of_group,
    split_group,
)
from spectral_adapters.torch_updates.recorded_update import RecordedUpdate, update_key
from spectral_adapters.torch_updates.saved_state import entries, matched_state, with_names
from spectral_core import CurvatureProblem, InputError
from spectral_core.arrays.numbers import check_mapping
from spectral_core.newton.adamw import adamw_options

__all__ = ["SpectralNewton"]

RECORDINGS = 8
"""The number of recordings kept for each group, one for each set of parameters with gradients."""


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
        The learning rate. With ``scale="rms"`` a step has the size of AdamW's.
    alpha : float, str, mapping, SpectralReport or path
        The exponent: one number, or ``"per-type"`` (`TYPE_ALPHAS`), or numbers by layer type or
        glob of parameter names, or those measured in a saved report. With ``"auto"`` it is measured
        every `measure_every` steps. Ranks of a process group that train the same parameters take
        the exponent of the lowest rank, and warn if others measured another.
    damping, damping_mode, method, tolerance, precision
        The options of `spectral_core.precondition`, with less damping by default: δ = 0.001 and α =
        2 won the races of docs/results/training.md. Products in bfloat16 need a δ of 0.03 or more;
        by default they are in float16 on a GPU where α is 2, and otherwise in float32.
    momentum : float
        The coefficient of the exponential moving average of gradients.
    nesterov : bool
        Whether momentum looks ahead.
    weight_decay : float
        The decoupled weight decay.
    scale : {"rms", "spectral", "none"}
        The scale of a step, see `spectral_core.spectral_newton_step`.
    adamw : mapping, optional
        ``lr``, ``betas``, ``eps`` and ``weight_decay`` of the parameters that AdamW updates.
        Learning rate and weight decay are otherwise those above. With another scale than ``"rms"``
        the learning rate is 1e-3.
    route : mapping, optional
        The rules of a model's parameters: globs of their names to ``"spectral"``, ``"adamw"`` or a
        dict of options. The options are ``alpha``, ``matrices`` (a spec of `as_matrices`), ``lr``
        or any other of a parameter group.
    problem : callable, optional
        A function that returns a `CurvatureProblem` of the model on a small batch, for
        ``alpha="auto"``. The model is in eval mode meanwhile, and as it was afterwards.
    measure_every : int
        The number of steps between measurements.
    measure_options : mapping, optional
        The options of `spectral_core.measure`, such as ``{"top_k": 10}``. The default is
        ``{"curvature": "ggn"}``, as the Hessian far from a minimum has few positive curvatures to
        fit.
    maximize : bool
        Whether to climb instead of descending.
    capturable : bool
        Whether to keep AdamW's step counts on the device, for CUDA graphs.
    cuda_graph : bool
        Whether to record the update of the matrices as a CUDA graph in the first step, and to
        replay it: on a GPU most of the time of small matrices goes into launching kernels. The
        update is recorded again if anything but gradients and learning rate changes. The methods
        "svd" and "eigh" cannot be recorded.

    Raises
    ------
    InputError
        If an option or `params` cannot be used, or a parameter is sparse, complex or a shard of a
        matrix.

    Warns
    -----
    UserWarning
        If parameters are flat shards of matrices, which only AdamW can update.

    Notes
    -----
    All options are those of a parameter group, so schedulers and `add_param_group` work as ever;
    ``alpha`` and ``matrices`` of a group are one value or a list with one for each parameter.
    Matrices of one shape, dtype and α in a group are updated in one call. Momentum is kept in
    float32 or wider. A matrix with a non-finite gradient is skipped without touching its state;
    one whose gradient is 0 throughout gets weight decay alone, while its momentum decays. AdamW's
    parameters are treated exactly as by `torch.optim.AdamW`. `torch.compile` of `step` compiles
    AdamW's part and calls T's as it is. An autocast around `step`, and what the process has chosen
    for products in float32, count for the closure alone.

    Examples
    --------
    >>> import torch
    >>> from spectral_adapters.torch_optim import SpectralNewton
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> optimizer = SpectralNewton(model, lr=1e-3)
    >>> model(torch.ones(1, 4)).sum().backward()
    >>> optimizer.step()
    >>> [route.rule for route in optimizer.routing]
    ['spectral', 'adamw', 'adamw', 'adamw']
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float | Tensor = 1e-3,
        *,
        alpha: Alpha = 2.0,
        damping: float = 1e-3,
        damping_mode: str = "spectral",
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        scale: str = "rms",
        method: str = "auto",
        tolerance: float | None = None,
        precision: str = "auto",
        adamw: Mapping[str, Any] | None = None,
        route: Overrides | None = None,
        problem: Callable[[], CurvatureProblem] | None = None,
        measure_every: int = 500,
        measure_options: Mapping[str, Any] | None = None,
        maximize: bool = False,
        capturable: bool = False,
        cuda_graph: bool = False,
    ) -> None:
        defaults = {
            "lr": lr, "damping": damping, "damping_mode": damping_mode, "momentum": momentum,
            "nesterov": nesterov, "weight_decay": weight_decay, "scale": scale, "method": method,
            "tolerance": tolerance, "precision": precision,
            "betas": (0.9, 0.999), "eps": 1e-8, "maximize": maximize,
            "capturable": capturable, "cuda_graph": cuda_graph,
        }  # fmt: skip
        self._adamw_options = adamw_options(adamw or {}, scale)
        self._alpha = alpha
        self._routes: dict[Tensor, Route] = {}
        self._measurement = None
        self._recorded: dict[tuple[int, ...], tuple[Hashable, RecordedUpdate]] = {}
        check_mapping("route", route or {})
        if isinstance(params, nn.Module):
            routes = choose_alphas(alpha, route_parameters(params, route))
            self._routes = {route.parameter: route for route in routes}
            routed = [route for route in routes if route.rule != "left out"]
            members = [(route.name, route.parameter) for route in routed]
            groups: Iterable[Any] = [{"params": members, "routes": routed}] if routed else []
        elif route is not None:
            raise InputError("route: it is for a model; of parameter groups say 'rule' in each.")
        elif not isinstance(params, Iterable):
            raise InputError(
                f"params: a {type(params).__name__} was passed; pass a model, or its parameters."
            )
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
        alphas: dict[Tensor, Any] = {}
        for group in self.param_groups:
            alphas |= zip(group["params"], each_value(group, "alpha"), strict=True)
        return RoutingTable(
            [
                replace(route, alpha=alphas.get(parameter))
                for parameter, route in self._routes.items()
                if parameter in alphas or route.rule == "left out"
            ]
        )

    def routing_table(self) -> list[dict[str, Any]]:
        """Return one dict per parameter: name, shape, rule, alpha, type, matrices, reason."""
        return self.routing.rows()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters; a group without a rule becomes one for T and one for AdamW.

        Parameters
        ----------
        param_group : dict
            A dict of ``"params"`` and any options.

        Raises
        ------
        InputError
            If a parameter or an option cannot be used.
        """
        param_group = dict(param_group)
        members = group_members(param_group)
        if members is None:
            super().add_param_group(param_group)  # which says what is wrong
            return
        for _, parameter in members:
            check_parameter(parameter)
        routes = param_group.pop("routes", None)  # those of a model
        if routes is None:
            routes = routes_of_group(members, param_group, self._alpha)
        for group in split_group(param_group, routes, self._alpha):
            own = self._adamw_options if group["rule"] == "adamw" else {}
            options = self.defaults | own | group
            if isinstance(options["lr"], Tensor):  # schedulers write into it, group by group
                options["lr"] = options["lr"].clone()
            check_options(options)
            super().add_param_group(options)
        self._routes |= {route.parameter: route for route in routes}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient.

        Parameters
        ----------
        closure : callable, optional
            A function that evaluates the model again and returns the loss.

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

    def state_dict(self) -> dict[str, Any]:
        """Return the state as any torch optimizer does.

        Returns
        -------
        dict
            ``alpha`` and ``matrices`` of a named group, where they differ, are pairs of name and
            value.
        """
        with self.register_state_dict_post_hook(lambda _, state: with_names(state), prepend=True):
            return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, as its pre-hooks return it; momentum stays in float32 or wider.

        Parameters
        ----------
        state_dict : dict
            The `state_dict` of an optimizer of the same parameters. States are matched by name, in
            any order, if both have names; otherwise by position.

        Raises
        ------
        InputError
            If the names differ, other than by what wrappers of a model add, or a shape does; if
            another optimizer saved it.
        """
        loaded: dict[str, Any] = {}
        hooked = bool(self._optimizer_load_state_dict_pre_hooks)

        def match(_: Any, state: dict[str, Any]) -> dict[str, Any]:
            loaded.update(matched_state(self.param_groups, state, hooked))
            return loaded

        def widen(_: Any) -> None:  # torch has cast to the dtype of the parameter
            for parameter, entry, _name in entries(self.param_groups, loaded):
                if "momentum" in entry:
                    momentum = entry["momentum"]
                    dtype = torch.promote_types(momentum.dtype, _momentum_dtype(parameter))
                    self.state[parameter]["momentum"] = momentum.to(
                        parameter.device, dtype, copy=True
                    )

        with (  # after the pre-hooks of the user, and before the post-hooks
            self.register_load_state_dict_pre_hook(match),
            self.register_load_state_dict_post_hook(widen, prepend=True),
        ):
            super().load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of copies and pickles, which do not measure."""
        kept = {name: self.__dict__[name] for name in ("_adamw_options", "_routes")}
        alpha = "per-type" if isinstance(self._alpha, str) else self._alpha
        own = {"_alpha": alpha, "_measurement": None, "_recorded": {}}
        return super().__getstate__() | kept | own

    # Linear algebra has no compiled form, and a graph would be traced anew for every α.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _spectral_step(self, group: dict[str, Any]) -> None:
        taken = [i for i, p in enumerate(group["params"]) if p.grad is not None]
        if not taken:
            return
        alphas, specs = each_value(group, "alpha"), each_value(group, "matrices")
        parameters = [group["params"][i] for i in taken]
        for parameter in parameters:
            check_gradient(parameter)
            state = self.state[parameter]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(parameter, dtype=_momentum_dtype(parameter))
        update = Update(
            parameters,
            [self.state[parameter]["momentum"] for parameter in parameters],
            [layout_of(tuple(group["params"][i].shape), specs[i]) for i in taken],
            [alphas[i] for i in taken],
            group,
        )
        gradients = [parameter.grad for parameter in parameters]
        with exact_steps({parameter.device.type for parameter in parameters}):
            # Absent from states saved before it was there; inside another recording it is part of
            # that.
            if group.get("cuda_graph") and not _is_being_recorded(parameters):
                self._recording(update, gradients).apply(gradients, group["lr"])
            else:
                update.apply(gradients, group["lr"])

    def _recording(self, update: Update, gradients: list[Tensor]) -> RecordedUpdate:
        """Return the recording of an update. It is made again if it no longer holds."""
        members, key = tuple(map(id, update.parameters)), update_key(update, gradients)
        held = self._recorded.pop(members, None)
        if held is None or held[0] != key:
            held = None  # its memory can serve the next
            while len(self._recorded) >= RECORDINGS * len(self.param_groups):
                del self._recorded[next(iter(self._recorded))]
            held = key, RecordedUpdate(update, gradients)
        self._recorded[members] = held  # at the end: the first was not used for longest
        return held[1]

    def _adamw_step(self, group: dict[str, Any]) -> None:
        taken = [p for p in group["params"] if p.grad is not None]
        for parameter in taken:
            check_gradient(parameter)
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
        found = self._measurement.run({name: parameter for parameter, name in names.items()})
        for group in groups:
            alphas = each_value(group, "alpha")
            for i, parameter in enumerate(group["params"]):
                value, reason = found[names[parameter]]
                if value is not None:
                    alphas[i] = value
                else:
                    reason = f"α kept: {reason}"
                self._routes[parameter] = replace(self._routes[parameter], alpha_reason=reason)
            group["alpha"] = one_or_all(alphas)


def _is_being_recorded(parameters: list[Tensor]) -> bool:
    return parameters[0].is_cuda and torch.cuda.is_current_stream_capturing()


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
