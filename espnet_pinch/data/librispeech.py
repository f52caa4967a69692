"""A corpus in LibriSpeech's layout, read and checked.

``ROOT/LibriSpeech/dev-clean/1272/128104/1272-128104.trans.txt`` holds a line for each utterance,

    1272-128104-0000 MISTER QUILTER IS THE APOSTLE OF THE MIDDLE CLASSES

and ``1272-128104-0000.flac`` beside it the audio, 16 kHz, mono.
"""

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soundfile

from espnet_pinch.data.audio import UNKNOWN, Stream
from espnet_pinch.data.check_dir import checked, header_problem, raise_first
from espnet_pinch.data.kaldi_dir import Utterance, has_control, read_table
from espnet_pinch.errors import UserError
from espnet_pinch.unreadable import why_unreadable

WIDTHS = {"PCM_S8": 1, "PCM_16": 2, "PCM_24": 3}  # bytes of a sample in FLAC's MD5
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
    """All utterances of a subset, each with its transcript and its audio checked.

    Every audio file is decoded whole, which shows a file cut short or damaged. Transcripts are brought to Unicode's
    composed form (NFC), so that a letter with an accent is the same character everywhere, and to single spaces.

    Args:
        root: folder of the subsets.
        subset: "dev-clean" and so on.
        jobs: threads that open audio files.

    Raises:
        ValueError: something is wrong with the corpus; the message names the first file and says how many are.
    """
    folder = Path(root) / subset
    problems: list[str] = []
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
                    problems.append(f"{path}: utterance {id_} {problem}")
                found.setdefault(audio, path)
                rows.setdefault(audio, (id_, text))
        audios = [chapter / name for name in names if name.endswith(".flac")]
        problems += [_without_transcript(audio, found) for audio in audios if audio not in found]
    raise_first(problems, subset)
    if not rows:
        raise UserError(f"{folder} holds no SPEAKER/CHAPTER/*.trans.txt")
    lengths = checked(_samples_or_problem, rows, subset, jobs)
    return [
        Utterance(id_, str(audio), text, id_.rpartition("-")[0] or id_, samples)
        for (audio, (id_, text)), samples in zip(rows.items(), lengths)
    ]


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


def _stated_md5(audio: Path) -> bytes | None:
    """The MD5 of the samples that a FLAC file states of itself, which libsndfile does not check; None if it does not.

    RFC 9639, section 8.2: the last 16 bytes of STREAMINFO, which comes first.
    """
    with open(audio, "rb") as file:
        start = file.read(42)
    md5 = start[26:]
    return md5 if start.startswith(b"fLaC") and any(md5) else None


def _samples_or_problem(audio: Path) -> int | str:
    """Number of samples, or what is wrong with the file."""
    try:
        with Stream(audio) as file:
            if problem := header_problem(file):
                return f"{audio} {problem}"
            if file.format != "FLAC":
                return f"{audio} holds {file.format}, not FLAC"
            buffer, digest = np.empty(1 << 16, dtype="<i4"), hashlib.md5(usedforsecurity=False)
            zeros = 4 - WIDTHS[file.subtype]  # libsndfile's samples are left-justified
            frames = 0
            while read := len(file.read(out=buffer, dtype="int32")):
                frames += read
                digest.update(buffer[:read].view(np.uint8).reshape(-1, 4)[:, zeros:].tobytes())
            if not frames:
                return f"{audio} holds no audio"
            if file.frames < UNKNOWN and frames != file.frames:
                return f"{audio} is cut short: {frames} of its {file.frames} samples can be read"
            stated = _stated_md5(audio)
            if stated and digest.digest() != stated:
                return f"{audio} is damaged: its samples have another MD5 than it states"
            return frames
    except (soundfile.LibsndfileError, OSError, UnicodeEncodeError) as error:
        return f"{audio} {why_unreadable(audio) or f'cannot be read, it is damaged or cut short ({error})'}"
