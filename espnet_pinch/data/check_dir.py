"""Check and complete the output of a recipe's ``local/data.sh``. ``egs/TEMPLATE/local/data.sh`` states the contract."""

import contextlib
import hashlib
import os
import unicodedata
from array import array
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import soundfile

from espnet_pinch.data.audio import FRACTIONS, UNKNOWN, Stream, is_archived, read_archive
from espnet_pinch.data.kaldi_dir import RATE, Utterance, check_fields, iterate_source_dir, write_files
from espnet_pinch.data.problems import Problems
from espnet_pinch.errors import UserError
from espnet_pinch.files import whole_file
from espnet_pinch.progress import progress_bar
from espnet_pinch.unreadable import why_unreadable

S = TypeVar("S")
T = TypeVar("T")
_WIDTHS = {"PCM_S8": 1, "PCM_16": 2, "PCM_24": 3}  # bytes of a sample in FLAC's MD5
ADDED = ("spk2utt", "utt2dur", "utt2num_samples")
AHEAD = 64  # items for each thread that wait for it, or for the item before them


class Lengths:
    """The numbers of samples of sound files that were decoded before, by the hashes of their names: 16 bytes or so each
    in the place of a path.
    """

    def __init__(self) -> None:
        self._known: dict[int, int] = {}

    def __contains__(self, audio: str) -> bool:
        return hash(audio) in self._known

    def __getitem__(self, audio: str) -> int:
        return self._known[hash(audio)]

    def __setitem__(self, audio: str, samples: int) -> None:
        self._known[hash(audio)] = samples


def check_data_dir(
    folder: str | os.PathLike,
    jobs: int = 4,
    known: Lengths | None = None,
    stated: Callable[[str], int | None] = lambda audio: None,
) -> array:
    """Check the data directory of a set, and write the files that follow from it and its audio (``ADDED``).

    Decodes every sound file. Brings transcripts to Unicode's composed form (NFC), so that a letter with an accent is
    the same character everywhere. Utterances are read one after the other; 8 bytes of each stay in memory.

    Args:
        folder: folder with ``wav.scp``, ``text`` and ``utt2spk``.
        jobs: number of threads that decode.
        known: files that were decoded before; gets those of this set.
        stated: the number of samples of an entry of wav.scp that need not be decoded; None for all others.

    Returns: the numbers of samples, in the order of the utterances.

    Raises:
        FileNotFoundError, UserError: the directory breaks the contract. The message names the file. For audio, it names
            the first utterance and the number of the others.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist: local/data.sh must leave it, see egs/TEMPLATE/local/data.sh")
    known = Lengths() if known is None else known
    count, composed = 0, False  # whether NFC changes a transcript
    for u in iterate_source_dir(folder):
        count += 1
        check_fields(u, folder)
        composed |= not unicodedata.is_normalized("NFC", u.text)
    if not count:
        raise UserError(f"{folder} has no utterance")

    def length(u: Utterance) -> int | str:
        samples = known[u.audio] if u.audio in known else stated(u.audio)
        return _length_or_problem(u) if samples is None else samples

    lengths = array("q")
    for u, samples in checked(length, iterate_source_dir(folder), str(folder), jobs, count):
        lengths.append(samples)
        known[u.audio] = samples
    rows = (
        replace(u, text=unicodedata.normalize("NFC", u.text), samples=samples)
        for u, samples in zip(iterate_source_dir(folder), lengths)
    )
    with contextlib.ExitStack() as stack:
        names = (*ADDED, "text") if composed else ADDED
        write_files(rows, {name: stack.enter_context(whole_file(folder / name)) for name in names}, folder)
    return lengths


def _length_or_problem(u: Utterance) -> int | str:
    if u.audio.endswith("|"):
        return f"utterance {u.id}: {u.audio!r} is a command; the recipe runs none, write its output to a file first"
    found = _archived_or_problem(u.audio) if is_archived(u.audio) else samples_or_problem(u.audio)
    if isinstance(found, int):
        return found
    seen_from = "" if os.path.isabs(u.audio) else f" (seen from {os.getcwd()})"
    return f"utterance {u.id}: {u.audio} {found}{seen_from}"


def _archived_or_problem(audio: str) -> int | str:
    """The number of samples of ``file.ark:offset``, or what is wrong with it."""
    try:
        samples, rate = read_archive(audio)
    except (OSError, UserError) as error:
        return f"cannot be used: {error}"
    if samples.dtype == np.int16:  # ESPnet would not scale it to -1..1
        return "holds samples that are no FLAC; give them with --kaldi, which makes them so"
    return format_problem(rate, samples.shape[1] if samples.ndim > 1 else 1) or len(samples) or "holds no audio"


def checked(
    check: Callable[[T], int | str], items: Iterable[T], where: str, jobs: int, total: int | None = None
) -> Iterator[tuple[T, int]]:
    """Check items in threads, with progress. The items are taken as they are needed, and given back one by one.

    Args:
        check: returns a number, or what is wrong with an item.
        where: the items are, for messages.
        jobs: threads.
        total: the number of items, if they are no collection.

    Yields: each item that is right, and its number.

    Raises (at the end):
        UserError: something is wrong with an item.
    """
    problems = Problems(where)
    total = len(items) if isinstance(items, Collection) else total
    with ThreadPoolExecutor(jobs) as pool:
        found = in_turn(pool, lambda item: (item, check(item)), items, AHEAD * jobs)
        for item, result in progress_bar(found, desc=f"checking {Path(where).name}", total=total, unit="files"):
            if isinstance(result, str):
                problems.add(result)
            else:
                yield item, result
    problems.raise_first()


def in_turn(pool: Executor, function: Callable[[S], T], items: Iterable[S], ahead: int) -> Iterator[T]:
    """What ``function`` makes of items, in their order, as ``pool.map``; but no more than ``ahead`` of them wait."""
    waiting: deque[Future[T]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def format_problem(rate: int, channels: int) -> str | None:
    """Why the recipe cannot use audio of this rate in Hz and number of channels; None if it can."""
    if rate != RATE:
        return f"has {rate} Hz; the recipe needs {RATE} Hz, resample the corpus first"
    if channels != 1:
        return f"has {channels} channels; the recipe needs mono"
    return None


def samples_or_problem(audio: str | os.PathLike) -> int | str:
    """Decode a sound file, which shows whether it is cut short or damaged.

    Returns: number of samples, or what is wrong with the file, to follow its name.
    """
    try:
        with Stream(audio) as file:
            if problem := format_problem(file.samplerate, file.channels):
                return problem
            fractions = file.subtype in FRACTIONS
            buffer = np.empty(1 << 16, dtype="<f8" if fractions else "<i4")
            digest = hashlib.md5(usedforsecurity=False)
            flac = file.format == "FLAC" and file.subtype in _WIDTHS
            unused = 4 - _WIDTHS.get(file.subtype, 4)  # libsndfile's samples are left-justified
            frames = 0
            while read := len(file.read(out=buffer)):
                frames += read
                if fractions and not np.isfinite(buffer[:read]).all():
                    return "holds samples that are no numbers"
                if flac:
                    digest.update(buffer[:read].view(np.uint8).reshape(-1, 4)[:, unused:].tobytes())
            if not frames:
                return "holds no audio"
            if file.frames < UNKNOWN and frames != file.frames:
                return f"is cut short: {frames} of its {file.frames} samples can be read"
            if flac and _stated_md5(audio) not in (None, digest.digest()):
                return "is damaged: its samples have another MD5 than it states"
            return frames
    except (soundfile.LibsndfileError, OSError, UnicodeEncodeError) as error:
        return why_unreadable(audio) or f"cannot be read, it is damaged or cut short ({error})"


def _stated_md5(audio: str | os.PathLike) -> bytes | None:
    """The MD5 of the samples that a FLAC file states of itself, which libsndfile does not check; None if it does not.

    RFC 9639, section 8.2: the last 16 bytes of STREAMINFO, which comes first.
    """
    with open(audio, "rb") as file:
        start = file.read(42)
    md5 = start[26:]
    return md5 if start.startswith(b"fLaC") and any(md5) else None
