"""Packages whose modules register themselves: pruning methods, families of upstreams, export formats."""

import functools
import importlib
import pkgutil
from types import ModuleType


@functools.cache
def import_all(package: ModuleType) -> None:
    """Import every module of ``package``, once per process, so that each can register its content."""
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
