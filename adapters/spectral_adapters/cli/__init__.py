"""The command ``spectral-core``; the commands themselves are in `commands`."""

import sys
from collections.abc import Sequence

from spectral_core._extras import require
from spectral_core.errors import MissingExtraError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 1 failure, 2 usage, 130 interrupted."""
    try:
        for module in ("click", "rich"):
            require(module, "cli", "The command line")
    except MissingExtraError as error:
        print(error, file=sys.stderr)
        return 1
    from spectral_adapters.cli.commands import run

    return run(arguments)
