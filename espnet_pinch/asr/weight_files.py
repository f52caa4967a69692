"""The weight files in a Hugging Face folder, and the names of the weights."""

import os
from pathlib import Path

from safetensors import SafetensorError, safe_open

from espnet_pinch.asr.safe_load import load
from espnet_pinch.data.upstream_files import check_folder
from espnet_pinch.errors import UserError


def weight_files(folder: str | os.PathLike) -> list[Path]:
    """The files that transformers reads the weights from.

    Raises:
        OSError, UserError: as ``check_folder``.
    """
    return [Path(folder) / name for name in check_folder(folder) if name.endswith((".safetensors", ".bin"))]


def weight_names(folder: str | os.PathLike) -> set[str]:
    """Names of the tensors in the weight files.

    Raises:
        OSError, UserError: as ``weight_files``; or a file is damaged.
    """
    return {name for file in weight_files(folder) for name in names_in(file)}


def names_in(file: Path) -> list[str]:
    """Names of the tensors in a weight file.

    Raises:
        OSError: it cannot be read.
        UserError: it is damaged.
    """
    if file.suffix != ".safetensors":
        return list(load(file, map_location="meta"))
    try:
        with safe_open(file, framework="pt") as tensors:
            return list(tensors.keys())
    except SafetensorError as error:
        raise UserError(f"{file} is damaged: {error}") from None
