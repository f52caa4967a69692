"""Read the audio of a wav.scp entry safely: the libraries' readers can also run a command or load a pickle."""

import contextlib
import os
import re
import types
from collections.abc import Iterator
from unittest import mock

import kaldiio
import numpy as np
import soundfile

from espnet_pinch.errors import UserError, one_line
from espnet_pinch.unreadable import why_unreadable

try:
    from omniio.tools.kaldi import stream as omniio  # ESPnet 202611 reads archives with it; 202511 uses kaldiio
except ImportError:
    omniio = None

FRACTIONS = ("FLOAT", "DOUBLE")  # libsndfile's names of samples that are fractions; read as integers they would be 0
UNKNOWN = 2**62  # soundfile gives a larger number of samples if a file does not state its length
_BLOCK = 1 << 16  # samples


class Stream(soundfile.SoundFile):
    """A sound file that is read from beginning to end without seeking.

    In a seekable file, soundfile seeks to its current position after every read. In MP3 this causes noise, and in FLAC
    without a stated length it fails.
    """

    def seekable(self) -> bool:
        return False


@contextlib.contextmanager
def no_code() -> Iterator[None]:
    """Inside the block, archive readers load no pickle ("PKL" in an archive) and run no command ("cat a.ark |").

    Raises (in the reader):
        UserError: an archive holds a pickle, or a wav.scp holds a command.
    """

    def refuse(*_, **__):
        raise UserError("an audio archive holds a pickle, or a wav.scp holds a command, which could run code: refused")

    no_commands = types.SimpleNamespace(Popen=refuse, PIPE=None)
    with (
        mock.patch.object(kaldiio.matio, "pickle", types.SimpleNamespace(load=refuse)),
        mock.patch.object(kaldiio.utils, "subprocess", no_commands),
        mock.patch.object(omniio, "subprocess", no_commands) if omniio else contextlib.nullcontext(),
    ):
        yield


def read_file(path: str | os.PathLike, dtype: str) -> tuple[np.ndarray, int]:
    """Samples and sample rate in Hz of a sound file. Unlike soundfile.read, it needs no stated length.

    Raises:
        soundfile.LibsndfileError: it cannot be read.
    """
    with Stream(path) as file:
        return _whole(file, dtype), file.samplerate


def _whole(file: Stream, dtype: str) -> np.ndarray:
    """The samples of a file from where it is, to its end."""
    if file.frames < UNKNOWN:
        return file.read(file.frames, dtype=dtype)
    blocks = [file.read(_BLOCK, dtype=dtype)]
    while len(blocks[-1]):
        blocks.append(file.read(_BLOCK, dtype=dtype))
    return np.concatenate(blocks)


def read_16_bits(path: str | os.PathLike) -> tuple[np.ndarray, int, int]:
    """Samples (int16) and sample rate in Hz of a sound file, and how many samples were too large for 16 bits.

    Raises:
        soundfile.LibsndfileError: it cannot be read.
    """
    with Stream(path) as file:
        if file.subtype not in FRACTIONS:
            return _whole(file, "int16"), file.samplerate, 0
        samples, clipped = to_16_bits(_whole(file, "float64"))
        return samples, file.samplerate, clipped


def to_16_bits(samples: np.ndarray) -> tuple[np.ndarray, int]:
    """Samples in -1..1 as int16, and how many were too large for it. What was int16 before is the same again."""
    scaled = np.rint(samples.astype(np.float64) * 32768)
    clipped = int(((scaled < -32768) | (scaled > 32767)).sum())
    return np.clip(scaled, -32768, 32767).astype(np.int16), clipped


def is_archived(entry: str) -> bool:
    """Whether an entry of wav.scp is ``file.ark:offset``, audio in a packed archive."""
    return re.search(r"\.ark:\d+$", entry) is not None


def read_archive(entry: str) -> tuple[np.ndarray, int]:
    """Samples of ``file.ark:offset`` and their rate in Hz: integers, or floats in -1..1; several channels are columns.

    Raises:
        OSError: the archive cannot be read.
        UserError: it holds a pickle, its reader refuses it, or it holds no audio, or samples that are no numbers.
    """
    try:
        with no_code():
            found = kaldiio.load_mat(entry)
    except OSError:
        raise
    except ValueError as error:
        raise UserError(f"{entry}: {error}") from None
    except Exception as error:  # a damaged archive raises many kinds of errors
        raise OSError(f"{entry} cannot be read: {one_line(error) or type(error).__name__}") from None
    if not isinstance(found, tuple):
        raise UserError(f"{entry} holds numbers without a sample rate: no audio")
    rate, samples = found
    if samples.dtype.kind == "f" and not np.isfinite(samples).all():
        raise UserError(f"{entry} holds samples that are no numbers")
    return samples, rate


def read_audio(entry: str) -> np.ndarray:
    """Samples (float32, -1..1) of a sound file, or of ``file.ark:offset`` in a packed archive.

    Raises:
        OSError: the file cannot be read.
        UserError: as ``read_archive``.
    """
    if is_archived(entry):
        samples, _ = read_archive(entry)
        return as_float(samples)
    try:
        return read_file(entry, "float32")[0]
    except soundfile.LibsndfileError as error:
        raise OSError(f"{entry} {why_unreadable(entry) or f'cannot be read: {error}'}") from None


def as_float(samples: np.ndarray) -> np.ndarray:
    """Samples as float32 in -1..1; integers are of their type's whole range, and bytes have no sign."""
    if samples.dtype.kind not in "iu":
        return samples.astype(np.float32)
    half = 2.0 ** (8 * samples.dtype.itemsize - 1)
    centred = samples - half if samples.dtype.kind == "u" else samples
    return (centred / half).astype(np.float32)
