"""How right the times and confidences of words are, on data directories with transcripts.

Times of words that were recognised are compared with those of a forced alignment of the reference by torchaudio, and
with true times where a CTM has them. A confidence is calibrated if, of the words with a confidence of 0.8, 80 % are
right. The expected calibration error is the mean distance from that in ten bins of confidence, weighted by their words.
The area under the ROC curve is the share of pairs of a right and a wrong word in which the right one has the higher
confidence.
"""

import argparse
import logging
import warnings
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from measure import print_table
from scipy.stats import rankdata

from espnet_pinch.alignment import align
from espnet_pinch.asr.decode import batches, frame_times, log_probs_of, transcript_of
from espnet_pinch.asr.forced import align_tokens, ids_of
from espnet_pinch.asr.recogniser import Recogniser
from espnet_pinch.asr.search import Search
from espnet_pinch.asr.search_options import add_search_options, make_search
from espnet_pinch.data.audio import read_audio
from espnet_pinch.data.kaldi_dir import Utterance, read_data_dir
from espnet_pinch.export.load import load
from espnet_pinch.results.plots import name_axes, save
from espnet_pinch.transcript.words import Transcript, Word

BINS = 10


def read_ctm(path: Path) -> dict[str, list[Word]]:
    """``{utterance: words}``."""
    words: dict[str, list[Word]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        name, _, start, duration, text, confidence = line.split()
        end = float(start) + float(duration)
        words.setdefault(name, []).append(Word(text, float(start), end, float(confidence)))
    return words


def found_and_forced(model: Recogniser, batch: list[Utterance], search: Search) -> list[tuple[Transcript, Transcript]]:
    """For each utterance, what the search finds, and the forced alignment of its reference."""
    audio = [torch.from_numpy(read_audio(u.audio)) for u in batch]
    log_probs, counts = log_probs_of(model, audio)
    pairs = []
    found = search(log_probs, counts)
    for utterance, spans, rows, count in zip(batch, found, log_probs, counts.tolist()):
        forced = align_tokens(ids_of(utterance.text, model.token_list, model.subwords), rows[:count], model.blank_id)
        about = model, frame_times(model, count), utterance.seconds
        pairs.append((transcript_of(utterance.id, spans, *about), transcript_of(utterance.id, forced, *about)))
    return pairs


def same_words(reference: list[Word], hypothesis: list[Word]) -> tuple[list[tuple[Word, Word]], list[bool]]:
    """Pairs of a reference word and the same word of the hypothesis; and whether each hypothesis word is right."""
    edits = align([word.text for word in reference], [word.text for word in hypothesis])
    left, right = iter(reference), iter(hypothesis)
    pairs, is_right = [], []
    for edit in edits:
        one = next(left) if edit in "CSD" else None
        other = next(right) if edit in "CSI" else None
        if edit == "C":
            pairs.append((one, other))
        if other:
            is_right.append(edit == "C")
    return pairs, is_right


def errors_of(pairs: list[tuple[Word, Word]]) -> list[str]:
    """Median and 90th percentile of the errors of start and end, in ms, and their medians with sign; "-" of none."""
    if not pairs:
        return ["-"] * 6
    cells = []
    for edge in ("start", "end"):
        errors = 1000 * np.array([getattr(b, edge) - getattr(a, edge) for a, b in pairs])
        size = np.abs(errors)
        cells += [f"{np.median(size):.0f}", f"{np.quantile(size, 0.9):.0f}", f"{np.median(errors):+.0f}"]
    return cells


def bins_of(confidence: np.ndarray, right: np.ndarray) -> list[tuple[int, float, float]]:
    """For each bin with words: their number, their mean confidence, the share that is right."""
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    groups = [place == i for i in range(BINS) if (place == i).any()]
    return [(int(group.sum()), float(confidence[group].mean()), float(right[group].mean())) for group in groups]


def calibration(confidence: np.ndarray, right: np.ndarray) -> list[str]:
    error = sum(count * abs(mean - share) for count, mean, share in bins_of(confidence, right)) / len(right)
    hits = int(right.sum())
    area = "-"
    if 0 < hits < len(right):
        area = f"{(rankdata(confidence)[right].sum() - hits * (hits + 1) / 2) / (hits * (len(right) - hits)):.3f}"
    return [
        f"{len(right)}", f"{100 * right.mean():.1f}", f"{100 * confidence.mean():.1f}", f"{100 * error:.1f}", area
    ]  # fmt: skip


def draw(sets: dict[str, tuple[np.ndarray, np.ndarray]], path: Path) -> None:
    """The reliability curve: the share of right words over their confidence. Numbers are those of words."""
    figure = Figure(figsize=(5.2, 4.8), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 100], [0, 100], color="tab:gray", linestyle="--", label="calibrated")
    for (name, rows), marker in zip(sets.items(), "osv^Dx*"):
        bins = bins_of(*rows)
        x, y = [100 * mean for _, mean, _ in bins], [100 * share for *_, share in bins]
        [line] = axis.plot(x, y, marker=marker, label=name)
        for (count, *_), a, b in zip(bins, x, y):
            axis.annotate(f"{count}", (a, b), (3, -9), textcoords="offset points", fontsize=7, color=line.get_color())
    name_axes(axis, "Confidence of words", "mean confidence of a bin, %", "words that are right, %")
    save(figure, path)


def main(arguments: list[str] | None = None) -> None:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--model", type=Path, required=True)
    made.add_argument("--data", type=Path, nargs="+", required=True, help="data directories with transcripts")
    made.add_argument("--reference", type=Path, help="CTM with true times of all words, such as digit_joints.py writes")
    made.add_argument("--picture", type=Path, help="write the reliability curve to this name with .png and .svg")
    made.add_argument("--batch_size", type=int, default=8)
    made.add_argument("--threads", type=int, default=torch.get_num_threads())
    add_search_options(made)
    args = made.parse_args(arguments)
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(args.threads)
    model = load(args.model, "torch")
    search, _ = make_search(args, model.token_list, model.blank_id)
    truth = read_ctm(args.reference) if args.reference else {}
    times, sure, curves = [], [], {}
    for data in args.data:
        forced_pairs, true_pairs, confidence, right = [], [], [], []
        for batch in batches(read_data_dir(data), args.batch_size):
            for found, forced in found_and_forced(model, batch, search):
                pairs, is_right = same_words(list(forced.words), list(found.words))
                forced_pairs += pairs
                right += is_right
                confidence += [word.confidence for word in found.words]
                if truth:
                    true_pairs += same_words(truth[found.audio], list(found.words))[0]
        times.append([data.name, "forced alignment", f"{len(forced_pairs)}", *errors_of(forced_pairs)])
        if truth:
            times.append([data.name, "true times", f"{len(true_pairs)}", *errors_of(true_pairs)])
        curves[data.name] = np.array(confidence), np.array(right)
        sure.append([data.name, *calibration(*curves[data.name])])
    heads = [f"{edge}: {what}" for edge in ("start", "end") for what in ("median", "90th percentile", "with sign")]
    print("Errors of times, in ms:\n")
    print_table(["set", "compared with", "words", *heads], times)
    print("\nConfidences, in per cent:\n")
    print_table(["set", "words", "right", "mean confidence", "calibration error", "area under ROC"], sure)
    if args.picture:
        draw(curves, args.picture)


if __name__ == "__main__":
    main()
