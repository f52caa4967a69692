"""A corpus in LibriSpeech's layout, read and checked.

``ROOT/LibriSpeech/dev-clean/1272/128104/1272-128104.trans.txt`` holds a line for each utterance,

    1272-128104-0000 MISTER QUILTER IS THE APOSTLE OF THE MIDDLE CLASSES

and ``1272-128104-0000.flac`` beside it the audio, 16 kHz, mono.
"""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import soundfile

from espnet_pinch.data.kaldi_dir import Utterance, read_table
from espnet_pinch.progress import progress_bar

RATE = 16000
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

    Every audio file is opened and read at its end, which shows a file cut short.

    Args:
        root: folder of the subsets.
        subset: "dev-clean" and so on.
        jobs: threads that open audio files.

    Raises:
        ValueError: something is wrong with the corpus; the message names the first file and says how many are.
    """
    folder = Path(root) / subset
    problems: list[str] = []
    texts: dict[Path, str] = {}
    for path in sorted(folder.glob("*/*/*.trans.txt")):
        for id_, text in read_table(path).items():
            audio = path.parent / f"{id_}.flac"
            if not text:
                problems.append(f"{path}: utterance {id_} has an empty transcript")
            elif not audio.is_file():
                problems.append(f"{path}: utterance {id_} has no audio file {audio.name}")
            texts[audio] = " ".join(text.split())
    problems += [f"{audio} has no transcript" for audio in sorted(folder.glob("*/*/*.flac")) if audio not in texts]
    _raise_first(problems, subset)
    if not texts:
        raise ValueError(f"{folder} holds no SPEAKER/CHAPTER/*.trans.txt")
    with ThreadPoolExecutor(jobs) as pool:
        checks = pool.map(_samples_or_problem, texts)
        checks = list(progress_bar(checks, desc=f"checking {subset}", total=len(texts), unit=" files"))
    _raise_first([check for check in checks if isinstance(check, str)], subset)
    return [
        Utterance(audio.stem, str(audio), text, audio.stem.rpartition("-")[0], samples)
        for (audio, text), samples in zip(texts.items(), checks)
    ]


def _raise_first(problems: list[str], subset: str) -> None:
    if problems:
        more = f" (and {len(problems) - 1} more problems in {subset})" if len(problems) > 1 else ""
        raise ValueError(problems[0] + more)


def _samples_or_problem(audio: Path) -> int | str:
    """Number of samples, or what is wrong with the file."""
    try:
        with soundfile.SoundFile(audio) as file:
            if file.samplerate != RATE:
                return f"{audio} has {file.samplerate} Hz; the recipe needs {RATE} Hz, resample the corpus first"
            if file.channels != 1:
                return f"{audio} has {file.channels} channels; the recipe needs mono"
            if file.frames == 0:
                return f"{audio} holds no audio"
            tail = min(file.frames, 4096)
            file.seek(file.frames - tail)
            if len(file.read(tail)) != tail:
                return f"{audio} is cut short: its end cannot be read"
            return file.frames
    except (soundfile.LibsndfileError, OSError) as error:
        return f"{audio} cannot be read, it is damaged or cut short ({error})"
