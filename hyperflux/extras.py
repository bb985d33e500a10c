"""Optional packages: imported where they are needed, and if missing, named with the command that installs them."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from hyperflux.errors import InputError


def require(module: str, *, extra: str, needed_by: str) -> ModuleType:
    """Import a package that `pip install hyperflux` alone does not bring.

    Args:
        module: What to import, such as "torchvision.models".
        extra: The extra of this project that installs it, such as "vision".
        needed_by: What the user asked for, such as "model resnet18"; the message starts with it.

    Returns:
        The module, as `importlib.import_module` returns it.

    Raises:
        InputError: The package, or one that it depends on, is not installed or can't be imported.
    """
    command = f"pip install 'hyperflux[{extra}]'"
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or module).partition(".")[0]
        raise InputError(f"{needed_by}: {missing} is not installed; {command}") from error
    except (ImportError, OSError, RuntimeError) as error:  # a build for another torch raises any of these
        package = module.partition(".")[0]
        raise InputError(f"{needed_by}: {package} can't be imported ({error}); upgrade it by {command} -U") from error
