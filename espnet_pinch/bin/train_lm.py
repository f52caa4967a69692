"""Count an n-gram language model from the transcripts of data directories, and write it as ARPA."""

import argparse
from pathlib import Path

from espnet_pinch.bin import run_main
from espnet_pinch.data.kaldi_dir import read_table
from espnet_pinch.files import write_text
from espnet_pinch.lm.count import count_ngrams


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_pinch.bin.train_lm", description=__doc__)
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="Kaldi text files: id, then words")
    parser.add_argument("--order", type=int, default=3, help="largest number of words of an n-gram [3]")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    args = parser.parse_args()
    texts = [text for file in args.text for text in read_table(file).values()]
    arpa = count_ngrams(texts, args.order)
    write_text(args.out, arpa)
    print(f"{args.out}: {', '.join(line for line in arpa.splitlines() if line.startswith('ngram '))}")


if __name__ == "__main__":
    run_main(main)
