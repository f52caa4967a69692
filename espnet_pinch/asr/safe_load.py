"""Read files of weights from any source without running code in them: a pickle can call any function."""

import contextlib
import datetime
import os
import pickle
import re
import zipfile
from collections.abc import Iterator

import numpy as np
import torch

from espnet_pinch.errors import UserError
from espnet_pinch.unreadable import why_unreadable

# ESPnet's reporter writes durations and numpy's numbers to checkpoint.pth, besides tensors, numbers and text.
FIGURES = [
    datetime.timedelta,
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int64)),
    np.float64().__reduce__()[0],
]

_torch_load = torch.load


def load(file, map_location=None, *_, mmap: bool | None = None, **__):
    """``torch.load`` that reads only tensors, numbers, text and containers of them. It ignores all other options.

    Args:
        file: a path, or a file object.
        map_location, mmap: as ``torch.load``.

    Raises:
        OSError: the file cannot be opened.
        UserError: it is damaged, or holds something else; no code in it was run.
    """
    try:
        with torch.serialization.safe_globals(FIGURES):
            return _torch_load(file, map_location=map_location, mmap=mmap, weights_only=True)
    except (FileNotFoundError, PermissionError, IsADirectoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # torch raises many types for a damaged file
        name = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        path = file if isinstance(file, (str, os.PathLike)) else None
        unreadable = path is not None and why_unreadable(path)
        if unreadable:
            reason = unreadable
        elif name:
            reason = f"holds {name[1]}, which is not a tensor, number or text and could run code: refused"
        else:
            reason = "is damaged, or is not a file of weights"
        raise UserError(f"{'the checkpoint' if path is None else path} {reason}") from None


def load_weights(path: str | os.PathLike) -> dict:
    """A model's ``state_dict`` from a file that ``torch.save`` has written, on the CPU.

    Raises:
        OSError: the file cannot be read.
        UserError: as ``load``; or a checksum is wrong, or the file holds no dictionary of weights by name.
    """
    wrong = damage(path)
    if wrong:
        raise UserError(f"{path} is damaged: {wrong}")
    state = load(path, map_location="cpu")
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise UserError(f"{path} holds no weights by name")
    return state


@contextlib.contextmanager
def tensors_only() -> Iterator[None]:
    """Inside the block, ``torch.load`` is ``load``: ESPnet would unpickle anything that a checkpoint holds."""
    before, torch.load = torch.load, load
    try:
        yield
    finally:
        torch.load = before


def damage(path: str | os.PathLike) -> str | None:
    """What is wrong with a file that ``torch.save`` has written; None if the checksum of every part is right.

    Raises:
        OSError: the file cannot be read, or is a Git LFS pointer.
    """
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return "it is empty"
        try:
            with zipfile.ZipFile(file) as parts:
                part = parts.testzip()
        except Exception:  # zipfile raises many types, too
            unreadable = why_unreadable(path)
            if unreadable:
                raise OSError(f"{path} {unreadable}") from None
            return "it is cut short, or overwritten"
    return f"the checksum of its {part} is wrong" if part else None
