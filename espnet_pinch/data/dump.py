"""The data that the trainer reads: transcripts in the vocabulary's spelling, utterances of a usable length."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import kaldiio
import soundfile

from espnet_pinch.data.audio import UNKNOWN, read_file
from espnet_pinch.data.kaldi_dir import Utterance, write_data_dir
from espnet_pinch.data.spelling import Spelling, UnknownCharacters
from espnet_pinch.data.tokens import frames_needed
from espnet_pinch.errors import UserError
from espnet_pinch.files import whole_folder
from espnet_pinch.progress import progress_bar
from espnet_pinch.unreadable import why_unreadable


@dataclasses.dataclass(frozen=True)
class Limits:
    """Which utterances a model can be trained on.

    Attributes:
        min_seconds, max_seconds: bounds of the audio's length.
        frames_of: gives the number of frames that the upstream computes from a number of samples.
    """

    min_seconds: float
    max_seconds: float
    frames_of: Callable[[int], int]

    def reason_to_drop(self, u: Utterance) -> str | None:
        """Why CTC cannot or should not be trained on ``u``; None if it can."""
        if not u.text:
            return "without a character of the vocabulary"
        if u.seconds < self.min_seconds:
            return "too short"
        if u.seconds > self.max_seconds:
            return "too long"
        if self.frames_of(u.samples) < frames_needed(u.text):
            return "more characters than frames"
        return None


def prepare_training_set(
    utterances: list[Utterance], spelling: Spelling, limits: Limits, unknown: UnknownCharacters
) -> tuple[list[Utterance], dict[str, int]]:
    """The utterances for training; unusable ones are dropped.

    Args:
        utterances: their transcripts are in the vocabulary's spelling.

    Returns: the utterances, and the number of dropped ones for each reason.
    """
    dropped: dict[str, int] = {}
    kept = []
    for u in utterances:
        u = dataclasses.replace(u, text=unknown.apply(u.text, spelling))
        reason = limits.reason_to_drop(u)
        if reason is None:
            kept.append(u)
        else:
            dropped[reason] = dropped.get(reason, 0) + 1
    return kept, dropped


def check_test_set(utterances: list[Utterance], limits: Limits, name: str) -> None:
    """Raise UserError if an utterance is shorter than one frame: no utterance of a test set may be dropped."""
    for u in utterances:
        if limits.frames_of(u.samples) < 1:
            raise UserError(f"{name}: utterance {u.id} has {u.samples} samples, too few for one frame")


def pack_audio(utterances: list[Utterance], folder: str | os.PathLike) -> list[Utterance]:
    """Pack all audio of a set as FLAC into one large file, ``data_flac.ark`` (kaldiio).

    Samples have 16 bits, as in LibriSpeech.

    Returns: the utterances, with "data_flac.ark:offset" as their audio.

    Raises:
        UserError: an utterance's audio cannot be read or differs from the data directory (the message names it), or
            ``folder`` has a character that kaldiio cannot take.
    """
    folder = Path(folder).absolute()
    if set(str(folder)) & set("[]|"):
        raise UserError(f"{folder}: kaldiio gives [ ] and | in a path another meaning; give another --dumpdir")
    flac = {"write_function": "soundfile", "write_kwargs": {"format": "flac", "subtype": "PCM_16"}}
    packed = []
    with whole_folder(folder) as new, open(new / "data_flac.ark", "wb") as ark:
        for u in progress_bar(utterances, desc=f"packing {folder.name}", unit="utts"):
            samples, rate = _read(u)
            offset = ark.tell() + len(f"{u.id} ".encode())  # after the key
            kaldiio.save_ark(ark, {u.id: (rate, samples)}, **flac)
            packed.append(dataclasses.replace(u, audio=f"{folder / 'data_flac.ark'}:{offset}"))
    return packed


def _read(u: Utterance):
    """Samples and rate of an utterance; raises UserError if they differ from the data directory."""
    try:
        samples, rate = read_file(u.audio, "int16")
    except soundfile.LibsndfileError as error:
        raise UserError(
            f"utterance {u.id}: {u.audio} {why_unreadable(u.audio) or f'cannot be read: {error}'}"
        ) from None
    if samples.shape != (u.samples,) or rate != u.rate:
        raise UserError(f"utterance {u.id}: {u.audio} has changed since stage 1; run it again (--stage 1)")
    return samples, rate


def _states_length(audio: str) -> bool:
    try:
        return soundfile.info(audio).frames < UNKNOWN
    except soundfile.LibsndfileError:
        return True  # an archive, or a damaged file, which a later reader reports


def spelled(utterances: list[Utterance], spelling: Spelling) -> list[Utterance]:
    """The utterances with their transcripts in a vocabulary's spelling."""
    return [dataclasses.replace(u, text=spelling(u.text)) for u in utterances]


def write_dump(folder: str | os.PathLike, utterances: list[Utterance], packed: str | os.PathLike | None) -> None:
    """Write the data directory of a set.

    Args:
        packed: folder for an archive of the audio. None leaves the audio where it is, except for files that do not
            state their length: ESPnet cannot read them, so ``FOLDER.audio`` gets copies that state it.

    Raises:
        UserError: as in ``pack_audio``.
    """
    if packed:
        write_data_dir(folder, pack_audio(utterances, packed))
        return
    copies = [u for u in utterances if not _states_length(u.audio)]
    own = Path(folder).absolute().with_name(f"{Path(folder).name}.audio")
    if copies:
        with whole_folder(own) as new:
            for u in copies:
                samples, rate = _read(u)
                soundfile.write(new / f"{u.id}.flac", samples, rate, subtype="PCM_16")
        print(f"{Path(folder).name}: {len(copies)} files do not state their length; copies that do are in {own}")
    paths = {u.id: str(own / f"{u.id}.flac") for u in copies}
    write_data_dir(folder, [dataclasses.replace(u, audio=paths.get(u.id, u.audio)) for u in utterances])
