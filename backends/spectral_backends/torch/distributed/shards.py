"""Parameters of which a process holds only a part: distributed tensors, and flat shards."""

from torch import Tensor, nn

__all__ = ["WHOLE_COPY", "flat_shards", "is_distributed", "is_flat_shard", "is_fully_sharded"]

WHOLE_COPY = (
    "load a plain copy of the model with the whole weights, as get_model_state_dict of "
    "torch.distributed.checkpoint.state_dict returns them with "
    "StateDictOptions(full_state_dict=True), and measure that"
)
"""The remedy for a model whose parameters are sharded."""


def is_distributed(tensor: Tensor) -> bool:
    """Say whether it is a `DTensor`, of which each rank holds a part."""
    return type(tensor.data).__name__ == "DTensor"


def is_fully_sharded(model: nn.Module) -> bool:
    """Say whether `fully_shard` was applied to a module of a model; its hooks hold the weights."""
    kinds = {kind for module in model.modules() for kind in type(module).__mro__}
    return any(kind.__name__ == "FSDPModule" for kind in kinds)


def is_flat_shard(parameter: Tensor, name: str = "", module: nn.Module | None = None) -> bool:
    """Say whether a parameter is a vector that holds matrices, or parts of them.

    Parameters
    ----------
    parameter : Tensor
        The parameter. FSDP flattens parameters, and stage 3 of DeepSpeed's ZeRO empties them.
    name : str
        The last part of its name, if it is known.
    module : nn.Module, optional
        The module that holds the parameter, if it is known.
    """
    if parameter.ndim >= 2:
        return False
    if getattr(parameter, "_is_flat_param", False) or len(getattr(parameter, "ds_shape", ())) >= 2:
        return True
    if getattr(parameter, "_fsdp_flattened", False):  # with use_orig_params=True, biases too
        return "bias" not in name and "Norm" not in type(module).__name__
    return name == "weight" and isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))


def flat_shards(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters of a model that are flat shards, by name."""
    return {
        f"{path}.{name}" if path else name: parameter
        for path, module in model.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
        if is_flat_shard(parameter, name, module)
    }
