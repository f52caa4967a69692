"""Transcribe sound files of any sample rate, format and length: resampled, mixed to mono, in overlapping chunks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from espnet_pinch.asr.decode import frame_times, log_probs_of, step_seconds, transcript_of
from espnet_pinch.asr.head import ASR, CLASSIFY, require_task
from espnet_pinch.asr.recogniser import Recogniser, as_recogniser
from espnet_pinch.asr.search import GreedySearch, Search
from espnet_pinch.asr.spans import Span
from espnet_pinch.data.tokens import SPACE, WORD
from espnet_pinch.errors import UserError
from espnet_pinch.sound.live import open_live
from espnet_pinch.sound.read import open_sound
from espnet_pinch.sound.resample import resample
from espnet_pinch.transcript.words import Transcript

if TYPE_CHECKING:
    from espnet_pinch.asr.pruned import PrunedModel

PIECE = 1500  # frames, usually 30 s
PAUSE = 1.0  # seconds without a letter after which a word of a stream is over


def read_chunks(
    path: str | os.PathLike, rate: int, chunk: int, stride: int, opened=open_sound
) -> Iterator[tuple[np.ndarray, bool, bool]]:
    """Overlapping chunks of a sound file, each read when it is requested.

    Args:
        path: any rate, format and number of channels that ``espnet_pinch.sound`` reads.
        rate: Hz, to resample to.
        chunk: seconds of a chunk, more than ``2 * stride``.
        stride: seconds of context at an inner edge. Neighbours share ``2 * stride``: the next chunk starts
            ``chunk - 2 * stride`` later. Whole seconds are whole samples at any rate.
        opened: what opens the file.

    Yields: samples (float32, mono), whether the chunk is the first, whether it is the last.

    Raises:
        OSError, UserError: as ``espnet_pinch.sound.read.open_sound``.
    """
    with opened(path, rate) as (native, blocks):
        samples = _Taker(blocks)
        piece, first = samples.take(chunk * native), True
        while True:
            last = not samples.more()
            yield resample(piece, native, rate), first, last
            if last:
                return
            piece = np.concatenate([piece[-2 * stride * native :], samples.take((chunk - 2 * stride) * native)])
            first = False


def read_frames(
    recogniser: Recogniser, path: str | os.PathLike, chunk: int, stride: int, opened=open_sound
) -> Iterator[tuple[torch.Tensor, np.ndarray, float]]:
    """What a model says of a sound file.

    A file longer than a chunk is given to the model in chunks. Frames within ``stride`` of an inner edge are dropped,
    as in transformers' pipeline with ``chunk_length_s`` and ``stride_length_s``. A shorter file is taken as a whole.

    Args:
        path, chunk, stride, opened: as ``read_chunks``.

    Yields: for each chunk, log-probabilities (frames, tokens) on the CPU, (frames,) seconds of the file at which the
        frames begin, and the number of seconds that the chunk has added.

    Raises:
        OSError, UserError: as ``read_chunks``; or the audio is too short for one frame, or the model is a classifier.
    """
    require_task(ASR, recogniser, "the model")
    rate, ratio = recogniser.sampling_rate, recogniser.samples_per_frame
    begin = 0  # seconds of the file at which the chunk begins
    for samples, first, last in read_chunks(path, rate, chunk, stride, opened):
        if len(samples) < recogniser.shortest:
            raise UserError(f"{path}: {len(samples)} samples at {rate} Hz are too few for one frame")
        [rows], _ = log_probs_of(recogniser, [torch.from_numpy(samples)])
        start, end = 0 if first else stride * rate // ratio, None if last else (chunk - stride) * rate // ratio
        log_probs = rows[start:end].cpu()
        times = begin + frame_times(recogniser, start + len(log_probs))[start:]
        yield log_probs, times, len(samples) / rate - (0 if first else 2 * stride)
        begin += chunk - 2 * stride


def classify_file(
    model: PrunedModel | Recogniser, path: str | os.PathLike, device: str = "cpu"
) -> list[tuple[str, float]]:
    """All labels of a sound file with their probabilities, the most probable first. The file is one utterance.

    Args:
        model: a classifier, in eval mode, on ``device``; or what ``espnet_pinch.load(path, runtime)`` returns.
        path: any rate, format and number of channels that ``espnet_pinch.sound`` reads.

    Raises:
        OSError, UserError: as ``espnet_pinch.sound.read.open_sound``; or the audio is too short for one frame, or the
            model is no classifier.
    """
    recogniser = as_recogniser(model, device)
    require_task(CLASSIFY, recogniser, "the model")
    rate = recogniser.sampling_rate
    with open_sound(path, rate) as (native, blocks):
        samples = resample(np.concatenate([np.empty(0, np.float32), *blocks]), native, rate)
    if len(samples) < recogniser.shortest:
        raise UserError(f"{path}: {len(samples)} samples at {rate} Hz are too few for one frame")
    log_probs, _ = log_probs_of(recogniser, [torch.from_numpy(samples)])
    probabilities, places = log_probs[0, 0].exp().sort(descending=True)
    return [(recogniser.token_list[place], value) for place, value in zip(places.tolist(), probabilities.tolist())]


def transcribe_file(
    model: PrunedModel | Recogniser,
    path: str | os.PathLike,
    chunk: int = 30,
    stride: int = 5,
    device: str = "cpu",
    advance: Callable[[float], None] = lambda seconds: None,
    search: Search | None = None,
) -> Transcript:
    """The transcript of a sound file, with times in seconds of that file.

    A long file is searched in pieces, see ``pieces``. Memory does not grow with its length, but for the transcript and
    the times of its frames (8 bytes each).

    Args:
        model: in eval mode, on ``device``; or what ``espnet_pinch.load(path, runtime)`` returns.
        path, chunk, stride: as ``read_chunks``.
        advance: called after every chunk with the number of seconds that it has added.
        search: greedy search if None.

    Raises:
        OSError, UserError: as ``read_frames``.
    """
    recogniser = as_recogniser(model, device)
    search = search or GreedySearch(recogniser.blank_id)
    times: list[np.ndarray] = []
    seconds = 0.0

    def log_probs() -> Iterator[torch.Tensor]:
        nonlocal seconds
        for rows, begins, new in read_frames(recogniser, path, chunk, stride):
            times.append(begins)
            seconds += new
            yield rows
            advance(new)

    spans: list[Span] = []
    frames = 0
    for piece in pieces(log_probs(), recogniser.blank_id, recogniser.token_list):
        [found] = search(piece[None], torch.tensor([len(piece)]))
        spans += [span.later(frames) for span in found]
        frames += len(piece)
    return transcript_of(str(path), spans, recogniser, np.concatenate(times), seconds)


def follow(
    model: PrunedModel | Recogniser,
    path: str | os.PathLike,
    chunk: int = 8,
    stride: int = 2,
    device: str = "cpu",
    search: Search | None = None,
) -> Iterator[Transcript]:
    """Transcripts of standard input while it grows, each as soon as its words are certain.

    What is said is known once ``stride`` seconds after it have been heard, and chunks begin ``chunk - 2 * stride``
    seconds apart. So a word comes at most ``chunk`` seconds after the space that follows it, or after a pause of
    ``PAUSE``; the time to compute comes on top.

    Args:
        model, device, search: as ``transcribe_file``.
        path: name of the stream.
        chunk, stride: as ``read_chunks``.

    Yields: some words each; times are those of the stream.

    Raises:
        UserError: as ``open_live``; or the stream is too short for one frame.
    """
    recogniser = as_recogniser(model, device)
    search = search or GreedySearch(recogniser.blank_id)
    borders = Borders.of(recogniser.token_list, recogniser.blank_id)
    rest, times, seconds = torch.empty(0, len(recogniser.token_list)), np.empty(0), 0.0

    def heard(end: int | None) -> Iterator[Transcript]:
        [spans] = search(rest[None, :end], torch.tensor([len(rest[:end])]))
        transcript = transcript_of(str(path), spans, recogniser, times[:end], seconds)
        if transcript.words:
            yield transcript

    for rows, begins, new in read_frames(recogniser, path, chunk, stride, open_live):
        rest, times, seconds = torch.cat([rest, rows]), np.concatenate([times, begins]), seconds + new
        end = _certain(rest.argmax(-1).numpy(), borders, round(PAUSE / step_seconds(recogniser)))
        if end:
            yield from heard(end)
            rest, times = rest[end:], times[end:]
    if len(rest):
        yield from heard(None)


class Borders(NamedTuple):
    """Which tokens have words around them.

    Attributes:
        silent: those that are no part of a word: the blank and the space.
        space: index of the space; of the blank if there is none.
        beginnings: subwords that begin a word.
    """

    silent: list[int]
    space: int
    beginnings: list[int]

    @classmethod
    def of(cls, tokens: Sequence[str], blank: int) -> Borders:
        space = next((i for i, name in enumerate(tokens) if name in (SPACE, WORD)), blank)
        return cls([blank, space], space, [i for i, name in enumerate(tokens) if name.startswith(WORD) and i != space])

    def between(self, best: np.ndarray) -> np.ndarray:
        """The places between words, from 0 to the number of frames: behind spaces, and where words begin.

        Args:
            best: (frames,) index of the best token of each frame.
        """
        begins = np.isin(best, self.beginnings) & (best != np.concatenate([[self.space], best[:-1]]))
        spaces = (best == self.space) & (self.space != self.silent[0])
        return np.flatnonzero(np.append(begins, False) | np.append(False, spaces))


def _certain(best: np.ndarray, borders: Borders, pause: int) -> int:
    """How many of the frames hold nothing but whole words.

    Args:
        best: (frames,) index of the best token of each frame.
        pause: frames without a letter after which a word is over, with or without a space.
    """
    letters = np.flatnonzero(~np.isin(best, borders.silent))
    if not len(letters) or len(best) - 1 - letters[-1] >= pause:
        return len(best)
    return int(borders.between(best[: letters[-1] + 1]).max(initial=0))


def pieces(chunks: Iterable[torch.Tensor], blank: int, tokens: Sequence[str]) -> Iterator[torch.Tensor]:
    """Cut what a model says at pauses, so that each piece can be searched by itself.

    Piece after piece, greedy search finds the same tokens as in the whole. More than ``PIECE`` frames are cut, in their
    second half or later: in the longest pause between two words, after its last space or, without one, before the
    subword that begins the next word; or else in the middle of the longest pause. A pause is a run of frames whose best
    token is the blank or the space. Where there is none, the piece goes on.

    Args:
        chunks: log-probabilities, each (frames, tokens).
        blank: index of the blank.
        tokens: the token list.

    Yields: log-probabilities (frames, tokens), at least one frame.
    """
    borders = Borders.of(tokens, blank)
    rest: torch.Tensor | None = None
    for chunk in chunks:
        rest = chunk if rest is None else torch.cat([rest, chunk])
        while len(rest) > PIECE and (end := _pause(rest.argmax(-1).numpy(), borders)):
            yield rest[:end]
            rest = rest[end:]
    if rest is not None and len(rest):
        yield rest


def _pause(best: np.ndarray, borders: Borders) -> int:
    """Where a piece ends; 0 if there is no pause.

    Args:
        best: (frames,) index of the best token of each frame.
    """
    silent = np.isin(best, borders.silent)
    silent[: PIECE // 2] = False
    edges = np.flatnonzero(np.diff(silent, prepend=False, append=False))
    ends: list[tuple[bool, int, int]] = []
    between = borders.between(best)
    for start, end in zip(edges[::2], edges[1::2]):
        places = between[(between > start) & (between <= end)]
        place = int(places[-1] if len(places) else start + (end - start) // 2)
        if place < len(best):  # where the frames end, the space may go on
            ends.append((len(places) > 0, int(end - start), place))
    return max(ends, default=(False, 0, 0))[2]


class _Taker:
    """Takes any number of samples at a time from blocks of samples."""

    def __init__(self, blocks: Iterator[np.ndarray]):
        self._blocks, self._rest = blocks, np.empty(0, np.float32)

    def more(self) -> bool:
        """Whether any are left. Reads no more than one block ahead, as a stream may not have more yet."""
        while not len(self._rest):
            block = next(self._blocks, None)
            if block is None:
                return False
            self._rest = block
        return True

    def take(self, count: int) -> np.ndarray:
        """The next ``count`` samples, or what is left."""
        taken, missing = [], count
        while missing and self.more():
            taken.append(self._rest[:missing])
            self._rest, missing = self._rest[missing:], missing - len(taken[-1])
        return np.concatenate(taken) if taken else self._rest
