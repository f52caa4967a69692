"""Transcribe sound files of any sample rate, format and length: resampled, mixed to mono, in overlapping chunks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.signal import resample_poly

from espnet_pinch.asr.greedy import ctc_greedy, to_text
from espnet_pinch.asr.recogniser import Recogniser, as_recogniser
from espnet_pinch.errors import UserError
from espnet_pinch.sound.read import open_sound

if TYPE_CHECKING:
    from espnet_pinch.asr.model import PruningASRModel

# Limits the numbers of the resampling ratio, which set the filter's length. At 767999 Hz the ratio is only 3e-8 off.
_FINEST = 50_000


def read_chunks(path: str | os.PathLike, rate: int, chunk: int, stride: int) -> Iterator[tuple[np.ndarray, bool, bool]]:
    """Overlapping chunks of a sound file, each read when it is requested.

    Args:
        path: any rate, format and number of channels that ``espnet_pinch.sound`` reads.
        rate: Hz, to resample to.
        chunk: seconds of a chunk, more than ``2 * stride``.
        stride: seconds of context at an inner edge. Neighbours share ``2 * stride``: the next chunk starts
            ``chunk - 2 * stride`` later. Whole seconds are whole samples at any rate.

    Yields: samples (float32, mono), whether the chunk is the first, whether it is the last.

    Raises:
        OSError, UserError: as ``espnet_pinch.sound.read.open_sound``.
    """
    with open_sound(path, rate) as (native, blocks):
        take = _Taker(blocks).take
        piece = take(chunk * native)
        first = True
        while True:
            more = take((chunk - 2 * stride) * native)
            last = len(more) == 0
            yield _resample(piece, native, rate), first, last
            if last:
                return
            piece = np.concatenate([piece[-2 * stride * native :], more])
            first = False


def transcribe_file(
    model: PruningASRModel | Recogniser,
    path: str | os.PathLike,
    chunk: int = 30,
    stride: int = 5,
    device: str = "cpu",
    advance: Callable[[float], None] = lambda seconds: None,
) -> tuple[str, float]:
    """The greedy transcript of a sound file.

    A file longer than a chunk is decoded in chunks. Frames within ``stride`` of an inner edge are dropped, and the rest
    is joined, as in transformers' pipeline with ``chunk_length_s`` and ``stride_length_s``. A shorter file is decoded
    as a whole.

    Args:
        model: in eval mode, on ``device``; or what ``espnet_pinch.load(path, runtime)`` returns.
        path, chunk, stride: as ``read_chunks``.
        advance: called after every chunk with the number of seconds that it has added.

    Returns: the transcript, and the length of the audio in seconds.

    Raises:
        OSError, UserError: as ``read_chunks``; or the audio is too short for one frame.
    """
    recogniser = as_recogniser(model, device)
    rate, ratio = recogniser.sampling_rate, recogniser.samples_per_frame
    best, seconds = [], 0.0
    for samples, first, last in read_chunks(path, rate, chunk, stride):
        new = len(samples) / rate - (0 if first else 2 * stride)
        if len(samples) < recogniser.shortest:
            raise UserError(f"{path}: {len(samples)} samples at {rate} Hz are too few for one frame")
        logits, _ = recogniser([torch.from_numpy(samples)])
        start, end = 0 if first else stride * rate // ratio, None if last else (chunk - stride) * rate // ratio
        best.append(logits[0, start:end].argmax(-1).cpu())
        seconds += new
        advance(new)
    frames = torch.cat(best)
    [ids] = ctc_greedy(frames[None], torch.tensor([len(frames)]), recogniser.blank_id)
    return to_text(ids, recogniser.token_list), seconds


class _Taker:
    """Takes any number of samples at a time from blocks of samples."""

    def __init__(self, blocks: Iterator[np.ndarray]):
        self._blocks, self._rest = blocks, np.empty(0, np.float32)

    def take(self, count: int) -> np.ndarray:
        """The next ``count`` samples, or what is left."""
        taken, missing = [], count
        while missing:
            block = self._rest if len(self._rest) else next(self._blocks, None)
            if block is None:
                break
            taken.append(block[:missing])
            self._rest, missing = block[missing:], missing - len(taken[-1])
        return np.concatenate(taken) if taken else self._rest


def _resample(samples: np.ndarray, old: int, new: int) -> np.ndarray:
    if old == new:
        return samples
    ratio = Fraction(new, old).limit_denominator(_FINEST)
    length = -(-len(samples) * new // old)
    resampled = resample_poly(samples, ratio.numerator, ratio.denominator)[:length].astype(np.float32)
    return np.pad(resampled, (0, length - len(resampled)))
