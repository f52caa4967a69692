"""The files of a Hugging Face folder or repository that make an upstream: only those that transformers reads."""

import difflib
import json
import os
import re
from collections.abc import Callable, Collection
from pathlib import Path

from espnet_pinch.data import subwords
from espnet_pinch.errors import UserError
from espnet_pinch.unreadable import why_unreadable

CONFIG = "config.json"
VOCABULARY = "vocab.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # transformers takes the first that exists, whole or in shards
ENDS = (".safetensors", ".bin")
_ADAPTER = re.compile(r"adapter\.([\w-]+)(?:\.safetensors|\.bin)")
SHOWN = 40  # languages in a message; MMS has 1,162
INDEX = ".index.json"  # the list of a file's shards has the file's name with this ending
PROCESSOR = (
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    VOCABULARY,
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    subwords.FILE,
)


def languages(names: Collection[str]) -> list[str]:
    """The languages whose adapter weights are among files ("adapter.eng.safetensors"), sorted."""
    return sorted({match[1] for match in map(_ADAPTER.fullmatch, names) if match})


def choose(names: Collection[str], read: Callable[[str], str], language: str | None = None) -> list[str]:
    """Choose the files of an upstream from all files of a folder or repository.

    Args:
        names: names of all files; files in subfolders are not chosen.
        read: gives the text of a file.
        language: whose adapter weights are wanted, of a model with several languages.

    Raises:
        FileNotFoundError: the configuration, the weights or a shard is missing.
        UserError: the list of shards is damaged; the model lacks the language, or has several and none is named.
    """
    if CONFIG not in names:
        raise FileNotFoundError(f"no {CONFIG}; it must be a Hugging Face folder")
    chosen = [CONFIG, *(name for name in PROCESSOR if name in names), *_weights(names, read)]
    has = languages(names)
    if language is None:
        if has and VOCABULARY in names and vocabularies(read(VOCABULARY)):
            raise UserError(
                f"it has a vocabulary for each language: put one behind its name, NAME:{has[0]}; {_list(has)}"
            )
        return chosen
    if language not in has:
        near = difflib.get_close_matches(language, has, n=3)
        raise UserError(
            f"it lacks the language {language}"
            + (f" (did you mean {' or '.join(near)}?)" if near else "")
            + (f"; {_list(has)}" if has else ": it has no adapter.LANGUAGE.safetensors at all; leave the language out")
        )
    return [*chosen, next(name for name in map(f"adapter.{language}{{}}".format, ENDS) if name in names)]


def vocabularies(text: str) -> dict[str, dict[str, int]]:
    """The vocabularies in the text of a vocab.json, by language; empty if it is of one language or damaged."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and found and all(isinstance(v, dict) for v in found.values()) else {}


def _list(languages: list[str]) -> str:
    return f"it has {', '.join(languages[:SHOWN])}" + (
        f" and {len(languages) - SHOWN:,} more" if languages[SHOWN:] else ""
    )


def _weights(names: Collection[str], read: Callable[[str], str]) -> list[str]:
    for name in WEIGHTS:
        if name in names:
            return [name]
        index = name + INDEX
        if index in names:
            shards = _shards(index, read(index))
            missing = [shard for shard in shards if shard not in names]
            if missing:
                raise FileNotFoundError(f"no {missing[0]}, which {index} lists")
            return [index, *shards]
    raise FileNotFoundError(f"no weights ({' or '.join(WEIGHTS)})")


def _shards(index: str, text: str) -> list[str]:
    try:
        shards = sorted(set(json.loads(text)["weight_map"].values()))
        inside = bool(shards) and all(
            shard == os.path.basename(shard) and shard not in ("", ".", "..") for shard in shards
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        inside = False
    if not inside:
        raise UserError(f"{index} is not a list of the shards beside it")
    return shards


def check_folder(folder: str | os.PathLike, language: str | None = None) -> list[str]:
    """The files of an upstream's folder. Finds, without loading, most reasons why it could not be loaded.

    Raises:
        OSError: a file cannot be read, or is a Git LFS pointer.
        FileNotFoundError: the folder, its configuration, its weights or a shard does not exist.
        NotADirectoryError: ``folder`` is a file.
        UserError: as in ``choose``.
    """
    path = Path(folder)
    if not path.exists():
        raise FileNotFoundError(
            f"the upstream folder {folder} does not exist; a model of the Hugging Face hub is fetched by stage 0, or "
            "python -m espnet_pinch.bin.fetch_upstream --upstream OWNER/NAME --out FOLDER"
        )
    if not path.is_dir():
        raise NotADirectoryError(f"{folder} is a file; an upstream is a folder")
    try:
        names = choose([p.name for p in path.iterdir() if p.is_file()], lambda name: _text(path / name), language)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"the upstream folder {folder} has {error}") from None
    except UserError as error:
        raise UserError(f"the upstream folder {folder}: {error}") from None
    for name in names:
        wrong = why_unreadable(path / name, whole=False)
        if wrong:
            raise OSError(f"{path / name} {wrong}")
    return names


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
