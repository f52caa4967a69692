"""What the trainer reads: transcripts in the vocabulary's case, training utterances of a usable length."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import kaldiio
import soundfile

from espnet_pinch.data.kaldi_dir import Utterance, write_data_dir
from espnet_pinch.data.tokens import check_characters, frames_needed, frames_of, match_case
from espnet_pinch.files import whole_folder
from espnet_pinch.progress import progress_bar
from espnet_pinch.unreadable import why_unreadable


@dataclasses.dataclass(frozen=True)
class Limits:
    """Which utterances a model can be trained on.

    Attributes:
        min_seconds, max_seconds: bounds of the audio's length.
        kernels, strides: of the upstream's convolutions, to count frames.
    """

    min_seconds: float
    max_seconds: float
    kernels: Sequence[int]
    strides: Sequence[int]

    def reason_to_drop(self, u: Utterance) -> str | None:
        """Why CTC cannot or should not be trained on ``u``; None if it can."""
        if u.seconds < self.min_seconds:
            return "too short"
        if u.seconds > self.max_seconds:
            return "too long"
        if frames_of(u.samples, self.kernels, self.strides) < frames_needed(u.text):
            return "more characters than frames"
        return None


def prepare_set(
    utterances: list[Utterance], tokens: Sequence[str], limits: Limits, train: bool, name: str
) -> tuple[list[Utterance], dict[str, int]]:
    """Utterances with their transcripts in the vocabulary's case; unusable ones are dropped from training sets alone.

    Returns: the utterances, and how many were dropped for which reason.

    Raises:
        ValueError: a character that the vocabulary lacks; a test utterance shorter than one frame.
    """
    rows = [dataclasses.replace(u, text=match_case(u.text, tokens)) for u in utterances]
    check_characters(rows, tokens, name)
    if not train:
        for u in rows:
            if frames_of(u.samples, limits.kernels, limits.strides) < 1:
                raise ValueError(f"{name}: utterance {u.id} has {u.samples} samples, too few for one frame")
        return rows, {}
    dropped: dict[str, int] = {}
    kept = []
    for u in rows:
        reason = limits.reason_to_drop(u)
        if reason is None:
            kept.append(u)
        else:
            dropped[reason] = dropped.get(reason, 0) + 1
    return kept, dropped


def pack_audio(utterances: list[Utterance], folder: str | os.PathLike) -> list[Utterance]:
    """Put all audio of a set into one ``data_flac.ark`` (kaldiio), FLAC inside; one big file instead of many small.

    Samples are kept to 16 bits, LibriSpeech's own.

    Returns: the utterances, their audio now "data_flac.ark:offset".

    Raises:
        ValueError: an utterance's audio is not what the data directory says; the message names it.
    """
    folder = Path(folder).absolute()
    if set(str(folder)) & set("[]|"):
        raise ValueError(f"{folder}: kaldiio takes [ ] and | in a path for something else; give another --dumpdir")
    flac = {"write_function": "soundfile", "write_kwargs": {"format": "flac", "subtype": "PCM_16"}}
    packed = []
    with whole_folder(folder) as new, open(new / "data_flac.ark", "wb") as ark:
        for u in progress_bar(utterances, desc=f"packing {folder.name}", unit="utts"):
            samples, rate = _read(u)
            offset = ark.tell() + len(f"{u.id} ".encode())  # behind the key
            kaldiio.save_ark(ark, {u.id: (rate, samples)}, **flac)
            packed.append(dataclasses.replace(u, audio=f"{folder / 'data_flac.ark'}:{offset}"))
    return packed


def _read(u: Utterance):
    """Samples and rate of an utterance; ValueError where they are not what the data directory says."""
    try:
        samples, rate = soundfile.read(u.audio, dtype="int16")
    except soundfile.LibsndfileError as error:
        raise ValueError(
            f"utterance {u.id}: {u.audio} {why_unreadable(u.audio) or f'cannot be read: {error}'}"
        ) from None
    if samples.shape != (u.samples,) or rate != u.rate:
        raise ValueError(f"utterance {u.id}: {u.audio} has changed since stage 1; run it again (--stage 1)")
    return samples, rate


def write_shapes(utterances: list[Utterance], folder: str | os.PathLike) -> None:
    """``speech_shape`` (samples) and ``text_shape.char`` (tokens), by which ESPnet forms batches.

    ESPnet's own collect-stats reads every audio file for the same figures.
    """
    with whole_folder(folder) as new:
        for name, lengths in (
            ("speech_shape", ((u.id, u.samples) for u in utterances)),
            ("text_shape.char", ((u.id, len(u.text)) for u in utterances)),
        ):
            (new / name).write_text("".join(f"{id_} {n}\n" for id_, n in lengths), encoding="utf-8")


def write_dump(folder: str | os.PathLike, utterances: list[Utterance], packed: str | os.PathLike | None) -> None:
    """Write the data directory of a set; ``packed`` is the folder for an archive of its audio, or None."""
    write_data_dir(folder, pack_audio(utterances, packed) if packed else utterances)
