"""A saved state of an optimizer, matched to its parameters: by name if both sides have names."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from torch import Tensor

from spectral_core import InputError

__all__ = ["entries", "matched_state", "with_names"]

Group = dict[str, Any]
Names = list[str | None]

PER_PARAMETER = ("alpha", "matrices")
"""The options of a group that may have one value for each of its parameters."""

OF_SHAPE = ("momentum", "exp_avg", "exp_avg_sq")
"""The entries of a state that have the shape of the parameter."""

WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""The parts that DDP, `torch.compile`, FSDP and checkpointing put into names."""

_REMEDY = (
    "Rename them in a load_state_dict pre-hook, or delete 'param_names' of the groups there to "
    "load by position."
)


def with_names(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state whose lists of values for each parameter are pairs of its name and the value.

    Hooks that load by name copy the options of a group as they are. A plain list would then be in
    the order of the other optimizer's parameters.

    Parameters
    ----------
    state : dict
        The state as PyTorch packs it. Its groups are written to.
    """
    for group in state["param_groups"]:
        for option in PER_PARAMETER:
            if isinstance(group.get(option), list) and "param_names" in group:
                group[option] = list(zip(group["param_names"], group[option], strict=True))
    return state


def matched_state(groups: Sequence[Group], state: Mapping[str, Any], hooked: bool) -> Group:
    """Return a state in the order of the parameters of an optimizer.

    Parameters
    ----------
    groups : sequence of dict
        The optimizer's own groups.
    state : mapping
        The state that is loaded; nothing is written to it.
    hooked : bool
        Whether hooks received the state. They may have moved states and not the names.

    Raises
    ------
    InputError
        If it is no state of this optimizer, if names disagree, or if a shape is not its
        parameter's.
    """
    saved = _groups_of(state)
    own_names, names = [_own_names(g) for g in groups], [_saved_names(g) for g in saved]
    plain = _label(own_names, names)
    own_names, names = ([list(map(plain, each)) for each in side] for side in (own_names, names))
    if own_names != names:
        if _known(own_names) and _known(names) and _sorted(own_names) == _sorted(names):
            order = _order(own_names, names, hooked)
            saved, names = [saved[i] for i in order], [names[i] for i in order]
        elif [*map(len, own_names)] == [*map(len, names)]:
            _check_positions(own_names, names)
        else:
            return dict(state)  # which torch refuses
    found = [_in_order(*each, plain) for each in zip(groups, saved, own_names, names, strict=True)]
    matched = {**state, "param_groups": found}
    for parameter, entry, name in entries(groups, matched):
        _check_entry(parameter, entry, name)
    return matched


def entries(groups: Sequence[Group], state: Mapping[str, Any]) -> Iterator[tuple[Tensor, Any, str]]:
    """Yield each parameter of an optimizer, its entry in a matched state, and its name."""
    for group, saved in zip(groups, state["param_groups"], strict=True):
        names = group.get("param_names") or [f"parameter {key}" for key in saved["params"]]
        for parameter, key, name in zip(group["params"], saved["params"], names, strict=True):
            yield parameter, state["state"].get(key, {}), name


def _groups_of(state: Mapping[str, Any]) -> list[Group]:
    """Return the groups of a state of this optimizer."""
    if "state" not in state or "param_groups" not in state:
        raise InputError(
            f"load_state_dict: a state has 'state' and 'param_groups', this one {list(state)[:8]}; "
            "pass what state_dict() returned, or take it out in a load_state_dict pre-hook."
        )
    for number, group in enumerate(state["param_groups"]):
        if "rule" not in group:
            raise InputError(
                f"load_state_dict: group {number} of the state has no 'rule', so that another "
                "optimizer saved it; load it there, or convert it in a load_state_dict pre-hook."
            )
    return list(state["param_groups"])


def _own_names(group: Group) -> Names:
    return list(group.get("param_names") or [None] * len(group["params"]))


def _saved_names(group: Group) -> Names:
    """Return the names of a saved group; PyTorch's distributed checkpoints have them as keys."""
    keys = list(group["params"])
    if all(isinstance(key, str) for key in keys):
        return keys
    names = group.get("param_names") or []
    return list(names) if len(names) == len(keys) else [None] * len(keys)


def _label(*sides: list[Names]) -> Callable[[str | None], str | None]:
    """Return a function that makes names comparable: it drops wrappers if names stay apart."""

    def without(name: str | None) -> str | None:
        if name is None:
            return None
        return ".".join(part for part in name.split(".") if part not in WRAPPERS)

    for names in map(_flat, sides):
        known = [name for name in names if name is not None]
        if len(set(map(without, known))) < len(set(known)):
            return lambda name: name
    return without


def _order(own: list[Names], names: list[Names], hooked: bool) -> list[int]:
    """Return the index of the saved group that holds the parameters of each group."""
    if hooked:
        raise InputError(
            f"load_state_dict: after its pre-hooks the state names {_flat(names)[:4]} in this "
            f"order, the optimizer {_flat(own)[:4]}; whether the hooks moved the states is not "
            "known. Let them set 'param_names' of the groups too, or delete these to load by "
            "position."
        )
    held = [set(each) for each in names]
    for each in own:
        if set(each) not in held:
            raise InputError(
                f"load_state_dict: {each[:4]} are one group of the optimizer and not of the state; "
                "make the groups as they were, or the state's in a load_state_dict pre-hook."
            )
    return [held.index(set(each)) for each in own]


def _check_positions(own: list[Names], names: list[Names]) -> None:
    pairs = list(zip(_flat(own), _flat(names), strict=True))
    wrong = [(one, other) for one, other in pairs if None not in (one, other) and one != other]
    if wrong:
        shown = ", ".join(f"{other!r} for {one!r}" for one, other in wrong[:4])
        raise InputError(
            f"load_state_dict: the state has other names than the optimizer, {shown}"
            f"{' and more' if len(wrong) > 4 else ''}. {_REMEDY}"
        )


def _in_order(
    group: Group, saved: Group, own: Names, names: Names, plain: Callable[[str | None], str | None]
) -> Group:
    """Return a saved group in the order of a group of the optimizer."""
    keys = list(saved["params"])
    known, labels = None not in own, own if None not in own else names
    if known and None not in names:
        keys = [keys[names.index(name)] for name in own]
    found = {**saved, "params": keys}
    for option in PER_PARAMETER:
        if isinstance(saved.get(option), list):
            found[option] = _values(option, saved, list(map(plain, labels)), plain)
    if "param_names" in group:
        found["param_names"] = list(group["param_names"])
    return found


def _values(
    option: str, saved: Group, labels: Names, plain: Callable[[str | None], str | None]
) -> list[Any]:
    """Return the values of an option, one for each label, or as they are if there is no name."""
    values = saved[option]
    if not all(isinstance(value, (tuple, list)) for value in values):
        names = saved.get("param_names") or []
        if len(names) != len(values) or None in labels:
            return list(values)
        values = list(zip(names, values, strict=True))
    by_name = {plain(name): value for name, value in values}
    if None in labels and len(values) == len(labels):
        return list(by_name.values())
    if missing := [label for label in labels if label not in by_name]:
        raise InputError(
            f"load_state_dict: {option!r} of the state is of {list(by_name)[:4]} and not of "
            f"{missing[:4]}. Rename its pairs in the pre-hook that renamed the parameters."
        )
    return [by_name[label] for label in labels]


def _check_entry(parameter: Tensor, entry: Any, name: str) -> None:
    for key in OF_SHAPE:
        if not isinstance(entry, Mapping) or key not in entry:
            continue
        value = entry[key]
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        if shape != tuple(parameter.shape):
            raise InputError(
                f"load_state_dict: {key!r} of {name} is {shape}, the parameter "
                f"{tuple(parameter.shape)}; the state is of another model, or its parameters are "
                "in another order."
            )


def _flat(names: list[Names]) -> Names:
    return list(chain.from_iterable(names))


def _known(names: list[Names]) -> bool:
    return None not in _flat(names)


def _sorted(names: list[Names]) -> list[str]:
    return sorted(map(str, _flat(names)))
