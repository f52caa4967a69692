"""Kaldi data directories: ``wav.scp text utt2spk spk2utt utt2dur utt2num_samples``, sorted as LC_ALL=C sorts."""

import dataclasses
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from espnet_pinch.files import whole_folder


@dataclasses.dataclass(frozen=True)
class Utterance:
    """One line of each file of a data directory.

    Attributes:
        id: utterance id; starts with the speaker, so that both sort alike.
        audio: path of the sound file.
        text: transcript, words separated by one space.
        speaker: LibriSpeech's reader-chapter.
        samples: length of the audio.
        rate: Hz.
    """

    id: str
    audio: str
    text: str
    speaker: str
    samples: int
    rate: int = 16000

    @property
    def seconds(self) -> float:
        return self.samples / self.rate


def write_data_dir(folder: str | os.PathLike, utterances: Iterable[Utterance]) -> None:
    """Write a data directory; it takes its name, and the place of an older one, when it is whole.

    Raises:
        ValueError: no utterance, or the same id twice.
    """
    folder = Path(folder)
    rows = sorted(utterances, key=lambda u: u.id.encode())
    if not rows:
        raise ValueError(f"no utterance left for {folder}")
    for first, second in zip(rows, rows[1:]):
        if first.id == second.id:
            raise ValueError(f"{folder}: utterance {first.id} is there twice")
    by_speaker = defaultdict(list)
    for u in rows:
        by_speaker[u.speaker].append(u.id)
    files = {
        "wav.scp": (f"{u.id} {u.audio}" for u in rows),
        "text": (f"{u.id} {u.text}" for u in rows),
        "utt2spk": (f"{u.id} {u.speaker}" for u in rows),
        "spk2utt": (f"{s} {' '.join(ids)}" for s, ids in sorted(by_speaker.items(), key=lambda i: i[0].encode())),
        "utt2dur": (f"{u.id} {u.seconds:.6f}" for u in rows),
        "utt2num_samples": (f"{u.id} {u.samples}" for u in rows),
    }
    with whole_folder(folder) as new:
        for name, lines in files.items():
            (new / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_table(path: str | os.PathLike) -> dict[str, str]:
    """``{first field: rest of the line}`` of a text file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not UTF-8, an empty line, or a key twice.
    """
    table = {}
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from None
    if lines and not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, 1):
        key, _, rest = line.strip().partition(" ")
        if not key:
            raise ValueError(f"{path}, line {number} is empty")
        if key in table:
            raise ValueError(f"{path}, line {number}: {key} is there twice")
        table[key] = rest.strip()
    return table


def read_data_dir(folder: str | os.PathLike) -> list[Utterance]:
    """The utterances of a data directory, checked: every file there, the same ids in the same order in each.

    Raises:
        FileNotFoundError, ValueError: the directory is not whole; the message names the file and the id.
    """
    folder = Path(folder)
    names = ("wav.scp", "text", "utt2spk", "utt2num_samples", "utt2dur")
    tables = {name: read_table(folder / name) for name in names}
    ids = list(tables["wav.scp"])
    for name, table in tables.items():
        if list(table) != ids:
            odd = sorted(set(table) ^ set(ids))
            raise ValueError(f"{folder}/{name} and wav.scp differ in their ids: {odd[0] if odd else 'the order'}")
    if ids != sorted(ids, key=str.encode):
        raise ValueError(f"{folder}/wav.scp is not sorted (LC_ALL=C sort)")
    rows = []
    for id_ in ids:
        samples = int(tables["utt2num_samples"][id_])
        rate = round(samples / float(tables["utt2dur"][id_]))
        row = Utterance(id_, tables["wav.scp"][id_], tables["text"][id_], tables["utt2spk"][id_], samples, rate)
        rows.append(row)
    return rows
