"""One hostile call: what must come of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import spectral_core as sc


@dataclass(frozen=True)
class Case:
    """A call that is refused with `error`, whose message holds `words`, or that gives a result.

    Parameters
    ----------
    of : str
        The public name that is called.
    what : str
        What is bad about the call.
    call : callable
        Makes it.
    error : type of exception, or None
        Named in the docstring of `of`.
    words : tuple of str
        The argument or layer, the value that was seen, and what to do instead.
    check : callable
        Says whether a result is the documented one.
    """

    of: str
    what: str
    call: Callable[[], Any]
    error: type[BaseException] | None = None
    words: tuple[str, ...] = ()
    check: Callable[[Any], Any] = bool

    def __str__(self) -> str:
        return f"{self.of}: {self.what}"


def refused(
    of: str, what: str, call: Callable[[], Any], *words: str, error: Any = sc.InputError
) -> Case:
    """An error that names the argument, the value seen, and a remedy."""
    assert len(words) == 3, (of, what)
    return Case(of, what, call, error, words)


def gives(of: str, what: str, call: Callable[[], Any], check: Callable[[Any], Any]) -> Case:
    """A documented result."""
    return Case(of, what, call, check=check)
