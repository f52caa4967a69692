"""A table of the Free Spoken Digit Dataset's recordings, out of their names: DIGIT_SPEAKER_TAKE.wav."""

import argparse
import csv
import re
from pathlib import Path

from espnet_pinch.bin import run_main
from espnet_pinch.errors import UserError
from espnet_pinch.files import whole_file

WORDS = "ZERO ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE".split()
TEST, DEV = 5, 10  # takes under 5 are the corpus' own test set, those from 5 to 9 the validation set


def main() -> None:
    parser = argparse.ArgumentParser(prog="python local/make_table.py", description=__doc__)
    parser.add_argument("--recordings", type=Path, required=True, help="folder of the recordings")
    parser.add_argument("--out", type=Path, required=True, help="the table to write")
    args = parser.parse_args()
    names = sorted(path.name for path in args.recordings.glob("*.wav"))
    if not names:
        raise UserError(f"{args.recordings} has no recordings (DIGIT_SPEAKER_TAKE.wav)")
    with whole_file(args.out) as new, open(new, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(["audio", "text", "id", "speaker", "split"])
        for name in names:
            match = re.fullmatch(r"(\d)_([A-Za-z]+)_(\d+)\.wav", name)
            if not match:
                raise UserError(f"{args.recordings / name}: the name is not DIGIT_SPEAKER_TAKE.wav")
            digit, speaker, take = int(match[1]), match[2], int(match[3])
            split = "test" if take < TEST else "dev" if take < DEV else "train"
            audio = str((args.recordings / name).absolute())
            table.writerow([audio, WORDS[digit], f"{speaker}-{digit}-{take:02d}", speaker, split])
    print(f"{len(names)} recordings")


if __name__ == "__main__":
    run_main(main)
