"""Align a transcript to a sound file of any sample rate, format and length."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from espnet_pinch.asr.decode import transcript_of
from espnet_pinch.asr.forced import align_tokens, ids_of
from espnet_pinch.asr.recogniser import Recogniser, as_recogniser
from espnet_pinch.errors import UserError
from espnet_pinch.export.long_audio import read_frames
from espnet_pinch.transcript.words import Transcript

if TYPE_CHECKING:
    from espnet_pinch.asr.pruned import PrunedModel


def align_file(
    model: PrunedModel | Recogniser,
    path: str | os.PathLike,
    text: str,
    chunk: int = 30,
    stride: int = 5,
    device: str = "cpu",
    advance: Callable[[float], None] = lambda seconds: None,
) -> Transcript:
    """When each word of a transcript is said in a sound file.

    Args:
        model, device: as ``transcribe_file``.
        path, chunk, stride: as ``read_chunks``.
        text: what is said, in any case and form of accented letters. The words of the result are spelled as here.
        advance: called after every chunk with the number of seconds that it has added.

    Raises:
        OSError, UserError: as ``read_frames``; or the text has no word, has characters that the model lacks, or does
            not fit into the audio.
    """
    words = text.split()
    if not words:
        raise UserError(f"{path}: the text has no word")
    recogniser = as_recogniser(model, device)
    ids = ids_of(" ".join(words), recogniser.token_list, recogniser.subwords)
    rows, times, seconds = [], [], 0.0
    for log_probs, begins, new in read_frames(recogniser, path, chunk, stride):
        rows.append(log_probs)
        times.append(begins)
        seconds += new
        advance(new)
    try:
        spans = align_tokens(ids, torch.cat(rows), recogniser.blank_id)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    found = transcript_of(str(path), spans, recogniser, np.concatenate(times), seconds)
    if len(found.words) != len(words):  # the vocabulary has no space
        return found
    spelled = tuple(dataclasses.replace(word, text=own) for word, own in zip(found.words, words))
    return dataclasses.replace(found, text=" ".join(words), words=spelled)
