"""Check and complete the output of a recipe's ``local/data.sh``. ``egs/TEMPLATE/local/data.sh`` states the contract."""

import dataclasses
import os
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import soundfile

from espnet_pinch.data.audio import UNKNOWN, Stream, read_file
from espnet_pinch.data.kaldi_dir import RATE, Utterance, check_fields, data_files, read_tables
from espnet_pinch.errors import UserError
from espnet_pinch.files import write_text
from espnet_pinch.progress import progress_bar
from espnet_pinch.unreadable import why_unreadable

T = TypeVar("T")
ADDED = ("spk2utt", "utt2dur", "utt2num_samples")


def check_data_dir(folder: str | os.PathLike, jobs: int = 4) -> list[Utterance]:
    """Check the data directory of a set, and write the files that follow from it and its audio (``ADDED``).

    Opens every sound file. Decodes the few that do not state their length.

    Args:
        folder: folder with ``wav.scp``, ``text`` and ``utt2spk``.
        jobs: number of threads that open sound files.

    Raises:
        FileNotFoundError, UserError: the directory breaks the contract. The message names the file. For audio, it names
            the first utterance and the number of the others.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist: local/data.sh must leave it, see egs/TEMPLATE/local/data.sh")
    if (folder / "segments").exists():
        raise UserError(f"{folder}/segments: the recipe cuts no audio; give each utterance a sound file of its own")
    tables = read_tables(folder, ("wav.scp", "text", "utt2spk"))
    audio, text, speaker = tables.values()
    rows = [Utterance(id_, audio[id_], text[id_], speaker[id_], 0) for id_ in audio]
    if not rows:
        raise UserError(f"{folder} has no utterance")
    for u in rows:
        check_fields(u, folder)
    lengths = checked(_samples_or_problem, rows, str(folder), jobs)
    rows = [dataclasses.replace(u, samples=samples) for u, samples in zip(rows, lengths)]
    for name, lines in data_files(rows).items():
        if name in ADDED:
            write_text(folder / name, lines)
    return rows


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


def _samples_or_problem(u: Utterance) -> int | str:
    """Number of samples, or what is wrong with the audio."""
    if u.audio.endswith("|"):
        return f"utterance {u.id}: {u.audio!r} is a command; the recipe runs none, write its output to a file first"
    try:
        with Stream(u.audio) as file:
            samples, problem = file.frames, header_problem(file)
        if problem:
            return f"utterance {u.id}: {u.audio} {problem}"
        if samples >= UNKNOWN:
            samples = len(read_file(u.audio, "int16")[0])
        return samples or f"utterance {u.id}: {u.audio} holds no audio"
    except (soundfile.LibsndfileError, OSError) as error:
        return f"utterance {u.id}: {u.audio} {why_unreadable(u.audio, whole=False) or f'cannot be read: {error}'}"
