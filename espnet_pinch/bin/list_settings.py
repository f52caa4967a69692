"""Print every setting of a YAML's pruning:, distill: and quantize: blocks, with its default and what it means.

What is printed is a YAML itself. Other settings are ESPnet's: python -m espnet_pinch.bin.asr_train --help.
"""

import argparse
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator

import yaml

from espnet_pinch.asr.distill import DistillSettings
from espnet_pinch.bin import run_main
from espnet_pinch.core.quantize import QuantizeSettings
from espnet_pinch.core.registry import DEFAULT_METHOD, all_methods
from espnet_pinch.core.settings import MethodSettings

WIDTH = 110


def main() -> None:
    argparse.ArgumentParser(prog="python -m espnet_pinch.bin.list_settings", description=__doc__).parse_args()
    methods = all_methods()
    print("pruning:")
    print(f"    # one of {', '.join(methods)}\n    method: {DEFAULT_METHOD}")
    print(*lines(MethodSettings, 4), sep="\n")
    for method in methods.values():
        if method.own_settings:
            print(f"    {method.name}:")
            print(*lines(method.build.settings_class, 8, method.own_settings), sep="\n")
    for name, settings in (("distill", DistillSettings), ("quantize", QuantizeSettings)):
        print(f"{name}: # without this block there is none of it")
        print(*lines(settings, 4), sep="\n")


def lines(settings: type, indent: int, names: set[str] | None = None) -> Iterator[str]:
    """YAML of a dataclass' settings, all or those of ``names``, in their order: what each means, then its default."""
    meanings, space, said = meanings_of(settings), " " * indent, ""
    for field in dataclasses.fields(settings):
        if names is not None and field.name not in names:
            continue
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        meaning = meanings.get(field.name, "")  # a method of a user's own may say none
        if meaning and meaning != said:  # two settings may have one
            yield textwrap.fill(meaning, WIDTH, initial_indent=f"{space}# ", subsequent_indent=f"{space}#   ")
        said = meaning
        value = yaml.safe_dump(default, default_flow_style=None, width=1000).removesuffix("...\n").rstrip()
        yield f"{space}{field.name}: {value}"


def meanings_of(settings: type) -> dict[str, str]:
    """What the ``Attributes:`` of a class and of its bases say, ``{name: meaning}``, with a YAML's words for values."""
    found = {}
    for base in reversed(settings.__mro__):
        _, _, listed = (inspect.cleandoc(base.__doc__ or "")).partition("Attributes:\n")
        for names, meaning in re.findall(r"^    ([a-z][\w, ]*): (.*(?:\n {8}.*)*)", listed, re.MULTILINE):
            meaning = re.sub(r"\bNone\b", "null", " ".join(meaning.replace("``", "").split()))
            found |= dict.fromkeys(names.split(", "), meaning)
    return found


if __name__ == "__main__":
    run_main(main)
