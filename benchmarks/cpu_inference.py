"""Compare sparse and dense products of pruned layers on a CPU: time of the Transformer encoder and of the whole model.

One utterance at a time. Weights are random and pruned by magnitude to the same sparsity in every layer. A random mask
costs the same: the time depends on how many weights are kept, not on which. Dense bfloat16 is timed, too.
"""

import argparse
import copy
import functools
import statistics
from collections.abc import Iterator

import torch
from measure import parser, print_table, rounds, start
from models import make_model

from espnet_pinch.inference.sparse_linear import use_backend
from espnet_pinch.inference.timing import in_turns, ratio


def encoders(sparsity: float, size: str, frames: int) -> tuple[dict[str, torch.nn.Module], int]:
    """The upstream with every backend, and how many layers "auto" has made sparse."""
    dense = make_model(size, sparsity).frontend.upstream
    found = {"dense float32": dense, "sparse": copy.deepcopy(dense), "auto": copy.deepcopy(dense)}
    use_backend(found["sparse"], "sparse")
    chosen = list(use_backend(found["auto"], "auto", frames=frames).values())
    return {**found, "dense bfloat16": copy.deepcopy(dense).bfloat16()}, chosen.count("sparse")


@torch.inference_mode()
def measured(args: argparse.Namespace) -> Iterator[list[str]]:
    """Rows of the table."""
    audio, frames = torch.randn(1, args.seconds * 16000), 50 * args.seconds
    for sparsity in args.sparsities:
        models, chosen = encoders(sparsity, args.size, frames)
        hidden = torch.randn(1, frames, models["dense float32"].config.hidden_size)
        parts = {
            "encoder": (lambda m, x=hidden: m.encoder(x.to(m.dtype))),
            "whole model": (lambda m: m(audio.to(m.dtype))),
        }
        for part, call in parts.items():
            sides = {name: functools.partial(call, m) for name, m in models.items()}
            seconds = in_turns(sides, args.repeats, args.clock)
            for name, taken in seconds.items():
                times = [min(taken), statistics.median(taken), 1 / ratio(taken, seconds["dense float32"])]
                note = f"{chosen} layers sparse" if name == "auto" else ""
                yield [part, f"{100 * sparsity:g}", name, f"{times[0]:.3f}", f"{times[1]:.3f}", f"{times[2]:.2f}", note]


def main(arguments: list[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--seconds", type=int, default=10, help="length of the audio [10]")
    made.add_argument("--sparsities", type=float, nargs="+", default=[0.65, 0.75, 0.85, 0.9, 0.95], metavar="SPARSITY")
    args = start(made, arguments)
    print(f"wav2vec2-{args.size}, {args.seconds} s of audio, {rounds(args)}:\n")
    print_table(["part", "sparsity %", "backend", "min s", "median s", "times as fast as dense", ""], measured(args))


if __name__ == "__main__":
    main()
