"""Read the audio of a wav.scp entry, and nothing but audio: its readers would run a command, or unpickle, if told."""

import contextlib
import os
import re
import types
from collections.abc import Iterator
from unittest import mock

import kaldiio
import numpy as np
import soundfile

from espnet_pinch.errors import UserError
from espnet_pinch.unreadable import why_unreadable

try:
    from omniio.tools.kaldi import stream as omniio  # with which ESPnet 202611 reads archives; 202511 uses kaldiio
except ImportError:
    omniio = None

UNKNOWN = 2**62  # soundfile gives a larger number of samples where a file does not say how many it has
_BLOCK = 1 << 16  # samples


class Stream(soundfile.SoundFile):
    """A sound file read from its beginning to its end.

    soundfile seeks to where it is after every read of a file that it can seek in. MP3 has noise behind a seek, and FLAC
    without a stated length cannot be sought in.
    """

    def seekable(self) -> bool:
        return False


@contextlib.contextmanager
def no_code() -> Iterator[None]:
    """Inside, no reader of archives unpickles ("PKL" in one) or starts a command ("cat a.ark |" in a wav.scp).

    Raises (in the reader):
        ValueError: it was told to.
    """

    def refuse(*_, **__):
        raise UserError("an archive of audio holds a pickle, or a wav.scp a command, and that could run code: refused")

    no_commands = types.SimpleNamespace(Popen=refuse, PIPE=None)
    with (
        mock.patch.object(kaldiio.matio, "pickle", types.SimpleNamespace(load=refuse)),
        mock.patch.object(kaldiio.utils, "subprocess", no_commands),
        mock.patch.object(omniio, "subprocess", no_commands) if omniio else contextlib.nullcontext(),
    ):
        yield


def read_file(path: str | os.PathLike, dtype: str) -> tuple[np.ndarray, int]:
    """Samples and rate in Hz of a sound file, which need not say how many it has: soundfile.read asks for that.

    Raises:
        soundfile.LibsndfileError: it cannot be read.
    """
    with Stream(path) as file:
        if file.frames < UNKNOWN:
            return file.read(file.frames, dtype=dtype), file.samplerate
        blocks = [file.read(_BLOCK, dtype=dtype)]
        while len(blocks[-1]):
            blocks.append(file.read(_BLOCK, dtype=dtype))
        return np.concatenate(blocks), file.samplerate


def read_audio(entry: str) -> np.ndarray:
    """Samples (float32, -1..1) of a sound file, or of ``file.ark:offset`` out of a packed archive.

    Raises:
        OSError: the file cannot be read.
        ValueError: the archive holds a pickle.
    """
    if re.search(r"\.ark:\d+$", entry):
        try:
            with no_code():
                samples = kaldiio.load_mat(entry)[1]
        except OSError:
            raise
        except ValueError as error:
            raise UserError(f"{entry}: {error}") from None
        except Exception as error:  # a damaged archive shows in many ways
            raise OSError(f"{entry} cannot be read: {error or type(error).__name__}") from None
        return (samples / 32768).astype(np.float32) if samples.dtype == np.int16 else samples.astype(np.float32)
    try:
        return read_file(entry, "float32")[0]
    except soundfile.LibsndfileError as error:
        raise OSError(f"{entry} {why_unreadable(entry) or f'cannot be read: {error}'}") from None
