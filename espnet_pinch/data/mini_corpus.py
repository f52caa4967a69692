"""The embedded mini corpus: synthetic speech in LibriSpeech's layout, made in seconds.

espeak-ng speaks short phrases out of a vocabulary of 20 words, in several voices, speeds and pitches, in a language of
``LANGUAGES``. The voices of dev-other and test-other are heard nowhere else. The same seed in a new process gives the
same corpus.
"""

import ctypes
import dataclasses
import math
import os
import random
from collections.abc import Iterator
from pathlib import Path

import espeakng_loader
import numpy as np
import soundfile
from scipy.signal import resample_poly

from espnet_pinch.data.kaldi_dir import RATE
from espnet_pinch.files import whole_folder
from espnet_pinch.progress import progress_bar


@dataclasses.dataclass(frozen=True)
class Language:
    """What is spoken, and by whom.

    Attributes:
        words: the vocabulary.
        seen, unseen: voices of espeak-ng that the training set has, and has not.
    """

    words: tuple[str, ...]
    seen: tuple[str, ...]
    unseen: tuple[str, ...]


# Not the voices f2, f3, f5: espeak-ng speaks them a little differently in every process.
LANGUAGES = {
    "en": Language(
        tuple(
            "ZERO ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE RED GREEN BLUE WHITE BLACK LEFT RIGHT STOP OPEN "
            "CLOSE".split()
        ),
        ("en-us", "en-us+m3", "en-us+f4", "en-gb-x-rp", "en-gb-x-rp+m7", "en-gb-x-rp+f4"),
        ("en-us+m5", "en-gb-x-rp+f1"),
    ),
    "hi": Language(  # Hindi: the same words
        tuple("शून्य एक दो तीन चार पाँच छह सात आठ नौ लाल हरा नीला सफ़ेद काला बाएँ दाएँ रुको खोलो बंद".split()),
        ("hi", "hi+m3", "hi+f4", "hi+m7", "hi+m1", "hi+f1"),
        ("hi+m5", "hi+m2"),
    ),
}
# subset: number of utterances, whose voices
SUBSETS = {
    "train-clean-100": (960, "seen"),
    "dev-clean": (48, "seen"),
    "dev-other": (24, "unseen"),
    "test-clean": (120, "seen"),
    "test-other": (60, "unseen"),
}


class Espeak:
    """espeak-ng's C library, out of the ``espeakng-loader`` wheel, as a function from text to samples."""

    _RATE, _PITCH, _RANGE = 1, 3, 4  # espeak_PARAMETER
    _SYNCHRONOUS, _DO_NOT_EXIT, _UTF8 = 2, 0x8000, 1

    def __init__(self):
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = os.path.dirname(espeakng_loader.get_data_path())
        self.rate = self._library.espeak_Initialize(self._SYNCHRONOUS, 0, data.encode(), self._DO_NOT_EXIT)
        if self.rate <= 0:
            raise OSError(f"espeak-ng cannot be started with its data at {data}")
        self._samples: list[np.ndarray] = []
        callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._callback = callback(self._receive)  # kept: the library holds a bare pointer to it
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples, count, _events):
        if samples and count > 0:
            self._samples.append(np.ctypeslib.as_array(samples, (count,)).astype(np.float32) / 32768)
        return 0

    def speak(self, text: str, voice: str, words_per_minute: int, pitch: int, pitch_range: int) -> np.ndarray:
        """Samples of ``text`` at ``self.rate`` Hz, in -1..1."""
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise OSError(f"espeak-ng has no voice {voice}")
        for parameter, value in ((self._RATE, words_per_minute), (self._PITCH, pitch), (self._RANGE, pitch_range)):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._samples.clear()
        data = text.lower().encode() + b"\0"
        self._library.espeak_Synth(data, ctypes.c_size_t(len(data)), 0, 0, 0, self._UTF8, None, None)
        return np.concatenate(self._samples)


def phrases(words: tuple[str, ...], count: int, rng: random.Random) -> Iterator[list[str]]:
    """``count`` phrases of 2 to 5 of the words, every word about equally often."""
    queue: list[str] = []
    for _ in range(count):
        length = rng.randint(2, 5)
        if len(queue) < length:
            queue += rng.sample(words, len(words))
        yield [queue.pop(0) for _ in range(length)]


def make_mini_corpus(out: str | os.PathLike, scale: float = 1.0, seed: int = 0, language: str = "en") -> Path:
    """Write the corpus to ``out/LibriSpeech``; it takes its name when it is whole.

    Args:
        out: folder, made if it is not there.
        scale: factor on the number of utterances.
        seed: of the phrases, voices and noise.
        language: one of ``LANGUAGES``.

    Returns: ``out/LibriSpeech``.
    """
    root = Path(out) / "LibriSpeech"
    with whole_folder(root) as new:
        _write(new, LANGUAGES[language], scale, random.Random(seed))
    return root


def _write(root: Path, language: Language, scale: float, rng: random.Random) -> None:
    espeak = Espeak()
    voices = [*language.seen, *language.unseen]
    for subset_number, (subset, (count, whose)) in enumerate(SUBSETS.items()):
        subset_voices = getattr(language, whose)
        count = max(math.ceil(count * scale), len(subset_voices))
        transcripts: dict[Path, list[str]] = {}
        for i, words in enumerate(
            progress_bar(phrases(language.words, count, rng), desc=f"speaking {subset}", total=count, unit="utts")
        ):
            voice = subset_voices[i % len(subset_voices)]
            speaker, chapter = 101 + voices.index(voice), 1000 * (101 + voices.index(voice)) + subset_number
            folder = root / subset / str(speaker) / str(chapter)
            lines = transcripts.setdefault(folder, [])
            id_ = f"{speaker}-{chapter}-{len(lines):04d}"
            folder.mkdir(parents=True, exist_ok=True)
            soundfile.write(folder / f"{id_}.flac", _utterance(espeak, words, voice, rng), RATE, subtype="PCM_16")
            lines.append(f"{id_} {' '.join(words)}\n")
        for folder, lines in transcripts.items():
            (folder / f"{folder.parent.name}-{folder.name}.trans.txt").write_text("".join(lines), encoding="utf-8")
    rows = [f"{101 + i:<5}| {'F' if '+f' in voice else 'M'} | {voice}\n" for i, voice in enumerate(voices)]
    (root / "SPEAKERS.TXT").write_text(";ID  |SEX| NAME\n" + "".join(rows), encoding="utf-8")


def _utterance(espeak: Espeak, words: list[str], voice: str, rng: random.Random) -> np.ndarray:
    samples = espeak.speak(" ".join(words), voice, rng.randint(150, 220), rng.randint(30, 70), rng.randint(30, 70))
    divisor = math.gcd(RATE, espeak.rate)
    samples = resample_poly(samples, RATE // divisor, espeak.rate // divisor)
    samples *= rng.uniform(0.3, 0.9) / max(np.abs(samples).max(), 1e-6)
    noise = np.random.default_rng(rng.randrange(1 << 30))
    return np.clip(samples + noise.normal(0, 2e-3, len(samples)), -1, 1)
