"""Parameter groups of the user, split by rule and checked before the first step."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from spectral_adapters.routing.alphas import Alpha, choose_alphas
from spectral_adapters.routing.torch_parameters import FLAT_SHARD, Route, route_parameter
from spectral_adapters.torch_updates.batched_step import step_options
from spectral_backends.torch.distributed.shards import is_distributed
from spectral_core import InputError

__all__ = [
    "check_gradient",
    "check_options",
    "check_parameter",
    "each_value",
    "group_members",
    "one_or_all",
    "routes_of_group",
    "split_group",
]

_BY_ROUTE = ("params", "rule", "alpha", "matrices")


def split_group(
    given: Mapping[str, Any], routes: Sequence[Route], default: Alpha
) -> list[dict[str, Any]]:
    """Return groups of one rule each, T's with α and matrices of each parameter.

    Parameters
    ----------
    given : mapping
        The group as the user passed it.
    routes : sequence of Route
        The routes of its parameters.
    default : float, str, mapping, path or SpectralReport
        The exponent of a group that sets none.
    """
    for route in routes:
        _check_whole(route)
    _warn_of_flat_shards(routes)
    rest = {key: value for key, value in given.items() if key not in _BY_ROUTE}
    named = all(route.name for route in routes)
    return [rest | group for group in _groups(routes, named) or [_empty(given, default)]]


def routes_of_group(
    members: Sequence[tuple[str, Tensor]], given: Mapping[str, Any], default: Alpha
) -> list[Route]:
    """Route parameters, with the options of their group.

    Parameters
    ----------
    members : sequence of (str, Tensor)
        The parameters with their names, as `group_members` returns them.
    given : mapping
        The group: ``"rule"``, ``"alpha"`` and ``"matrices"`` count.
    default : float, str, mapping, path or SpectralReport
        The exponent of a group that sets none.
    """
    alpha, rule = given.get("alpha"), given.get("rule")
    if rule not in (None, "spectral", "adamw"):
        raise InputError(f"rule: {rule!r} is neither 'spectral' nor 'adamw'.")
    if isinstance(alpha, str) and alpha == "auto":
        raise InputError("alpha: 'auto' measures a model; pass it instead of parameters.")
    specs = each_value(given, "matrices", len(members))
    routes = [
        route_parameter(parameter, name, str(spec or ""))
        for (name, parameter), spec in zip(members, specs, strict=True)
    ]
    if rule == "adamw":
        routes = [replace(route, rule="adamw", reason="its group says so") for route in routes]
    if isinstance(alpha, list):
        alphas = each_value(given, "alpha", len(members))
        return [replace(r, alpha=float(a)) for r, a in zip(routes, alphas, strict=True)]
    return choose_alphas(default if alpha is None else alpha, routes)


def _empty(given: Mapping[str, Any], default: Alpha) -> dict[str, Any]:
    """Return a group without parameters, as `ZeroRedundancyOptimizer` makes of an empty shard.

    It has the options of the group on ranks with parameters, as any rank may write the checkpoint.
    """
    if given.get("rule") == "adamw":
        return {"params": [], "rule": "adamw"}
    alpha = default if given.get("alpha") is None else given["alpha"]
    one = isinstance(alpha, Real) and not isinstance(alpha, bool)
    return {
        "params": [],
        "rule": "spectral",
        "alpha": alpha if one else 1.0,  # there is no type or name to look up
        "matrices": given.get("matrices") or "matrix",
    }


def _groups(routes: Sequence[Route], named: bool) -> list[dict[str, Any]]:
    """Return one parameter group for each rule and set of options."""
    found: list[tuple[tuple[Any, ...], list[Route]]] = []
    for route in routes:
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
            group["alpha"] = one_or_all([r.alpha for r in members])
            group["matrices"] = one_or_all([r.matrices for r in members])
        groups.append(group | {"rule": rule} | options)
    return sorted(groups, key=lambda group: group["rule"] == "adamw")


def group_members(group: dict[str, Any]) -> list[tuple[str, Tensor]] | None:
    """Return names (or "") and tensors of a group, or None if torch will refuse them."""
    if isinstance(group["params"], Tensor):
        group["params"] = [group["params"]]
    if isinstance(group["params"], set):
        return None
    group["params"] = list(group["params"])
    if len({isinstance(p, tuple) for p in group["params"]}) > 1:
        return None
    pairs = [p if isinstance(p, tuple) else ("", p) for p in group["params"]]
    return pairs if all(isinstance(p, Tensor) for _, p in pairs) else None


def each_value(group: Mapping[str, Any], key: str, count: int | None = None) -> list[Any]:
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


def one_or_all(values: list[Any]) -> Any:
    """Return the value of all parameters, or the list if they differ."""
    return values[0] if all(value == values[0] for value in values) else values


def check_options(group: Mapping[str, Any]) -> None:
    """Check the options now by the code that will use them."""
    lr = 0.0 if isinstance(group["lr"], Tensor) else group["lr"]
    if group["rule"] == "adamw":
        options = {name: group[name] for name in ("betas", "eps", "weight_decay")}
        try:
            _, _ = options["betas"]
            torch.optim.AdamW([torch.zeros(1)], lr=lr, **options)
        except (ValueError, TypeError) as error:
            raise InputError(
                f"adamw: {options | {'lr': lr}} are refused by AdamW ({error}); usual are betas of "
                "(0.9, 0.999) and an eps of 1e-8."
            ) from error
        return
    epsilon = torch.finfo(torch.get_default_dtype()).eps
    for alpha in set(each_value(group, "alpha")):
        step_options(group, lr).check_all(alpha, epsilon)


def check_parameter(parameter: Tensor) -> None:
    """Refuse a parameter that no rule serves."""
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


def _check_whole(route: Route) -> None:
    if route.rule == "spectral" and is_distributed(route.parameter):
        raise InputError(
            f"params: {route.name or 'one'} of shape {route.shape} is a distributed tensor; T of a "
            "shard is no shard of T. Leave it to AdamW with route= or 'rule'."
        )


def _warn_of_flat_shards(routes: Sequence[Route]) -> None:
    shards = [route for route in routes if route.reason == FLAT_SHARD]
    if not shards:
        return
    name = repr(shards[0].name) if shards[0].name else "one"
    warnings.warn(
        f"params: {len(shards)} of {len(routes)}, such as {name} of shape {shards[0].shape}, are "
        "flat shards of matrices, as FullyShardedDataParallel or DeepSpeed's ZeRO make them, and "
        "AdamW updates them as vectors: T needs whole matrices. Train with "
        "DistributedDataParallel, where parameters stay whole.",
        UserWarning,
        stacklevel=5,
    )


def check_gradient(parameter: Tensor) -> None:
    """Refuse a sparse gradient."""
    if parameter.grad is not None and parameter.grad.layout != torch.strided:
        raise InputError(
            f"gradient: that of a parameter of shape {tuple(parameter.shape)} is sparse; use "
            "sparse=False in its embedding."
        )
