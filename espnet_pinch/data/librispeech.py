"""A corpus in LibriSpeech's layout, read and checked.

``ROOT/LibriSpeech/dev-clean/1272/128104/1272-128104.trans.txt`` holds a line for each utterance,

    1272-128104-0000 MISTER QUILTER IS THE APOSTLE OF THE MIDDLE CLASSES

and ``1272-128104-0000.flac`` beside it the audio, 16 kHz, mono.
"""

import dataclasses
import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from espnet_pinch.data.check_dir import checked, samples_or_problem
from espnet_pinch.data.kaldi_dir import Utterance, has_control, read_table
from espnet_pinch.data.problems import Problems
from espnet_pinch.errors import UserError
from espnet_pinch.unreadable import why_unreadable

SUBSETS = ("train-clean-100", "dev-clean", "dev-other", "test-clean", "test-other")


def find_root(folder: str | os.PathLike, subsets: Iterable[str] = SUBSETS) -> Path:
    """The folder that holds the subsets: ``folder`` itself or ``folder/LibriSpeech``.

    Raises:
        FileNotFoundError: a subset is missing.
    """
    folder = Path(folder).absolute()
    if not folder.is_dir():
        raise FileNotFoundError(f"the corpus folder {folder} does not exist")
    root = folder / "LibriSpeech" if (folder / "LibriSpeech").is_dir() else folder
    missing = [subset for subset in subsets if not (root / subset).is_dir()]
    if missing:
        raise FileNotFoundError(f"the corpus {root} lacks {', '.join(missing)}; it needs {', '.join(subsets)}")
    return root


def read_subset(root: str | os.PathLike, subset: str, jobs: int = 4) -> list[Utterance]:
    """All utterances of a subset, their audio decoded and checked.

    Args:
        root, subset: as for ``list_subset``.
        jobs: threads that decode.

    Raises:
        UserError: as ``list_subset``; or an audio file is damaged.
    """

    def samples_of(u: Utterance) -> int | str:
        found = samples_or_problem(u.audio)
        return found if isinstance(found, int) else f"{u.audio} {found}"

    found = checked(samples_of, list_subset(root, subset), subset, jobs)
    return [dataclasses.replace(u, samples=samples) for u, samples in found]


def list_subset(root: str | os.PathLike, subset: str) -> list[Utterance]:
    """All utterances of a subset, with 0 samples: their audio is not opened.

    Transcripts are brought to Unicode's composed form (NFC) and to single spaces.

    Args:
        root: folder of the subsets.
        subset: "dev-clean" and so on.

    Raises:
        UserError: a transcript or an audio file is missing, or a transcript cannot be used. The message names the first
            file and says how many there are.
    """
    folder = Path(root) / subset
    problems = Problems(subset)
    rows: dict[Path, tuple[str, str]] = {}  # audio: id, transcript
    for chapter in (chapter for speaker in _folders(folder) for chapter in _folders(speaker)):
        # The layout's own name first, a longer one last: of a file and its copy, it is the copy that is named.
        own = f"{chapter.parent.name}-{chapter.name}.trans.txt"
        names = sorted(os.listdir(chapter), key=lambda name: (name != own, len(name), name))
        found: dict[Path, Path] = {}  # audio: transcript
        for path in (chapter / name for name in names if name.endswith(".trans.txt")):
            for id_, text in read_table(path).items():
                audio = chapter / f"{id_}.flac"
                text = " ".join(unicodedata.normalize("NFC", text).split())
                problem = _transcript_problem(id_, text, audio)
                if audio in found:
                    problem = f"is there twice, first in {found[audio].name}; remove {path.name} if it is a copy"
                if problem:
                    problems.add(f"{path}: utterance {id_} {problem}")
                found.setdefault(audio, path)
                rows.setdefault(audio, (id_, text))
        audios = [chapter / name for name in names if name.endswith(".flac")]
        for audio in audios:
            if audio not in found:
                problems.add(_without_transcript(audio, found))
    problems.raise_first()
    if not rows:
        raise UserError(f"{folder} holds no SPEAKER/CHAPTER/*.trans.txt")
    return [Utterance(id_, str(audio), text, id_.rpartition("-")[0] or id_, 0) for audio, (id_, text) in rows.items()]


def _folders(folder: Path) -> list[Path]:
    """The folders in ``folder``; one that cannot be read is an error, not an empty one."""
    return sorted(Path(entry.path) for entry in os.scandir(folder) if entry.is_dir())


def _transcript_problem(id_: str, text: str, audio: Path) -> str | None:
    if "/" in id_ or "\0" in id_:
        return "has an id that is no file name"
    if not text:
        return "has an empty transcript"
    if has_control(text):
        return f"has a control character in its transcript: {text!r}"
    if not audio.is_file():
        wrong = f": that {why_unreadable(audio, whole=False)}" if os.path.lexists(audio) else ""
        return f"has no audio file {audio.name}{wrong}"
    return None


def _without_transcript(audio: Path, found: Iterable[Path]) -> str:
    """What to say of an audio file that no transcript names, but perhaps that of the file that it is a copy of."""
    for other in found:
        if re.search(rf"(?<![\w-]){re.escape(other.stem)}(?![\w-])", audio.stem):
            return f"{audio} has no transcript; remove it if it is a copy of {other.name}"
    return f"{audio} has no transcript"
