"""The end of stage 1: check the data directories that local/data.sh has left, and complete them."""

import argparse
import sys
from pathlib import Path

from espnet_pinch.bin import jobs, run_main
from espnet_pinch.data.archive import OwnArchives
from espnet_pinch.data.check_dir import Lengths, check_data_dir
from espnet_pinch.data.kaldi_dir import RATE, read_lines


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_pinch.bin.check_data", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data directories")
    parser.add_argument("--sets", nargs="+", required=True, help="their names; the training set comes first")
    parser.add_argument("--nj", type=jobs, default=4, help="threads that open audio files")
    args = parser.parse_args()
    training: set[int] = set()  # hashes of the names of its sound files
    known = Lengths()  # a set may hold the files of others, as LibriSpeech's dev does
    own = OwnArchives(args.data / "audio")
    for name in dict.fromkeys(args.sets):
        lengths = check_data_dir(args.data / name, args.nj, known, own.samples)
        print(f"{name}: {len(lengths)} utterances, {sum(lengths) / RATE / 3600:.2f} hours", flush=True)
        files = {hash(audio) for _, audio in read_lines(args.data / name / "wav.scp")}
        if name == args.sets[0]:
            training = files
        elif training & files:
            print(f"warning: {name} has {len(training & files)} sound files of the training set", file=sys.stderr)


if __name__ == "__main__":
    run_main(main)
