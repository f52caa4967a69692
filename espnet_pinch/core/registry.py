"""The pruning methods by name, with the facts that tables, pictures and scripts need about each.

Each method is a file in ``espnet_pinch/core/methods`` and registers itself with ``register``. There is no other list.
"""

import dataclasses
from collections.abc import Callable, Mapping

from espnet_pinch.core import methods as package
from espnet_pinch.core.method import PruningMethod
from espnet_pinch.core.settings import MethodSettings, check_keys, shown
from espnet_pinch.errors import UserError
from espnet_pinch.plugins import import_all

DEFAULT_METHOD = "pinch"  # if the pruning: block names none
UNPRUNED = "dense"
_COMMON = {field.name for field in dataclasses.fields(MethodSettings)}


@dataclasses.dataclass(frozen=True)
class Method:
    """A registered method.

    Attributes:
        name: its name in a YAML's ``pruning:`` block and on the command line.
        build: its class.
        title: its name in tables.
        label, colour, marker: label, colour and marker of its curve in pictures, as matplotlib names them.
        most: its largest target sparsity.
        from_run: the setting that names a finished run of ``DEFAULT_METHOD`` at the same target; None if the method
            needs no such run.
        variants: ``{name: own settings}``, for counts of the parameters that it trains besides the model's own.
    """

    name: str
    build: type[PruningMethod]
    title: str
    label: str
    colour: str
    marker: str
    most: float = 1.0
    from_run: str | None = None
    variants: Mapping[str, Mapping] = dataclasses.field(default_factory=lambda: {"": {}})

    @property
    def own_settings(self) -> set[str]:
        """Names of the settings that are not common to all methods."""
        return {field.name for field in dataclasses.fields(self.build.settings_class)} - _COMMON


_found: dict[str, Method] = {}


def register(name: str, **facts) -> Callable[[type[PruningMethod]], type[PruningMethod]]:
    """Decorate a subclass of ``PruningMethod`` to register it under ``name``.

    Args:
        facts: fields of ``Method``.
    """

    def decorate(build: type[PruningMethod]) -> type[PruningMethod]:
        _found[name] = Method(name, build, **facts)
        return build

    return decorate


def all_methods() -> dict[str, Method]:
    """``{name: method}``: first the unpruned model, then the default method, then the others by name."""
    import_all(package)
    order = {UNPRUNED: 0, DEFAULT_METHOD: 1}
    return {name: _found[name] for name in sorted(_found, key=lambda name: (order.get(name, 2), name))}


def find_method(name) -> Method:
    """The method of that name; raises UserError if there is none."""
    methods = all_methods()
    if not isinstance(name, str) or name not in methods:
        raise UserError(f"unknown pruning method {shown(name)}; there is: {', '.join(methods)}")
    return methods[name]


def method_of(block: Mapping) -> Method:
    """The method that a YAML's ``pruning:`` block names; raises UserError if there is none of that name."""
    return find_method(block.get("method", DEFAULT_METHOD))


def build_method(block: Mapping) -> PruningMethod:
    """The pruning method of a YAML's ``pruning:`` block, see ``espnet_pinch.core.settings``.

    Raises:
        UserError: the method or a setting is unknown, or a setting is out of its range.
        FileNotFoundError: a finished run that a setting names does not exist.
    """
    method = _checked(block)
    common = {key: block[key] for key in _COMMON if key in block}
    return method.build(**common, **(block.get(method.name) or {}))


def self_contained(block: Mapping) -> dict:
    """``block``, with each name of a file replaced by what is in that file, so that it needs none of them.

    Raises:
        UserError, FileNotFoundError: as ``build_method``.
    """
    method = _checked(block)
    own = method.build.self_contained(block.get(method.name) or {})
    return {**block, **({method.name: own} if own else {})}


def _checked(block: Mapping) -> Method:
    """The method of a block; raises UserError if that or a name of a setting is unknown."""
    methods = all_methods()
    check_keys(block, {"method", *_COMMON, *methods}, "the pruning block")
    for method in methods.values():
        check_keys(block.get(method.name) or {}, method.own_settings, f"the pruning block's {method.name}")
    return method_of(block)
