"""The errors of the library. Messages name the layer or argument, the value and the remedy."""

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
    """Base class of every error that the library raises on purpose.

    Examples
    --------
    >>> import spectral_core as sc
    >>> try:
    ...     sc.softmax_head_rank(1)
    ... except sc.SpectralError as error:
    ...     print(type(error).__name__)
    InputError
    """


class InputError(SpectralError, ValueError):
    """An argument, a model or data that cannot be used as given.

    Examples
    --------
    >>> import spectral_core as sc
    >>> try:
    ...     sc.softmax_head_rank(1)
    ... except sc.InputError as error:
    ...     print(error)
    classes: 1 is not a whole number of 2 or more; a softmax over fewer is constant.
    """


class LayerError(SpectralError):
    """One layer cannot be measured; the others can.

    `measure` records the reason under ``report.skipped`` and goes on.

    Parameters
    ----------
    layer : str
        The name of the layer.
    reason : str
        The observation and the remedy, as a sentence without the layer's name.

    Examples
    --------
    >>> import spectral_core as sc
    >>> error = sc.LayerError("rnn", "is a fused recurrent layer; measure with decompose=False.")
    >>> error.layer, error.reason
    ('rnn', 'is a fused recurrent layer; measure with decompose=False.')
    """

    def __init__(self, layer: str, reason: str) -> None:
        super().__init__(f"layer {layer!r}: {reason}")
        self.layer = layer
        self.reason = reason

    def __reduce__(self) -> tuple[type["LayerError"], tuple[str, str]]:
        # By default `pickle` makes an exception again from its message alone.
        return type(self), (self.layer, self.reason)


class NonDeterministicError(SpectralError, RuntimeError):
    """The loss changes between two passes over the same data.

    Examples
    --------
    >>> import spectral_core as sc
    >>> issubclass(sc.NonDeterministicError, RuntimeError)
    True
    """


class ReportError(SpectralError, ValueError):
    """A report or journal file that cannot be read, written or continued.

    Examples
    --------
    >>> import spectral_core as sc
    >>> try:
    ...     sc.SpectralReport.load("absent.json")
    ... except sc.ReportError as error:
    ...     print(error)
    absent.json: cannot be read (No such file or directory); check the path and its permissions.
    """


class MissingExtraError(SpectralError, ImportError):
    """A feature needs an optional dependency that is not installed.

    Examples
    --------
    >>> import spectral_core as sc
    >>> issubclass(sc.MissingExtraError, ImportError)
    True
    """


def first_line(error: Exception) -> str:
    """Return the type and first line of an error of the user's code, to cite in a sentence."""
    first = (str(error).strip() or "without a word").splitlines()[0]
    return f"{type(error).__name__}: {first.rstrip('.')}"
