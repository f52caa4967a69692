"""Archives of FLAC with 16 bits (kaldiio): many utterances in one file, each read by itself at its offset."""

import os
import re
from pathlib import Path
from typing import BinaryIO

import kaldiio
import numpy as np

from espnet_pinch.data.kaldi_dir import RATE
from espnet_pinch.errors import UserError

_FLAC = {"write_function": "soundfile", "write_kwargs": {"format": "flac", "subtype": "PCM_16"}}
_HEAD = b"AUDIO"  # before the length of the FLAC that follows


def check_folder_name(folder: Path, advice: str) -> None:
    """Raise UserError if the path of a folder has a character that kaldiio reads as its own."""
    if set(str(folder)) & set("[]|\n"):
        raise UserError(f"{folder}: kaldiio gives [ ] and | in a path another meaning; {advice}")


def append(archive: BinaryIO, key: str, samples: np.ndarray, rate: int) -> int:
    """Write audio at the end of an open archive.

    Args:
        key: name of the utterance, without white space.
        samples: (samples,), int16.
        rate: Hz.

    Returns: the offset at which it is read.
    """
    offset = archive.tell() + len(f"{key} ".encode())
    kaldiio.save_ark(archive, {key: (rate, samples)}, **_FLAC)
    return offset


class OwnArchives:
    """Archives in a folder of the recipe's own data, which are whole wherever they have their name.

    Args:
        folder: the folder; it need not exist.
    """

    def __init__(self, folder: Path):
        self._start = f"{folder.absolute()}{os.sep}"

    def samples(self, entry: str) -> int | None:
        """The number of samples that ``file.ark:offset`` states, if it is in the folder; else None.

        Raises:
            OSError: the archive cannot be read.
            UserError: it is gone; or no FLAC with one channel and 16,000 Hz begins at the offset.
        """
        match = re.fullmatch(r"(.*\.ark):(\d+)", entry)
        if not match or not entry.startswith(self._start):
            return None
        try:
            with open(match[1], "rb") as file:
                file.seek(int(match[2]))
                head = file.read(64)
        except FileNotFoundError:
            marker = Path(self._start).parent / "prepare.done"
            raise UserError(f"{match[1]} is gone: remove {marker} and run stage 1 again (--stage 1)") from None
        # RFC 9639, section 8.2: 20 bits of rate, 3 of channels, 5 of width and 36 of samples begin at byte 18
        flac = head.find(b"fLaC")
        stated = int.from_bytes(head[flac + 18 : flac + 26], "big")
        if not head.startswith(_HEAD) or flac < 0 or stated >> 44 != RATE or stated >> 41 & 7:
            raise UserError(f"{entry}: no audio of the recipe begins there; run stage 1 again (--stage 1)")
        return stated & (1 << 36) - 1


class Shards:
    """Archives ``data_flac.1.ark`` and so on in a folder, each up to about a size. A context manager.

    Args:
        folder: exists.
        most: bytes after which the next archive is begun.
    """

    def __init__(self, folder: Path, most: int):
        self._folder, self._most, self._number = folder, most, 0
        self._file: BinaryIO | None = None

    def __enter__(self) -> "Shards":
        return self

    def __exit__(self, *_) -> None:
        if self._file:
            self._file.close()

    def append(self, key: str, samples: np.ndarray, rate: int) -> tuple[str, int]:
        """Write audio, see ``append``. Returns: the archive's name and the offset."""
        if self._file is None or self._file.tell() >= self._most:
            if self._file:
                self._file.close()
            self._number += 1
            self._file = open(self._folder / f"data_flac.{self._number}.ark", "wb")  # noqa: SIM115
        return Path(self._file.name).name, append(self._file, key, samples, rate)
