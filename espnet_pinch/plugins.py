"""Packages whose modules register themselves: pruning methods, families of upstreams, formats, runtimes."""

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Protocol, TypeVar


@functools.cache
def import_all(package: ModuleType) -> None:
    """Import every module of ``package``, once per process, so that each can register its content."""
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")


class Placed(Protocol):
    """A member of a family that is listed by its place, then by its name."""

    @property
    def name(self) -> str: ...

    @property
    def place(self) -> int: ...


Member = TypeVar("Member", bound=Placed)


def in_order(package: ModuleType, found: Mapping[str, Member]) -> dict[str, Member]:
    """``{name: member}`` of all that the modules of ``package`` have registered in ``found``, sorted by place."""
    import_all(package)
    return {member.name: member for member in sorted(found.values(), key=lambda member: (member.place, member.name))}
