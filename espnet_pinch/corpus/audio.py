"""The audio of a corpus as the recipe reads it: one channel, 16 kHz, one entry of wav.scp for each utterance.

A sound file that is so already, and is one utterance, stays where it is. All other audio goes into archives of 16-bit
FLAC, a *shard* for some hundred or thousand recordings. A shard's name is a hash of what it is made of, and its list is
written last: after a kill the shards that are there are not made again.
"""

import contextlib
import hashlib
import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from espnet_pinch.corpus.store import ALL, WHOLE
from espnet_pinch.corpus.way import Way
from espnet_pinch.data.archive import append, check_folder_name
from espnet_pinch.data.audio import as_float, is_archived, read_archive, to_16_bits
from espnet_pinch.data.check_dir import in_turn
from espnet_pinch.data.kaldi_dir import RATE
from espnet_pinch.errors import UserError, one_line
from espnet_pinch.files import read_json, whole_file, write_json
from espnet_pinch.progress import progress_bar
from espnet_pinch.sound.read import open_sound, plain_samples
from espnet_pinch.sound.resample import resample
from espnet_pinch.unreadable import reading_reason

VERSION = 1  # of what is written; with another one all shards are made again
MEAN, LARGEST = 256, 4096  # recordings of a shard on average, in a small corpus and in a large one
SHARDS = 64  # number of shards that a shard grows for; then the open files of a trainer are few
MOST = 4  # times as many utterances end a shard in any case
OVERSHOOT = 0.5  # seconds that an end may lie behind the end of the audio: it is then the audio's end


class Cut(NamedTuple):
    """The part of a sound file that an utterance is; ``WHOLE`` and ``ALL`` stand for no end and no channel."""

    audio: str
    start: float
    end: float
    channel: int


class Recording(NamedTuple):
    """A sound file and what is cut from it, in the order of the starts."""

    audio: str
    cuts: list[Cut]


@dataclass
class Made:
    """What has become of the cuts of a shard.

    Attributes:
        entries: for each cut its entry of wav.scp and its number of samples.
        problems: what is wrong with sound files, each with its name.
        kept: cuts that are sound files as they are.
        shortened: cuts whose end was behind the audio's.
        clipped: samples that were over the largest number of 16 bits.
    """

    entries: list[tuple[Cut, str, int]] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    kept: int = 0
    shortened: int = 0
    clipped: int = 0


def make_entries(cuts: Iterable[Cut], folder: Path, way: Way, jobs: int, total: int) -> Iterator[Made]:
    """Make the audio of all cuts, in threads, with progress; what was made before is not made again.

    Args:
        cuts: each once, in the order of their fields.
        folder: gets the archives; those that belong to no cut are removed at the end.
        way: in, that the cuts came by.
        total: number of cuts.

    Raises:
        UserError: the path of the folder has a character that archives cannot have.
        OSError: the disk is full.
    """
    folder = folder.absolute()
    check_folder_name(folder, "move the recipe")
    names = set()
    with ThreadPoolExecutor(jobs) as pool, progress_bar(desc="audio", total=total, unit="utts") as bar:
        for recordings, name, made in in_turn(
            pool, lambda r: _shard(r, folder, way), _shards(cuts, _mean(total)), 2 * jobs
        ):
            names.add(name)
            bar.update(sum(len(recording.cuts) for recording in recordings))
            yield made
    for path in folder.glob("*"):
        if path.stem not in names:
            path.unlink()


def _mean(total: int) -> int:
    """The number of recordings of a shard on average. It doubles as the corpus grows, so that it seldom changes."""
    mean = MEAN
    while mean < LARGEST and total > mean * SHARDS:
        mean *= 2
    return mean


def _shards(cuts: Iterable[Cut], mean: int) -> Iterator[list[Recording]]:
    """Groups of recordings. A recording whose name's hash says so ends its group, so that one that is added to the
    corpus changes one group alone.
    """
    group: list[Recording] = []
    count = 0
    for audio, of_it in itertools.groupby(cuts, key=lambda cut: cut.audio):
        group.append(Recording(audio, list(of_it)))
        ends = int.from_bytes(hashlib.sha256(audio.encode()).digest()[:4]) % mean == 0
        count += len(group[-1].cuts)
        if ends or count >= MOST * mean:
            yield group
            group, count = [], 0
    if group:
        yield group


def _name(recordings: list[Recording], way: Way) -> str:
    """A hash of what a shard is made of: cuts, and sizes and times of files."""
    digest = hashlib.sha256(b"%d" % VERSION)
    for recording in recordings:
        with contextlib.suppress(OSError):
            status = os.stat(way.file_of(recording.audio))
            digest.update(b"%d %d" % (status.st_size, status.st_mtime_ns))
        digest.update(repr([tuple(cut) for cut in recording.cuts]).encode())
    return digest.hexdigest()[:24]


def _shard(recordings: list[Recording], folder: Path, way: Way) -> tuple[list[Recording], str, Made]:
    """Make a shard, unless it is there. ``NAME.json`` lists what is in ``NAME.ark``, and is written after it.

    Returns: the recordings, NAME, and what has become of them.
    """
    name = _name(recordings, way)
    listed, archive = folder / f"{name}.json", folder / f"{name}.ark"
    if listed.is_file():
        made = _read(listed, archive)
        if made.kept == len(made.entries) or archive.is_file():
            return recordings, name, made
    made, places = Made(), list[tuple[int | None, int]]()
    with whole_file(archive) as new:
        with open(new, "wb") as file:
            for recording in recordings:
                writing = False  # what fails then is no fault of the sound file
                try:
                    for cut, samples, shortened in _cut(recording, way):
                        if isinstance(samples, int):
                            made.kept += 1
                            made.entries.append((cut, cut.audio, samples))
                            places.append((None, samples))
                        else:
                            whole, clipped = to_16_bits(samples)
                            writing = True
                            offset = append(file, f"{len(places)}", whole, RATE)
                            writing = False
                            made.clipped += clipped
                            made.shortened += shortened
                            made.entries.append((cut, f"{archive}:{offset}", len(whole)))
                            places.append((offset, len(whole)))
                except (OSError, UserError) as error:
                    if writing:
                        raise
                    made.problems.append((recording.audio, one_line(error)))
    if made.problems or made.kept == len(made.entries):
        archive.unlink()  # not whole, or empty
    if not made.problems:
        cuts = [list(cut) for cut, _, _ in made.entries]
        write_json(listed, {"cuts": cuts, "places": places, "clipped": made.clipped, "shortened": made.shortened})
    return recordings, name, made


def _read(listed: Path, archive: Path) -> Made:
    """What was made of a shard before."""
    found = read_json(listed)
    made = Made(clipped=found["clipped"], shortened=found["shortened"])
    for cut, (offset, samples) in zip(found["cuts"], found["places"]):
        cut = Cut(*cut)
        made.kept += offset is None
        made.entries.append((cut, cut.audio if offset is None else f"{archive}:{offset}", samples))
    return made


def _cut(recording: Recording, way: Way) -> Iterator[tuple[Cut, np.ndarray | int, bool]]:
    """Each cut with its samples at 16 kHz, and whether it was shortened; or with their number, if the file is it.

    Raises:
        OSError, UserError: the file cannot be read, or a cut lies behind its end.
    """
    audio, cuts = recording
    plain = None if is_archived(audio) or way.file_of(audio) != audio else plain_samples(audio, RATE)
    left = []
    for cut in cuts:
        if plain and _is_whole(cut, plain):
            yield cut, plain, False
        else:
            left.append(cut)
    by_channel = itertools.groupby(sorted(left, key=lambda cut: (cut.channel, *cut)), key=lambda cut: cut.channel)
    for channel, of_it in by_channel:
        with _opened(audio, None if channel == ALL else channel, way) as (rate, blocks):
            for cut, samples, shortened in _pieces(list(of_it), rate, blocks):
                if not len(samples):
                    raise UserError(f"{audio}: there is no sample between {cut.start:g} and {cut.end:g} s")
                yield cut, resample(samples, rate, RATE), shortened


def _is_whole(cut: Cut, samples: int) -> bool:
    return cut.start == 0 and cut.channel in (ALL, 0) and (cut.end == WHOLE or abs(cut.end * RATE - samples) < 1)


@contextlib.contextmanager
def _opened(audio: str, channel: int | None, way: Way) -> Iterator[tuple[int, Iterator[np.ndarray]]]:
    """Rate in Hz and blocks of samples of one channel, of a sound file or of ``file.ark:offset``."""
    if is_archived(audio):
        samples, rate = read_archive(audio)
        samples = as_float(samples)
        channels = samples.reshape(len(samples), -1)
        if channel is not None and channel >= channels.shape[1]:
            raise UserError(f"{audio} has {channels.shape[1]} channels, and channel {channel} (from 0) is asked for")
        yield rate, iter([channels.mean(1) if channel is None else channels[:, channel]])
        return
    with way.sound_file(audio) as path:
        try:
            with open_sound(path, RATE, channel) as opened:
                yield opened
        except (OSError, UserError) as error:
            raise type(error)(str(error).replace(path, audio)) from None


def _pieces(cuts: list[Cut], rate: int, blocks: Iterable[np.ndarray]) -> Iterator[tuple[Cut, np.ndarray, bool]]:
    """Cut pieces, which may overlap, from blocks. A block is in memory as long as a piece that has begun needs it.

    Args:
        cuts: in the order of their starts.
        rate: Hz of the blocks.
    """
    waiting = deque((cut, round(cut.start * rate), None if cut.end == WHOLE else round(cut.end * rate)) for cut in cuts)
    begun: list[tuple[Cut, int, int | None, list[np.ndarray]]] = []
    at = 0
    for block in blocks:
        after = at + len(block)
        while waiting and waiting[0][1] < after:
            cut, start, end = waiting.popleft()
            begun.append((cut, start, end, []))
        for _, start, end, parts in begun:
            parts.append(block[max(0, start - at) : None if end is None else max(0, end - at)])
        for cut, _, end, parts in begun:
            if end is not None and end <= after:
                yield cut, np.concatenate(parts), False
        begun = [piece for piece in begun if piece[2] is None or piece[2] > after]
        at = after
    length = at / rate
    if not at:
        raise UserError(f"{cuts[0].audio}: holds no audio")
    if waiting:
        raise UserError(f"{cuts[0].audio} is {length:.3f} s long; no utterance can begin at {waiting[0][0].start:g} s")
    for cut, _, end, parts in begun:
        over = 0.0 if end is None else (end - at) / rate
        if over > OVERSHOOT:
            raise UserError(f"{cut.audio} is {length:.3f} s long; no utterance can end at {cut.end:g} s")
        yield cut, np.concatenate(parts), over * rate > 1


def missing(audio: Iterable[str], way: Way) -> Iterator[tuple[str, str]]:
    """Audio whose file is not there, and what is wrong with it."""
    for one in audio:
        file = way.file_of(one)
        try:
            os.stat(file)
        except OSError as error:
            yield one, f"{file} {reading_reason(error, file)}"
