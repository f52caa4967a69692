"""The weight files of a Hugging Face folder: those that transformers loads, in its order of preference."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from espnet_pinch.asr.safe_load import load

WHOLE = ("model.safetensors", "pytorch_model.bin")  # safetensors first
INDEX = ".index.json"


def choose(names: Iterable[str]) -> str | None:
    """The file that the weights of a folder begin with: whole, or the index of its shards; None where there is none.

    Args:
        names: paths of the folder's files, relative to it; those in subfolders count for nothing.

    >>> choose(["pytorch_model.bin", "checkpoint-500/model.safetensors", "adapter.eng.safetensors"])
    'pytorch_model.bin'
    """
    names = set(names)
    return next((name for file in WHOLE for name in (file, file + INDEX) if name in names), None)


def shards(index: str) -> list[str]:
    """Names of the shards that an index, given as its text, lists.

    Raises:
        ValueError: the text is no such index, or a shard is not beside it.
    """
    try:
        names = sorted(set(json.loads(index)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError("it is no index of weights") from None
    for name in names:
        if os.path.basename(name) != name:
            raise ValueError(f"its shard {name!r} is not in the same folder")
    return names


def weight_files(folder: str | os.PathLike) -> list[Path]:
    """The files that hold the weights of a Hugging Face folder.

    Raises:
        FileNotFoundError: it has none, or a shard is missing.
        ValueError: its index is damaged.
    """
    folder = Path(folder)
    name = choose(path.name for path in folder.iterdir())
    if name is None:
        raise FileNotFoundError(f"the upstream folder {folder} has no weights ({' or '.join(WHOLE)})")
    if not name.endswith(INDEX):
        return [folder / name]
    try:
        files = [folder / shard for shard in shards((folder / name).read_text(encoding="utf-8"))]
    except ValueError as error:
        raise ValueError(f"{folder / name} is damaged: {error}") from None
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing, which {folder / name} lists")
    return files


def weight_names(folder: str | os.PathLike) -> set[str]:
    """Names of the tensors in the weight files of a Hugging Face folder.

    Raises:
        FileNotFoundError, ValueError: as ``weight_files``; or a file is damaged.
    """
    names: set[str] = set()
    for file in weight_files(folder):
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, framework="pt") as tensors:
                    names.update(tensors.keys())
            except SafetensorError as error:
                raise ValueError(f"{file} is damaged: {error}") from None
        else:
            names.update(load(file, map_location="meta"))
    return names
