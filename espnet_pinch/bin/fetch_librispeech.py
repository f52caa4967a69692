"""Stage 0 of egs/librispeech_100: fetch the subsets of LibriSpeech that the recipe uses."""

import argparse
from pathlib import Path

from espnet_pinch.bin import run_main
from espnet_pinch.data.download import LIBRISPEECH_URL, fetch_librispeech
from espnet_pinch.data.librispeech import SUBSETS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_pinch.bin.fetch_librispeech", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder that gets LibriSpeech/SUBSET")
    parser.add_argument("--base_url", default=LIBRISPEECH_URL, help="a mirror of openslr.org/12")
    args = parser.parse_args()
    fetch_librispeech(args.out, list(SUBSETS), args.base_url)


if __name__ == "__main__":
    run_main(main)
