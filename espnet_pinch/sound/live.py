"""Read sound from a pipe while it grows, such as a microphone's: block by block, as it comes."""

import contextlib
import os
from collections.abc import Iterator

import numpy as np
import soundfile

from espnet_pinch.errors import UserError
from espnet_pinch.sound.read import check_rate

BLOCK = 0.1  # seconds


@contextlib.contextmanager
def open_live(path: str | os.PathLike, rate: int = 0) -> Iterator[tuple[int, Iterator[np.ndarray]]]:
    """Open standard input. libsndfile reads WAV, AU, AIFF, W64 and Ogg from a pipe without seeking in it.

    Args:
        path: its name, for messages.
        rate: of no effect, as the sound keeps its own; ``espnet_pinch.sound.read.open_sound`` has it.

    Yields: as ``open_sound``. A block is of ``BLOCK`` seconds or shorter.

    Raises (on opening, or while the blocks are read):
        UserError: it is no sound that can be read from a pipe, has a rate that is none, or has samples that are
            not finite.
    """
    try:
        with soundfile.SoundFile(0, closefd=False) as sound:
            check_rate(sound.samplerate)
            if not sound.frames:
                raise UserError("states 0 samples; a stream leaves its length open: pipe it through ffmpeg")
            yield sound.samplerate, _blocks(sound)
    except soundfile.LibsndfileError as error:
        why = error.error_string.rstrip(".")
        raise UserError(
            f"{path}: {why}; what is followed must be WAV: pipe it through ffmpeg -i ... -f wav -"
        ) from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _blocks(sound: soundfile.SoundFile) -> Iterator[np.ndarray]:
    size = max(1, int(BLOCK * sound.samplerate))
    while len(block := sound.read(size, dtype="float32", always_2d=True)):
        samples = block.mean(1)
        if not np.isfinite(samples).all():
            raise UserError("has samples that are not finite")
        yield samples
