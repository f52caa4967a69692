"""Transcribe sound files of any rate, format and length: resampled, mixed down, in overlapping chunks."""

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch
from scipy.signal import resample_poly

from espnet_pinch.asr.greedy import ctc_greedy, to_text
from espnet_pinch.asr.model import PruningASRModel
from espnet_pinch.data.tokens import frames_of
from espnet_pinch.unreadable import why_unreadable

# Endings of the formats that soundfile reads; raw samples lack a header to read them by.
SUFFIXES = {f".{name.lower()}" for name in soundfile.available_formats()} - {".raw"} | {
    ".opus",
    ".oga",
    ".aif",
    ".aifc",
}


UNKNOWN = 2**62  # soundfile gives a larger number of samples where the file does not say how many it has


class _Stream(soundfile.SoundFile):
    """A sound file read from its beginning to its end.

    soundfile seeks to where it is after every read of a file that it can seek in. MP3 has noise behind a seek.
    """

    def seekable(self) -> bool:
        return False


def find_audio(path: str | os.PathLike) -> list[Path]:
    """``path`` itself where it is a file, or the sound files, by their endings, anywhere in the folder, sorted.

    Raises:
        FileNotFoundError: it does not exist, or the folder holds no sound file.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: does not exist")
    if not path.is_dir():
        return [path]
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and not p.is_dir())
    if not found:
        raise FileNotFoundError(f"{path}: no sound file in this folder")
    return found


def seconds_of(path: str | os.PathLike) -> float:
    """Length of a sound file as it says itself; 0 where it cannot be read or does not say."""
    with contextlib.suppress(OSError, soundfile.LibsndfileError):
        info = soundfile.info(path)
        return info.duration if info.frames < UNKNOWN else 0.0
    return 0.0


def read_chunks(path: str | os.PathLike, rate: int, chunk: int, stride: int) -> Iterator[tuple[np.ndarray, bool, bool]]:
    """Overlapping pieces of a sound file, each read when it is asked for.

    Args:
        path: any rate, format and number of channels that soundfile reads.
        rate: Hz, to resample to.
        chunk: seconds of a piece, over ``2 * stride``.
        stride: seconds that a piece shares with its neighbour, twice: the next one starts ``chunk - 2 * stride``
            later. Whole seconds, so that no rate leaves a part of a sample over.

    Yields: samples (float32, mono), whether they are the first piece, whether they are the last.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is cut short, or has samples that are not finite.
    """
    try:
        with _Stream(path) as file:
            left = file.frames if file.frames < UNKNOWN else 0
            piece = _read(file, chunk)
            left -= len(piece)
            first = True
            while True:
                more = _read(file, chunk - 2 * stride)
                left -= len(more)
                last = len(more) == 0
                if last and left > 0:
                    raise ValueError(f"{path}: cut short, {left} of {file.frames} samples are missing")
                yield _resample(piece, file.samplerate, rate), first, last
                if last:
                    return
                piece = np.concatenate([piece[-2 * stride * file.samplerate :], more])
                first = False
    except soundfile.LibsndfileError as error:
        raise OSError(f"{path}: {why_unreadable(path) or error.error_string.rstrip('.')}") from None


@torch.inference_mode()
def transcribe_file(
    model: PruningASRModel,
    path: str | os.PathLike,
    chunk: int = 30,
    stride: int = 5,
    device: str = "cpu",
    advance: Callable[[float], None] = lambda seconds: None,
) -> tuple[str, float]:
    """The greedy transcript of a sound file.

    A file longer than a chunk is decoded in chunks, and the logits' middle parts are joined, as transformers' pipeline
    does with ``chunk_length_s`` and ``stride_length_s``: what is within ``stride`` of an inner edge is dropped. A
    shorter file is decoded as a whole.

    Args:
        model: in eval mode, on ``device``.
        path, chunk, stride: as ``read_chunks``.
        advance: is told, after every chunk, how many more seconds are done.

    Returns: the transcript, and the audio's length in seconds.

    Raises:
        OSError, ValueError: as ``read_chunks``; or it is too short for one frame.
    """
    config, rate = model.frontend.upstream.config, model.frontend.processing.sampling_rate
    ratio = math.prod(config.conv_stride)  # samples from one frame to the next
    best, seconds = [], 0.0
    for samples, first, last in read_chunks(path, rate, chunk, stride):
        new = len(samples) / rate - (0 if first else 2 * stride)
        if frames_of(len(samples), config.conv_kernel, config.conv_stride) < 1:
            raise ValueError(f"{path}: {len(samples)} samples at {rate} Hz are too few for one frame")
        speech = torch.from_numpy(samples)[None].to(device)
        hidden, _ = model.encode(speech, torch.tensor([len(samples)], device=device))
        start, end = 0 if first else stride * rate // ratio, None if last else (chunk - stride) * rate // ratio
        best.append(model.ctc.argmax(hidden)[0, start:end].cpu())
        seconds += new
        advance(new)
    frames = torch.cat(best)
    [ids] = ctc_greedy(frames[None], torch.tensor([len(frames)]), model.blank_id)
    return to_text(ids, model.token_list), seconds


def _read(file: soundfile.SoundFile, seconds: int) -> np.ndarray:
    """The next ``seconds`` of a file, channels averaged, (samples,)."""
    samples = file.read(seconds * file.samplerate, dtype="float32", always_2d=True).mean(1)
    if not np.isfinite(samples).all():
        raise ValueError(f"{file.name}: has samples that are not finite")
    return samples


def _resample(samples: np.ndarray, old: int, new: int) -> np.ndarray:
    divisor = math.gcd(old, new)
    return samples if old == new else resample_poly(samples, new // divisor, old // divisor).astype(np.float32)
