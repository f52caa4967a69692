"""What the trainer reads: transcripts in the vocabulary's case, training utterances of a usable length."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import kaldiio
import soundfile

from espnet_pinch.data.kaldi_dir import Utterance, write_data_dir
from espnet_pinch.data.tokens import check_characters, frames_needed, frames_of, match_case
from espnet_pinch.progress import progress_bar


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

    Returns: the utterances, their audio now "data_flac.ark:offset".
    """
    folder = Path(folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    ark, scp = folder / "data_flac.ark", folder / "data_flac.scp"
    for path in (ark, scp):
        path.unlink(missing_ok=True)
    flac = {"write_function": "soundfile", "write_kwargs": {"format": "flac", "subtype": "PCM_16"}}
    for u in progress_bar(utterances, desc=f"packing {folder.name}", unit=" utts"):
        samples, rate = soundfile.read(u.audio, dtype="int16")
        kaldiio.save_ark(str(ark), {u.id: (rate, samples)}, scp=str(scp), append=True, **flac)
    entries = dict(line.split(maxsplit=1) for line in scp.read_text(encoding="utf-8").splitlines())
    return [dataclasses.replace(u, audio=entries[u.id]) for u in utterances]


def write_shapes(utterances: list[Utterance], folder: str | os.PathLike) -> None:
    """``speech_shape`` (samples) and ``text_shape.char`` (tokens), by which ESPnet forms batches.

    ESPnet's own collect-stats reads every audio file for the same figures.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, lengths in (
        ("speech_shape", ((u.id, u.samples) for u in utterances)),
        ("text_shape.char", ((u.id, len(u.text)) for u in utterances)),
    ):
        (folder / name).write_text("".join(f"{id_} {n}\n" for id_, n in lengths), encoding="utf-8")


def write_dump(folder: str | os.PathLike, utterances: list[Utterance], packed: str | os.PathLike | None) -> None:
    """Write the data directory of a set; ``packed`` is the folder for an archive of its audio, or None."""
    write_data_dir(folder, pack_audio(utterances, packed) if packed else utterances)
