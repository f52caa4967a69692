"""Check the types of a training's options: ESPnet's parser takes any value from a YAML as it is."""

import argparse
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from espnet2.utils.nested_dict_action import NestedDictAction
from espnet2.utils.types import float_or_none, int_or_none, str2bool, str_or_none
from typeguard import TypeCheckError, check_type

from espnet_pinch.core.settings import shown
from espnet_pinch.errors import UserError

# {what the parser makes of a text: (type, in words)}
_KINDS: Mapping[Callable, tuple[Any, str]] = {
    int: (int, "a whole number"),
    float: (float, "a number"),
    str2bool: (bool, "true or false"),
    int_or_none: (int | None, "a whole number or null"),
    float_or_none: (float | None, "a number or null"),
    str: (str, "a text"),
    str_or_none: (str | None, "a text or null"),
}


def check_options(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Check the options that a YAML may have set. A block that it has left empty becomes the default.

    Args:
        args: of ``parser``.
        parser: new, so that it has the defaults and not the YAML's values.

    Raises:
        UserError: a value of another type than the option's, or none of its choices.
    """
    for action in parser._actions:
        value = getattr(args, action.dest, action.default)
        if value == action.default and type(value) is type(action.default):
            continue
        if isinstance(action, NestedDictAction):
            if value is None:
                setattr(args, action.dest, action.default)
            elif not isinstance(value, dict):
                raise UserError(f"{action.dest} must be a block of settings, not {shown(value)}")
            continue
        several = isinstance(value, (list, tuple))
        if _takes_several(action) and isinstance(value, str):  # whose characters would be the items
            raise UserError(f"{action.dest} must be a list, not {shown(value)}")
        if action.nargs and isinstance(action.nargs, int) and not (several and len(value) == action.nargs):
            raise UserError(f"{action.dest} must be a list of {action.nargs}, not {shown(value)}")
        for item in value if several else [value]:
            if action.choices is not None and item not in action.choices:
                raise UserError(
                    f"{action.dest} must be one of {', '.join(map(str, action.choices))}, not {shown(item)}"
                )
            kind, words = _KINDS.get(action.type, (None, ""))
            if several and kind and not _takes_several(action) or kind and not _is(item, kind):
                raise UserError(f"{action.dest} must be {words}, not {shown(value)}{_advice(item)}")


def check_block(name: str, block: Mapping, made: type) -> None:
    """Check a block of settings.

    Args:
        name: of the block.
        block: arguments of the class that is made from it.
        made: that class.

    Raises:
        UserError: a setting that the class does not take, or of another type.
    """
    known = dict(_parameters(made))
    for setting, value in block.items():
        if setting not in known:
            raise UserError(f"{name} has no setting {shown(setting)}: {made.__name__} takes {', '.join(known)}")
        kind = known[setting]
        if kind is not inspect.Parameter.empty and not _is(value, kind):
            words = inspect.formatannotation(kind).replace("typing.", "")
            raise UserError(f"{name}.{setting} must be {words}, not {shown(value)}{_advice(value)}")


def _parameters(made: type) -> Iterator[tuple[str, Any]]:
    """The names and types of the arguments of a class; with ``**kwargs``, those of the classes that it derives from."""
    for cls in made.__mro__:
        if "__init__" in vars(cls):
            parameters = inspect.signature(cls.__init__).parameters.values()
            hints = typing.get_type_hints(cls.__init__)
            named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name != "self"]
            yield from ((p.name, hints.get(p.name, p.empty)) for p in named)
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                return


def _takes_several(action: argparse.Action) -> bool:
    return bool(action.nargs) or isinstance(action, argparse._AppendAction)


def _is(value, kind) -> bool:
    """Whether a value is of a type; a list of a YAML may be a tuple."""
    if isinstance(value, bool) and kind in (int, float, int | None, float | None):
        return False
    for given in (value, tuple(value)) if isinstance(value, list) else (value,):
        try:
            check_type(given, kind)
        except TypeCheckError:
            continue
        return True
    return False


def _advice(value) -> str:
    if isinstance(value, str):
        try:
            return f"; a YAML has it as {float(value)}, without quotes"
        except ValueError:
            pass
    return ""
