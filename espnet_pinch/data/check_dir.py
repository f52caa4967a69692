"""Check and complete the output of a recipe's ``local/data.sh``. ``egs/TEMPLATE/local/data.sh`` states the contract."""

import dataclasses
import hashlib
import os
import unicodedata
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import soundfile

from espnet_pinch.data.audio import UNKNOWN, Stream
from espnet_pinch.data.kaldi_dir import RATE, Utterance, check_fields, data_files, read_source_dir
from espnet_pinch.errors import UserError
from espnet_pinch.files import write_text
from espnet_pinch.progress import progress_bar
from espnet_pinch.unreadable import why_unreadable

T = TypeVar("T")
_WIDTHS = {"PCM_S8": 1, "PCM_16": 2, "PCM_24": 3}  # bytes of a sample in FLAC's MD5
ADDED = ("spk2utt", "utt2dur", "utt2num_samples")


def check_data_dir(folder: str | os.PathLike, jobs: int = 4, known: dict[str, int] | None = None) -> list[Utterance]:
    """Check the data directory of a set, and write the files that follow from it and its audio (``ADDED``).

    Decodes every sound file. Brings transcripts to Unicode's composed form (NFC), so that a letter with an accent is
    the same character everywhere.

    Args:
        folder: folder with ``wav.scp``, ``text`` and ``utt2spk``.
        jobs: number of threads that decode.
        known: ``{path: samples}`` of files that were decoded before; gets those of this set.

    Raises:
        FileNotFoundError, UserError: the directory breaks the contract. The message names the file. For audio, it names
            the first utterance and the number of the others.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist: local/data.sh must leave it, see egs/TEMPLATE/local/data.sh")
    read = read_source_dir(folder)
    rows = [dataclasses.replace(u, text=unicodedata.normalize("NFC", u.text)) for u in read]
    composed = rows != read  # whether that has changed any
    if not rows:
        raise UserError(f"{folder} has no utterance")
    for u in rows:
        check_fields(u, folder)
    known = {} if known is None else known
    new = [u for u in rows if u.audio not in known]
    lengths = checked(_length_or_problem, new, str(folder), jobs) if new else []
    known.update((u.audio, samples) for u, samples in zip(new, lengths))
    rows = [dataclasses.replace(u, samples=known[u.audio]) for u in rows]
    for name, lines in data_files(rows).items():
        if name in ADDED or (name == "text" and composed):
            write_text(folder / name, lines)
    return rows


def _length_or_problem(u: Utterance) -> int | str:
    if u.audio.endswith("|"):
        return f"utterance {u.id}: {u.audio!r} is a command; the recipe runs none, write its output to a file first"
    found = samples_or_problem(u.audio)
    if isinstance(found, int):
        return found
    seen_from = "" if os.path.isabs(u.audio) else f" (seen from {os.getcwd()})"
    return f"utterance {u.id}: {u.audio} {found}{seen_from}"


def checked(check: Callable[[T], int | str], items: Collection[T], where: str, jobs: int) -> list[int]:
    """Check items in threads, with progress.

    Args:
        check: returns a number, or what is wrong with an item.
        where: the items are, for messages.
        jobs: threads.

    Returns: the numbers.

    Raises:
        UserError: something is wrong with an item.
    """
    with ThreadPoolExecutor(jobs) as pool:
        found = progress_bar(
            pool.map(check, items), desc=f"checking {Path(where).name}", total=len(items), unit="files"
        )
        numbers, problems = [], []
        for result in found:
            problems.append(result) if isinstance(result, str) else numbers.append(result)
    raise_first(problems, where)
    return numbers


def raise_first(problems: list[str], where: str) -> None:
    """Raise UserError for the first of the problems, if there is one; it says how many more there are."""
    if problems:
        more = f" (and {len(problems) - 1} more in {where})" if len(problems) > 1 else ""
        raise UserError(problems[0] + more)


def header_problem(file: soundfile.SoundFile) -> str | None:
    """Why the recipe cannot use a sound file with this rate and number of channels; None if it can."""
    if file.samplerate != RATE:
        return f"has {file.samplerate} Hz; the recipe needs {RATE} Hz, resample the corpus first"
    if file.channels != 1:
        return f"has {file.channels} channels; the recipe needs mono"
    return None


def samples_or_problem(audio: str | os.PathLike) -> int | str:
    """Decode a sound file, which shows whether it is cut short or damaged.

    Returns: number of samples, or what is wrong with the file, to follow its name.
    """
    try:
        with Stream(audio) as file:
            if problem := header_problem(file):
                return problem
            fractions = file.subtype in ("FLOAT", "DOUBLE")
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
