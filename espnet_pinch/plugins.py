"""Families of files that register themselves: methods, families of upstreams, export formats."""

import functools
import importlib
import pkgutil
from types import ModuleType


@functools.cache
def import_all(package: ModuleType) -> None:
    """Import every module of ``package``, once in a process, so that each can register what it holds."""
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
