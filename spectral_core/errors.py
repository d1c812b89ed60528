"""What the library raises: messages name the layer or argument, the value and the remedy."""

__all__ = [
    "InputError",
    "LayerError",
    "MissingExtraError",
    "NonDeterministicError",
    "ReportError",
    "SpectralError",
    "first_line",
]


class SpectralError(Exception):
    """Base class of every error that the library raises on purpose."""


class InputError(SpectralError, ValueError):
    """An argument, a model or data that cannot be used as given."""


class LayerError(SpectralError):
    """One layer cannot be measured; the others can.

    `measure` records the reason under ``report.skipped`` and goes on.

    Parameters
    ----------
    layer : str
        The name of the layer.
    reason : str
        The observation and the remedy, as a sentence without the layer's name.
    """

    def __init__(self, layer: str, reason: str) -> None:
        super().__init__(f"layer {layer!r}: {reason}")
        self.layer = layer
        self.reason = reason

    def __reduce__(self) -> tuple[type["LayerError"], tuple[str, str]]:
        # By default an exception is made again from its message alone.
        return type(self), (self.layer, self.reason)


class NonDeterministicError(SpectralError, RuntimeError):
    """The loss changes between two passes over the same data."""


class ReportError(SpectralError, ValueError):
    """A report or journal file that cannot be read, written or continued."""


class MissingExtraError(SpectralError, ImportError):
    """A feature needs an optional dependency that is not installed."""


def first_line(error: Exception) -> str:
    """Return type and first line of an error of the user's code, to be cited in a sentence."""
    first = (str(error).strip() or "without a word").splitlines()[0]
    return f"{type(error).__name__}: {first.rstrip('.')}"
