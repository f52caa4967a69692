"""Time data directories and scores of a corpus of LibriSpeech's size, and lhotse's manifests of the same corpus.

The corpus has as many utterances as train-clean-100 and the dev and test sets together. Each is a FLAC file of a
fraction of a second with a transcript of 5 to 35 words. Only calls are timed, not imports: our stage 1 (which decodes
every file completely); lhotse's ``prepare_librispeech`` (which reads every header) in a separate Python process; and
WER with MAPSSWE and bootstrap of all dev and test sets, with 5 % wrong words.
"""

import argparse
import contextlib
import io
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from measure import print_table, start

from espnet_pinch.data.kaldi_dir import read_table, write_data_dir
from espnet_pinch.data.librispeech import read_subset
from espnet_pinch.results.scoring import score_files
from espnet_pinch.results.significance import compare_files

UTTERANCES = {"train-clean-100": 28539, "dev-clean": 2703, "dev-other": 2864, "test-clean": 2620, "test-other": 2939}
LHOTSE = """
import sys, time
from lhotse.recipes import prepare_librispeech
begin = time.perf_counter()
corpus, out, parts, jobs = sys.argv[1:]
made = prepare_librispeech(corpus, dataset_parts=parts.split(), output_dir=out, num_jobs=int(jobs))
print(time.perf_counter() - begin, sum(len(part["recordings"]) for part in made.values()))
"""


def write_tree(root: Path, scale: float) -> dict[str, int]:
    """Write the corpus. Returns the number of utterances of each subset."""
    rng, noise = random.Random(0), np.random.default_rng(0)
    words = ["".join(rng.choices("ETAOINSHRDLU", k=rng.randint(1, 9))) for _ in range(5000)]
    flac = []
    for i in range(16):
        buffer = io.BytesIO()
        soundfile.write(buffer, noise.normal(0, 0.1, 1600 + 200 * i), 16000, format="FLAC", subtype="PCM_16")
        flac.append(buffer.getvalue())
    counts = {subset: max(1, round(scale * count)) for subset, count in UTTERANCES.items()}
    for number, (subset, count) in enumerate(counts.items()):
        for first in range(0, count, 50):
            speaker = 100 + 1000 * number + first // 100
            folder = root / subset / str(speaker) / str(10 * speaker + first // 50 % 2)
            folder.mkdir(parents=True)
            lines = []
            for i in range(min(50, count - first)):
                id_ = f"{speaker}-{folder.name}-{i:04d}"
                (folder / f"{id_}.flac").write_bytes(rng.choice(flac))
                lines.append(f"{id_} {' '.join(rng.choices(words, k=rng.randint(5, 35)))}\n")
            (folder / f"{speaker}-{folder.name}.trans.txt").write_text("".join(lines))
    return counts


def wrong(text: str, rng: random.Random) -> str:
    """``text`` with 5 % of its words replaced."""
    return " ".join("WRONG" if rng.random() < 0.05 else word for word in text.split())


def lhotse(python: str, root: Path, out: Path, jobs: int) -> float | None:
    """Seconds of lhotse's preparation; None if ``python`` has no lhotse."""
    if subprocess.run([python, "-c", "import lhotse"], capture_output=True, env=_env()).returncode:
        return None
    command = [python, "-c", LHOTSE, root, out, " ".join(UTTERANCES), str(jobs)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=_env())
    seconds, recordings = done.stdout.split()[-2:]
    assert int(recordings) == sum(1 for _ in root.glob("*/*/*/*.flac"))
    return float(seconds)


def _env() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


def main(arguments: list[str] | None = None) -> None:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--repeats", type=int, default=3, help="rounds; each runs every side once [3]")
    made.add_argument("--scale", type=float, default=1.0, help="factor on the number of utterances [1]")
    made.add_argument("--nj", type=int, default=4, help="threads, ours and lhotse's [4]")
    made.add_argument("--threads", type=int, default=os.cpu_count(), help=argparse.SUPPRESS)
    made.add_argument("--lhotse", default=sys.executable, metavar="PYTHON", help="interpreter with lhotse [this one]")
    args = start(made, arguments)
    seconds = {
        "data directories, ours": [],
        "manifests, lhotse": [],
        "WER of dev and test sets": [],
        "MAPSSWE and bootstrap": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        root, rng = Path(folder) / "LibriSpeech", random.Random(1)
        counts = write_tree(root, args.scale)
        for turn in range(-1, args.repeats):  # the first turn fills the file system's cache and does not count
            begin = time.perf_counter()
            for subset in counts:
                with contextlib.redirect_stdout(io.StringIO()):  # the progress bar
                    rows = read_subset(root, subset, args.nj)
                assert len(rows) == counts[subset]
                write_data_dir(Path(folder) / "data" / subset, rows)
            taken = [time.perf_counter() - begin, lhotse(args.lhotse, root, Path(folder) / f"lhotse{turn}", args.nj)]
            texts = {s: Path(folder) / "data" / s / "text" for s in counts if s != "train-clean-100"}
            systems = {s: [path.with_name(name) for name in "ab"] for s, path in texts.items()}
            for subset, path in texts.items():
                for hypothesis in systems[subset]:
                    lines = (f"{id_} {wrong(text, rng)}\n" for id_, text in read_table(path).items())
                    hypothesis.write_text("".join(lines))
            begin = time.perf_counter()
            words = sum(score_files(path, systems[s][0]).words for s, path in texts.items())
            taken.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            for subset, path in texts.items():
                compare_files(path, *systems[subset])
            taken.append(time.perf_counter() - begin)
            for times, value in zip(seconds.values(), taken):
                times += [value] if turn >= 0 and value is not None else []
    print(
        f"{sum(counts.values())} utterances; {sum(counts.values()) - counts['train-clean-100']} scored, {words} words\n"
    )
    ours = statistics.median(seconds["data directories, ours"])
    rows = []
    for name, times in seconds.items():
        shown = [f"{min(times):.2f}", f"{statistics.median(times):.2f}"] if times else ["not installed", ""]
        shown += [f"{statistics.median(times) / ours:.2f}"] if times and name.endswith("lhotse") else [""]
        rows.append([name, *shown])
    print_table(["", "min s", "median s", "times as long as ours"], rows)


if __name__ == "__main__":
    main()
