"""Find the weights of a language model with the fewest word errors on dev sets; they are decoded with each pair."""

import argparse
import itertools
from pathlib import Path

import torch

from espnet_pinch.alignment import count_word_errors
from espnet_pinch.asr.beam import BEAM_SIZE, BeamSearch
from espnet_pinch.asr.decode import batches, log_probs_of
from espnet_pinch.asr.head import ASR, require_task
from espnet_pinch.asr.search import GreedySearch, Search
from espnet_pinch.bin import run_main
from espnet_pinch.data.audio import read_audio
from espnet_pinch.data.kaldi_dir import read_data_dir
from espnet_pinch.data.tokens import text_of
from espnet_pinch.export.format import loadable
from espnet_pinch.export.load import load
from espnet_pinch.gpus import check_gpus
from espnet_pinch.lm.arpa import read_arpa
from espnet_pinch.lm.spelling import check_spelling
from espnet_pinch.progress import progress_bar
from espnet_pinch.results.experiment import markdown_table

WEIGHTS, SCORES = (0.25, 0.5, 1.0, 1.5, 2.0), (-2.0, 0.0, 2.0, 4.0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_pinch.bin.tune_lm", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help=loadable())
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="data directories of dev sets")
    parser.add_argument("--lm", type=Path, required=True, help="ARPA file")
    parser.add_argument("--lm_weights", type=float, nargs="+", default=WEIGHTS, help=f"to try {list(WEIGHTS)}")
    parser.add_argument("--word_scores", type=float, nargs="+", default=SCORES, help=f"to try {list(SCORES)}")
    parser.add_argument("--beam_size", type=int, default=BEAM_SIZE, help=f"[{BEAM_SIZE}]")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--ngpu", type=int, default=0, help="0 runs the model on the CPU")
    args = parser.parse_args()
    check_gpus(args.ngpu, f"--ngpu {args.ngpu}")
    device = "cuda" if args.ngpu else "cpu"
    lm = read_arpa(args.lm)
    model = load(args.model, "torch", device=device)
    require_task(ASR, model, str(args.model))
    tokens, blank = model.token_list, model.blank_id
    if note := check_spelling(lm, tokens, str(args.lm)):
        print(f"note: {note}")
    utterances = [u for data in args.data for u in read_data_dir(data)]
    groups = list(batches(utterances, args.batch_size))
    encoded = []
    for group in progress_bar(groups, desc="running the model", unit="batches"):
        audio = [torch.from_numpy(read_audio(u.audio)) for u in group]
        log_probs, frames = log_probs_of(model, audio)
        encoded.append((log_probs.cpu(), frames.cpu()))

    def errors(search: Search) -> int:
        found = [
            (utterance.text, text_of(tokens[span.token] for span in spans))
            for group, (log_probs, frames) in zip(groups, encoded)
            for utterance, spans in zip(group, search(log_probs, frames))
        ]
        return count_word_errors(found).errors

    words = sum(len(u.text.split()) for u in utterances)
    greedy = errors(GreedySearch(blank))
    rows, best = [], (greedy, 0.0, 0.0)
    grid = list(itertools.product(args.lm_weights, args.word_scores))
    for weight, score in progress_bar(grid, desc="decoding with each pair", unit="pairs"):
        count = errors(BeamSearch(tokens, blank, args.beam_size, lm, weight, score))
        rows.append([f"{weight:g}", f"{score:g}", f"{100 * count / words:.2f} ({count}/{words})"])
        best = min(best, (count, weight, score), key=lambda row: (row[0], row[1], abs(row[2])))
    print("\n".join(markdown_table(["lm_weight", "word_score", "WER % (errors/words)"], rows)))
    print(f"greedy search: {100 * greedy / words:.2f} ({greedy}/{words})")
    count, weight, score = best
    if count == greedy:
        print("no pair has fewer errors than greedy search")
    else:
        options = f"--lm {args.lm} --lm_weight {weight:g} --word_score {score:g} --beam_size {args.beam_size}"
        print(f"best: {100 * count / words:.2f} ({count}/{words}) with {options}")


if __name__ == "__main__":
    run_main(main)
