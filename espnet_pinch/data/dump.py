"""The data that the trainer reads: transcripts in the vocabulary's spelling, utterances of a usable length."""

import contextlib
import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import soundfile

from espnet_pinch.data.archive import Shards, check_folder_name
from espnet_pinch.data.audio import UNKNOWN, is_archived, read_16_bits
from espnet_pinch.data.kaldi_dir import Utterance, write_sorted
from espnet_pinch.data.spelling import Spelling, UnknownCharacters
from espnet_pinch.data.tokens import frames_needed
from espnet_pinch.errors import UserError
from espnet_pinch.files import whole_folder
from espnet_pinch.progress import progress_bar
from espnet_pinch.unreadable import why_unreadable

SHARD = 1 << 30  # bytes of an archive


@dataclasses.dataclass(frozen=True)
class Limits:
    """Which utterances a model can be trained on.

    Attributes:
        min_seconds, max_seconds: bounds of the audio's length.
        frames_of: gives the number of frames that the upstream computes from a number of samples.
        needed: gives the least number of frames that a transcript needs.
        empty: why an utterance without a text is dropped.
    """

    min_seconds: float
    max_seconds: float
    frames_of: Callable[[int], int]
    needed: Callable[[str], int] = frames_needed
    empty: str = "without a character of the vocabulary"

    def reason_to_drop(self, u: Utterance) -> str | None:
        """Why a model cannot or should not be trained on ``u``; None if it can."""
        if not u.text:
            return self.empty
        if u.seconds < self.min_seconds:
            return "too short"
        if u.seconds > self.max_seconds:
            return "too long"
        if self.frames_of(u.samples) < self.needed(u.text):
            return "more tokens than frames"
        return None


def prepare_training_set(
    utterances: Iterable[Utterance],
    spelling: Spelling,
    limits: Limits,
    unknown: UnknownCharacters,
    dropped: Counter[str],
) -> Iterator[Utterance]:
    """The utterances for training; unusable ones are dropped.

    Args:
        utterances: their transcripts are in the vocabulary's spelling.
        dropped: gets the number of dropped ones for each reason.
    """
    return usable((dataclasses.replace(u, text=unknown.apply(u.text, spelling)) for u in utterances), limits, dropped)


def usable(utterances: Iterable[Utterance], limits: Limits, dropped: Counter[str]) -> Iterator[Utterance]:
    """The utterances that a model can be trained on; the others are dropped.

    Args:
        dropped: gets the number of dropped ones for each reason.

    Raises:
        UserError: all are dropped.
    """
    first, left = "", 0
    for u in utterances:
        reason = limits.reason_to_drop(u)
        if reason is None:
            left += 1
            yield u
        else:
            first = first or u.id
            dropped[reason] += 1
    if first and not left:
        why = ", ".join(f"{number:,} {reason}" for reason, number in dropped.items())
        raise UserError(f"no utterance of the set can be used: {why}; the first is {first}")


def check_test_set(utterances: Iterable[Utterance], limits: Limits, name: str) -> Iterator[Utterance]:
    """The utterances of a test set, of which none may be dropped.

    Raises:
        UserError: an utterance is shorter than one frame.
    """
    for u in utterances:
        if limits.frames_of(u.samples) < 1:
            raise UserError(f"{name}: utterance {u.id} has {u.samples} samples, too few for one frame")
        yield u


def pack_audio(utterances: Iterable[Utterance], folder: str | os.PathLike) -> Iterator[Utterance]:
    """Pack the audio of a set as FLAC into archives of ``SHARD`` bytes, ``data_flac.1.ark`` and so on (kaldiio).

    Samples have 16 bits, as in LibriSpeech. Audio that is in an archive already stays there.

    Yields: the utterances, with "data_flac.1.ark:offset" as their audio. The folder has its name after the last.

    Raises:
        UserError: an utterance's audio cannot be read or differs from the data directory (the message names it), or
            ``folder`` has a character that kaldiio cannot take.
    """
    folder = Path(folder).absolute()
    check_folder_name(folder, "give another --dumpdir")
    clipped = 0
    with whole_folder(folder) as new, Shards(new, SHARD) as shards:
        for u in progress_bar(utterances, desc=f"packing {folder.name}", unit="utts"):
            if not is_archived(u.audio):
                samples, rate, over = _read(u)
                clipped += over
                name, offset = shards.append(u.id, samples, rate)
                u = dataclasses.replace(u, audio=f"{folder / name}:{offset}")
            yield u
    _say_clipped(folder.name, clipped)


def _read(u: Utterance):
    """Samples, rate and clipped samples of an utterance; raises UserError if they differ from the data directory."""
    try:
        samples, rate, clipped = read_16_bits(u.audio)
    except soundfile.LibsndfileError as error:
        raise UserError(
            f"utterance {u.id}: {u.audio} {why_unreadable(u.audio) or f'cannot be read: {error}'}"
        ) from None
    if samples.shape != (u.samples,) or rate != u.rate:
        raise UserError(f"utterance {u.id}: {u.audio} has changed since stage 1; run it again (--stage 1)")
    return samples, rate, clipped


def _say_clipped(name: str, samples: int) -> None:
    if samples:
        print(f"{name}: {samples:,} samples were too large for 16 bits: clipped", flush=True)


def _states_length(audio: str) -> bool:
    try:
        return soundfile.info(audio).frames < UNKNOWN
    except soundfile.LibsndfileError:
        return True  # an archive, or a damaged file, which a later reader reports


def spelled(utterances: Iterable[Utterance], spelling: Spelling) -> Iterator[Utterance]:
    """The utterances with their transcripts in a vocabulary's spelling."""
    return (dataclasses.replace(u, text=spelling(u.text)) for u in utterances)


def write_dump(folder: str | os.PathLike, utterances: Iterable[Utterance], packed: str | os.PathLike | None) -> int:
    """Write the data directory of a set, one utterance after the other.

    Args:
        utterances: in the order of their ids.
        packed: folder for archives of the audio. None leaves the audio where it is, except for files that do not
            state their length: ESPnet cannot read them, so ``FOLDER.audio`` gets copies that state it.

    Returns: the number of utterances.

    Raises:
        UserError: as in ``pack_audio``.
    """
    return write_sorted(folder, pack_audio(utterances, packed) if packed else _with_lengths(utterances, Path(folder)))


def _with_lengths(utterances: Iterable[Utterance], folder: Path) -> Iterator[Utterance]:
    """The utterances, with copies in the place of sound files that do not state their length."""
    own = folder.absolute().with_name(f"{folder.name}.audio")
    count = clipped = 0
    with contextlib.ExitStack() as stack:
        new = None
        for u in utterances:
            if not _states_length(u.audio):
                new = new or stack.enter_context(whole_folder(own))
                samples, rate, over = _read(u)
                clipped += over
                count += 1
                soundfile.write(new / f"{count}.flac", samples, rate, subtype="PCM_16")
                u = dataclasses.replace(u, audio=str(own / f"{count}.flac"))
            yield u
    if count:
        print(f"{folder.name}: {count} files do not state their length; copies that do are in {own}")
    _say_clipped(folder.name, clipped)
