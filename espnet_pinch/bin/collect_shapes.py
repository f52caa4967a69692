"""Stage 3: lengths of the training and validation utterances, by which ESPnet forms batches."""

import argparse
from pathlib import Path

from espnet_pinch.bin import run_main
from espnet_pinch.data.dump import write_shapes
from espnet_pinch.data.kaldi_dir import read_data_dir


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_pinch.bin.collect_shapes", description=__doc__)
    parser.add_argument("--train", type=Path, required=True, help="data directory")
    parser.add_argument("--valid", type=Path, required=True, help="data directory")
    parser.add_argument("--out", type=Path, required=True, help="writes OUT/train and OUT/valid")
    args = parser.parse_args()
    for mode, data in (("train", args.train), ("valid", args.valid)):
        utterances = read_data_dir(data)
        write_shapes(utterances, args.out / mode)
        print(f"{mode}: {len(utterances)} utterances, {sum(u.seconds for u in utterances) / 3600:.2f} hours")


if __name__ == "__main__":
    run_main(main)
