"""Peak memory and time of each program that prepares a large table: rows, audio, check, dump.

The table has ``--rows`` rows on ``--files`` sound files of 1 s: it is measured what rows cost, not what audio does.
``--package`` runs the last two programs of another copy of the package, such as an earlier release, on the same data
directories.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from measure import print_table, start

from espnet_pinch.asr.small_upstreams import make_small_upstream

WORDS = ["".join(random.Random(i).choices("ETAOINSHRDLU", k=1 + i % 9)) for i in range(5000)]
SETS = ["--train_set", "train", "--valid_set", "dev", "--test_sets", "test"]


def write_table(folder: Path, rows: int, files: int) -> Path:
    """Write the sound files, and a table with speakers, transcripts of 5 to 35 words, and ids."""
    rng = random.Random(0)
    for i in range(files):
        soundfile.write(folder / f"{i}.wav", np.random.default_rng(i).normal(0, 0.1, 16000), 16000)
    with open(folder / "table.tsv", "w", encoding="utf-8") as table:
        table.write("audio\ttext\tid\tspeaker\n")
        for i in range(rows):
            text = " ".join(rng.choices(WORDS, k=rng.randint(5, 35)))
            table.write(f"{i % files}.wav\t{text}\tspeaker{i % 5000:04d}-{i:08d}\tspeaker{i % 5000:04d}\n")
    return folder / "table.tsv"


# Of the program alone: what wait4() gives includes the process that has started it.
PEAK = """
import atexit, re, runpy, sys
out, program = sys.argv[1:3]
peak = lambda: open(out, "w").write(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
atexit.register(peak)
sys.argv[1:3] = []
runpy.run_module(f"espnet_pinch.bin.{program}", run_name="__main__", alter_sys=True)
"""


def run(package: Path, program: str, *arguments) -> tuple[float, float]:
    """Seconds, and the peak of the resident memory in MB, of a program."""
    with tempfile.NamedTemporaryFile() as peak:
        command = [sys.executable, "-c", PEAK, peak.name, program, *map(str, arguments)]
        begin = time.perf_counter()
        environment = {**os.environ, "PYTHONPATH": str(package)}
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, cwd=package, check=True)
        return time.perf_counter() - begin, int(peak.read()) / 1024


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--package", type=Path, help="folder of another copy of the package")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help=argparse.SUPPRESS)
    args = start(parser, arguments)
    own = Path(__file__).resolve().parents[1]
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        table = write_table(Path(folder), args.rows, args.files)
        make_small_upstream(f"{folder}/upstream", "micro")
        corpus = ["--table", table, *SETS, "--out", f"{folder}/data"]
        check = ["--data", f"{folder}/data", "--sets", "train", "dev", "test"]
        dump = ["--data", f"{folder}/data", "--upstream", f"{folder}/upstream", "--out", f"{folder}/dump", *SETS]
        for program, options in (("read_corpus", corpus), ("cut_corpus", corpus), ("check_data", check)):
            measured.append([program, *run(own, program, *options)])
        measured.append(["prepare_dump", *run(own, "prepare_dump", *dump)])
        if args.package:
            for program, options in (("check_data", check), ("prepare_dump", dump)):
                measured.append([f"{program} of {args.package.name}", *run(args.package.resolve(), program, *options)])
    print(f"{args.rows:,} rows\n")
    print_table(["program", "s", "peak memory, MB"], [[name, f"{s:.0f}", f"{mb:.0f}"] for name, s, mb in measured])


if __name__ == "__main__":
    main()
