"""Optional dependencies: imported when needed; the error names the command that installs them."""

import importlib
from types import ModuleType

from spectral_core.errors import MissingExtraError


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import `module`, which the extra `extra` of this distribution installs.

    Parameters
    ----------
    module, extra : str
        The names in ``import module`` and in ``pip install 'spectral-core[extra]'``.
    purpose : str
        The feature that needs the module, as the beginning of a sentence.

    Raises
    ------
    MissingExtraError
        If the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise  # installed, but broken inside: its own message says more
        raise MissingExtraError(
            f"{purpose} needs {module.split('.')[0]}, which is not installed; "
            f"run: pip install 'spectral-core[{extra}]'"
        ) from error
