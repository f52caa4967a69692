"""Read a sound file of any kind: all of its samples, or an error."""

import contextlib
import os
import re
import stat
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile

from espnet_pinch.data.audio import UNKNOWN, Stream
from espnet_pinch.errors import UserError
from espnet_pinch.sound import flac, mpeg, ogg
from espnet_pinch.sound.chunks import stated_parts
from espnet_pinch.sound.ffmpeg import ffmpeg_blocks, has_ending, has_magic
from espnet_pinch.sound.pieces import Part, PiecesFile
from espnet_pinch.sound.tags import end_of_sound, read_at, tag_length
from espnet_pinch.unreadable import POINTER, is_pointer, reading_reason

HEADERLESS = (".raw", ".pcm")
RATES = (1000, 768_000)  # Hz, lowest and highest: other rates come from no real recording, and would fill the memory
MOST_PIPED = 4 << 30  # most bytes of a pipe that a temporary file keeps
_VALUES = 1 << 18  # samples of all channels that are decoded at a time
_DESCRIPTOR = re.compile(r"/dev/fd/(\d+)|/proc/self/fd/(\d+)|/dev/stdin")


_LOSSLESS = ("WAV", "WAVEX", "RF64", "W64", "FLAC", "AIFF", "NIST")  # libsndfile's names


@contextlib.contextmanager
def open_sound(
    path: str | os.PathLike, rate: int, channel: int | None = None
) -> Iterator[tuple[int, Iterator[np.ndarray]]]:
    """Open a sound file, or a pipe that this process has open (/dev/stdin, /dev/fd/N).

    Args:
        rate: sample rate in Hz of what ffmpeg decodes. All other files keep their own rate.
        channel: the one to read, from 0; None averages all.

    Yields: the rate in Hz, and blocks of samples, (samples,), float32, of one channel.

    Raises (on opening, or while the blocks are read):
        OSError: the file cannot be read.
        UserError: it is cut short, damaged or of a kind that cannot be read, has a rate outside ``RATES``, or has
            samples that are not finite; or it has no such channel.
    """
    with open_regular(path) as file:
        with contextlib.closing(_told(path, _blocks(Path(path), file, rate, channel))) as blocks:
            yield next(blocks), blocks


def plain_samples(path: str | os.PathLike, rate: int) -> int | None:
    """The number of samples of a sound file that libsndfile alone reads rightly, if it is lossless, has one channel and
    this rate in Hz; None for any other file.

    Only the header is read, and whether the file is cut short.

    Raises:
        OSError: it cannot be opened.
        UserError: it is cut short or damaged.
    """
    with open_regular(path) as file:
        start, end = _bounds(file)
        if start or has_magic(read_at(file, 0, 16)):
            return None
        try:
            parts = _parts(Path(path), file, start, end)
            info = _info(file, Part(((start, end),)))
        except soundfile.LibsndfileError:
            return None
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    whole = len(parts) == 1 and parts[0].pieces[-1] == ((42, end) if info.format == "FLAC" else (start, end))
    fits = info.format in _LOSSLESS and info.samplerate == rate and info.channels == 1 and 0 < info.frames < UNKNOWN
    return info.frames if whole and fits else None


def seconds_of(path: str | os.PathLike) -> float:
    """Length in seconds that a sound file states; 0 for a pipe, or if the file cannot be read or states no length."""
    if _DESCRIPTOR.fullmatch(str(path)):
        return 0.0
    with contextlib.suppress(OSError, ValueError, soundfile.LibsndfileError), open_regular(path) as file:
        start, end = _bounds(file)
        if mpeg.is_mpeg(file, start):
            parts = _parts(Path(path), file, start, end)  # libsndfile alone would guess, and warn on stderr
            samples = sum(part.samples or _info(file, part).frames for part in parts)
            return samples / _info(file, parts[0]).samplerate
        info = _info(file, Part(((start, end),)))
        if info.frames < UNKNOWN and RATES[0] <= info.samplerate <= RATES[1]:
            return info.frames / info.samplerate
    return 0.0


def check_rate(rate: int) -> None:
    """Raise UserError for a sample rate in Hz outside ``RATES``."""
    if not RATES[0] <= rate <= RATES[1]:
        raise UserError(f"states a rate of {rate} Hz; only rates from {RATES[0]} to {RATES[1]} Hz can be read")


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Open a regular file for reading, or a pipe that this process has open. Anything else could block for ever.

    Raises:
        OSError: it cannot be opened, or is a named pipe, a socket, a device or a folder.
    """
    descriptor = _DESCRIPTOR.fullmatch(str(path))
    number = int(descriptor[1] or descriptor[2] or 0) if descriptor else None
    try:
        mode = os.stat(path).st_mode if number is None else os.fstat(number).st_mode
        if number is not None and (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
            return _spooled(path, number)
        if not stat.S_ISREG(mode):
            kinds = ((stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISDIR, "a folder"))
            kind = next((name for is_it, name in kinds if is_it(mode)), "a device")
            hint = "" if stat.S_ISDIR(mode) else "; '-' reads standard input"
            raise OSError(f"{path}: is {kind}, not a file{hint}")
        return os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except OSError as error:
        if not error.strerror or str(path) in str(error).partition(":")[0]:
            raise
        raise type(error)(f"{path}: {reading_reason(error, path)}") from None
    except ValueError:  # a null character
        raise OSError(f"{path}: is not a valid file name") from None


def _spooled(path: str | os.PathLike, number: int) -> BinaryIO:
    """A temporary file with the content of a pipe, because sound is read twice and libsndfile seeks in it."""
    copy = tempfile.TemporaryFile()
    with os.fdopen(os.dup(number), "rb") as pipe:
        while block := pipe.read(1 << 20):
            if copy.tell() + len(block) > MOST_PIPED:
                raise OSError(f"{path}: the pipe has more than {MOST_PIPED >> 20} MiB: use a file")
            copy.write(block)
    copy.seek(0)
    return copy


def _told(path: str | os.PathLike, blocks: Iterator) -> Generator:
    """Put the file's name in front of every error message."""
    try:
        yield from blocks
    except soundfile.LibsndfileError as error:
        raise OSError(f"{path}: {error.error_string.rstrip('.')}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except OSError as error:
        raise OSError(f"{path}: {error.strerror or error}") from None


def _blocks(path: Path, file: BinaryIO, rate: int, channel: int | None) -> Iterator:
    """First the rate, then blocks of samples."""
    start, end = _bounds(file)
    if is_pointer(read_at(file, start, 64)):
        raise UserError(POINTER)
    parts = None
    if not has_magic(read_at(file, start, 16)):
        try:
            parts = _parts(path, file, start, end)
            native = _info(file, parts[0]).samplerate
        except soundfile.LibsndfileError:
            if path.suffix.lower() in HEADERLESS:
                raise UserError("holds samples without a header, of unknown rate: convert it to WAV") from None
            if not has_ending(path):
                raise
            parts = None
    if parts is None:
        yield rate
        yield from ffmpeg_blocks(file, rate, channel)
        return
    check_rate(native)
    yield native
    for part in parts:
        yield from _part_blocks(file, part, native, channel)


def _part_blocks(file: BinaryIO, part: Part, rate: int, channel: int | None) -> Iterator[np.ndarray]:
    source = PiecesFile(file, part)
    with Stream(source) as sound:
        if sound.samplerate != rate:
            raise UserError(f"it is joined from files of {rate} and {sound.samplerate} Hz: split it")
        if channel is not None and channel >= sound.channels:
            raise UserError(f"has {sound.channels} channels, and channel {channel} (from 0) is asked for")
        stated = part.samples if part.samples is not None else sound.frames if sound.frames < UNKNOWN else 0
        count = 0
        while len(block := sound.read(max(1, _VALUES // sound.channels), dtype="float32", always_2d=True)):
            samples = block.mean(1) if channel is None else block[:, channel]
            if not np.isfinite(samples).all():
                raise UserError("has samples that are not finite")
            count += len(samples)
            yield samples
    if source.error:
        raise source.error
    if count < stated:
        raise UserError(f"cut short or damaged: {count} of its {stated} samples can be read")


def _bounds(file: BinaryIO) -> tuple[int, int]:
    """Where a file begins, after ID3v2 tags that are not part of its format, and where it ends."""
    start, end = 0, os.fstat(file.fileno()).st_size
    while read_at(file, start, 3) == b"ID3" and (tag := tag_length(file, start, end)):
        start += tag
    return start, end


def _parts(path: Path, file: BinaryIO, start: int, end: int) -> list[Part]:
    magic = read_at(file, start, 4)
    if magic == ogg.MAGIC:
        return ogg.ogg_parts(file, start, end_of_sound(file, start, end))
    if magic == flac.MAGIC:
        return flac.flac_parts(file, start, end_of_sound(file, start, end))
    parts = stated_parts(file, start, end)
    if parts is None and (mpeg.is_mpeg(file, start) or (path.suffix.lower() in mpeg.ENDINGS and end > start)):
        return mpeg.mpeg_parts(file, start, end_of_sound(file, start, end))
    return parts or [Part(((start, end),))]


def _info(file: BinaryIO, part: Part) -> soundfile.SoundFile:
    """A part's header: a closed sound file that still has its rate and number of samples."""
    with soundfile.SoundFile(PiecesFile(file, part)) as sound:
        return sound
