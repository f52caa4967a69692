"""Batched CTC greedy decoding of data directories."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from espnet_pinch.asr.greedy import ctc_greedy, to_text
from espnet_pinch.asr.recogniser import Recogniser, as_recogniser
from espnet_pinch.data.audio import read_audio
from espnet_pinch.data.kaldi_dir import Utterance, read_data_dir
from espnet_pinch.files import write_json, write_text
from espnet_pinch.progress import progress_bar

if TYPE_CHECKING:
    from espnet_pinch.asr.model import PruningASRModel


def batches(utterances: list[Utterance], batch_size: int) -> Iterator[list[Utterance]]:
    """Batches of utterances of similar length, the longest first: if memory is too small, the first batch fails."""
    rows = sorted(utterances, key=lambda u: (-u.samples, u.id))
    return (rows[i : i + batch_size] for i in range(0, len(rows), batch_size))


def transcribe(model: PruningASRModel | Recogniser, audio: list[torch.Tensor], device: str = "cpu") -> list[str]:
    """Greedy transcripts of one batch.

    Args:
        model: in eval mode, on ``device``; or what ``espnet_pinch.load(path, runtime)`` returns.
        audio: each (samples,), at the model's sample rate (usually 16 kHz).

    Returns: a transcript of each.
    """
    recogniser = as_recogniser(model, device)
    logits, frames = recogniser(audio)
    ids = ctc_greedy(logits.argmax(-1), frames, recogniser.blank_id)
    return [to_text(row, recogniser.token_list) for row in ids]


def decode_data_dir(
    model: PruningASRModel | Recogniser,
    data: str | os.PathLike,
    out: str | os.PathLike,
    batch_size: int = 8,
    device: str = "cpu",
) -> dict:
    """Decode a data directory: write the transcripts to ``out/text`` and the times to ``out/decode.json``.

    Returns: the content of ``decode.json``: ``seconds`` of decoding, ``audio_seconds``, their ratio ``rtf`` (real-time
        factor), the number of ``utterances``, and ``batch_size``.
    """
    utterances = read_data_dir(data)
    texts: dict[str, str] = {}
    start = time.perf_counter()
    progress = progress_bar(total=len(utterances), desc=f"decoding {Path(data).name}", unit="utts")
    with progress:
        for batch in batches(utterances, batch_size):
            audio = [torch.from_numpy(read_audio(u.audio)) for u in batch]
            texts.update(zip((u.id for u in batch), transcribe(model, audio, device)))
            progress.update(len(batch))
    return write_transcripts(out, texts, utterances, time.perf_counter() - start, batch_size=batch_size)


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
