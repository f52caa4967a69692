"""Batched decoding, of utterances and of data directories."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from espnet_pinch.asr.head import ASR
from espnet_pinch.asr.recogniser import Recogniser, as_recogniser
from espnet_pinch.asr.search import Search
from espnet_pinch.asr.spans import Span, time_words
from espnet_pinch.data.audio import read_audio
from espnet_pinch.data.kaldi_dir import Utterance, read_data_dir
from espnet_pinch.errors import UserError
from espnet_pinch.files import write_json, write_text
from espnet_pinch.progress import progress_bar
from espnet_pinch.transcript.format import all_formats
from espnet_pinch.transcript.words import Transcript

if TYPE_CHECKING:
    from espnet_pinch.asr.pruned import PrunedModel


def batches(utterances: list[Utterance], batch_size: int) -> Iterator[list[Utterance]]:
    """Batches of utterances of similar length, the longest first: if memory is too small, the first batch fails."""
    rows = sorted(utterances, key=lambda u: (-u.samples, u.id))
    return (rows[i : i + batch_size] for i in range(0, len(rows), batch_size))


def transcribe(model: PrunedModel | Recogniser, audio: list[torch.Tensor], device: str = "cpu") -> list[str]:
    """Greedy transcripts of one batch; labels of a classifier.

    Args:
        model: in eval mode, on ``device``; or what ``espnet_pinch.load(path, runtime)`` returns.
        audio: each (samples,), at the model's sample rate (usually 16 kHz).

    Returns: a transcript of each.
    """
    return [transcript.text for transcript in recognise(model, audio, device)]


def recognise(
    model: PrunedModel | Recogniser,
    audio: list[torch.Tensor],
    device: str = "cpu",
    search: Search | None = None,
    names: Sequence[str] | None = None,
) -> list[Transcript]:
    """Transcripts of one batch, with words, times and confidences; of a classifier, labels with theirs.

    Args:
        model, audio, device: as ``transcribe``.
        search: greedy search if None.
        names: of the recordings.
    """
    recogniser = as_recogniser(model, device)
    return recogniser.kind.transcripts(recogniser, audio, search, names or [""] * len(audio))


def log_probs_of(recogniser: Recogniser, audio: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """What a model says of one batch: log-probabilities (batch, frames, tokens), and numbers of frames (batch,).

    An utterance that is too short for one frame has none.

    Raises:
        UserError: as the recogniser; or an utterance is too short for a classifier.
    """
    short = [len(samples) for samples in audio if len(samples) < recogniser.shortest]
    if short and recogniser.task != ASR:
        raise UserError(
            f"an utterance of {short[0]} samples at {recogniser.sampling_rate} Hz is too short for one frame"
        )
    if len(short) == len(audio):  # models can pad such utterances, but not compute them alone
        return torch.empty(len(audio), 0, len(recogniser.token_list)), torch.zeros(len(audio), dtype=torch.long)
    logits, frames = recogniser(audio)
    return logits.log_softmax(-1), frames


def step_seconds(recogniser: Recogniser) -> float:
    """Seconds from one frame to the next."""
    return recogniser.samples_per_frame / recogniser.sampling_rate


def frame_times(recogniser: Recogniser, count: int) -> np.ndarray:
    """(count,) seconds at which the first frames begin."""
    return np.arange(count) * step_seconds(recogniser)


def transcript_of(
    name: str, spans: list[Span], recogniser: Recogniser, times: np.ndarray, seconds: float
) -> Transcript:
    """The transcript that spans are of.

    Args:
        name: of the recording.
        times: (frames,) seconds at which the frames begin.
        seconds: length of the recording.
    """
    end = times[-1] + step_seconds(recogniser) if len(times) else 0.0
    words = time_words(spans, recogniser.token_list, np.minimum(np.append(times, end), seconds))
    return Transcript(name, " ".join(word.text for word in words), seconds, tuple(words))


def decode_data_dir(
    model: PrunedModel | Recogniser,
    data: str | os.PathLike,
    out: str | os.PathLike,
    batch_size: int = 8,
    device: str = "cpu",
    search: Search | None = None,
    **settings,
) -> dict:
    """Decode a data directory: write transcripts to ``out/text``, words to ``out/ctm``, times to ``out/decode.json``.

    Args:
        search: greedy search if None.
        settings: further fields of ``decode.json``.

    Returns: the content of ``decode.json``: ``seconds`` of decoding, ``audio_seconds``, their ratio ``rtf`` (real-time
        factor), the number of ``utterances``, and ``batch_size``.
    """
    utterances, recogniser = read_data_dir(data), as_recogniser(model, device)
    transcripts: dict[str, Transcript] = {}
    start = time.perf_counter()
    progress = progress_bar(total=len(utterances), desc=f"decoding {Path(data).name}", unit="utts")
    with progress:
        for batch in batches(utterances, batch_size):
            audio = [torch.from_numpy(read_audio(u.audio)) for u in batch]
            names = [u.id for u in batch]
            transcripts.update(zip(names, recognise(recogniser, audio, search=search, names=names)))
            progress.update(len(batch))
    seconds = time.perf_counter() - start
    write_text(Path(out) / "ctm", "".join(all_formats()["ctm"].write(row) for _, row in sorted(transcripts.items())))
    texts = {id_: row.text for id_, row in transcripts.items()}
    return write_transcripts(out, texts, utterances, seconds, batch_size=batch_size, **settings)


def write_transcripts(
    out: str | os.PathLike, texts: dict[str, str], utterances: list[Utterance], seconds: float, **settings
) -> dict:
    """Write ``out/text``, sorted by id, and ``out/decode.json``.

    Args:
        out: folder to write to.
        texts: ``{utterance id: transcript}``.
        utterances: all that were decoded.
        seconds: time that decoding took.
        settings: further fields of ``decode.json``.

    Returns: the content of ``decode.json``, see ``decode_data_dir``.
    """
    audio_seconds = sum(u.seconds for u in utterances)
    figures = {"seconds": seconds, "audio_seconds": audio_seconds, "rtf": seconds / audio_seconds}
    figures.update(utterances=len(utterances), **settings)
    write_json(Path(out) / "decode.json", figures)
    write_text(Path(out) / "text", "".join(f"{id_} {text}".rstrip() + "\n" for id_, text in sorted(texts.items())))
    return figures
