"""Read the YAML of a run strictly: mistakes that YAML would ignore in silence are errors."""

import os
from pathlib import Path

import yaml

from espnet_pinch.errors import UserError, one_line


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that is there twice (YAML takes the last one), and aliases, which can expand without limit."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.constructor.ConstructorError(
                None, None, "aliases (*name) are not allowed", self.peek_event().start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def read_yaml(path: str | os.PathLike):
    """The content of a YAML file.

    Raises:
        OSError: the file cannot be read.
        UserError: it is not YAML in UTF-8, is nested too deeply, or has an alias or a key twice. The message names
            the file and, if known, the line.
    """
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8-sig"), _StrictLoader)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line} is not UTF-8 text: {error}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the last two for an impossible date or number
        raise UserError(f"{path} is not YAML: {one_line(error)}") from None
    except (RecursionError, MemoryError):
        raise UserError(f"{path} is not YAML for a run: it is nested too deeply") from None
