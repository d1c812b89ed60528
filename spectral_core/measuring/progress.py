"""Progress of a measurement: a bar on a terminal, silence in a pipe, or the caller's function."""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["ProgressCallback", "reporting"]

ProgressCallback = Callable[[int, int, str], None]
"""Called with the number of finished layers, their total, and the name of the layer at work."""


@contextmanager
def reporting(progress: ProgressCallback | bool | None, total: int) -> Iterator[ProgressCallback]:
    """Yield the function to call with progress.

    Parameters
    ----------
    progress : callable, bool or None
        The caller's own function, or True for a bar, False for silence, and None for a bar if
        standard error is a terminal.
    total : int
        The number of layers.
    """
    if callable(progress):
        yield progress
    elif progress is False or (progress is None and not sys.stderr.isatty()):
        yield lambda done, total, name: None
    else:
        try:
            tqdm = importlib.import_module("tqdm.auto").tqdm
        except ImportError:
            yield _print_line
            return
        with tqdm(total=total, unit="layer", file=sys.stderr) as bar:

            def advance(done: int, total: int, name: str) -> None:
                bar.set_postfix_str(name, refresh=False)
                bar.update(done - bar.n)
                bar.refresh()

            yield advance


def _print_line(done: int, total: int, name: str) -> None:
    if name:
        print(f"[{done + 1}/{total}] {name}", file=sys.stderr, flush=True)
