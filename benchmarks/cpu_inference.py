"""Pruned layers as sparse products on a CPU beside dense ones: the Transformer encoder, and the whole model.

One utterance at a time. Weights are random and pruned by magnitude to the same sparsity in every layer, which is
what a random mask costs: the time depends on how many weights are kept, not on which. Dense bfloat16 stands beside.
"""

import copy
import functools
import statistics

import torch
from measure import in_turns, parser, print_table, ratio, rounds, start
from models import make_model

from espnet_pinch.core.sparse import use_backend


def encoders(sparsity: float, size: str, frames: int) -> tuple[dict[str, torch.nn.Module], int]:
    """The upstream under every backend, and how many layers "auto" has made sparse."""
    dense = make_model(size, sparsity).frontend.upstream
    found = {"dense float32": dense, "sparse": copy.deepcopy(dense), "auto": copy.deepcopy(dense)}
    use_backend(found["sparse"], "sparse")
    chosen = list(use_backend(found["auto"], "auto", frames=frames).values())
    return {**found, "dense bfloat16": copy.deepcopy(dense).bfloat16()}, chosen.count("sparse")


@torch.inference_mode()
def main(arguments: list[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--seconds", type=int, default=10, help="of audio [10]")
    made.add_argument("--sparsities", type=float, nargs="+", default=[0.65, 0.75, 0.85, 0.9, 0.95], metavar="SPARSITY")
    args = start(made, arguments)
    audio = torch.randn(1, args.seconds * 16000)
    rows = []
    for sparsity in args.sparsities:
        frames = 50 * args.seconds
        models, chosen = encoders(sparsity, args.size, frames)
        hidden = torch.randn(1, frames, models["dense float32"].config.hidden_size)
        parts = {
            "encoder": (lambda m, x=hidden: m.encoder(x.to(m.dtype))),
            "whole model": lambda m: m(audio.to(m.dtype)),
        }
        for part, call in parts.items():
            seconds = in_turns(
                {name: functools.partial(call, m) for name, m in models.items()}, args.repeats, args.clock
            )
            base = seconds["dense float32"]
            for name, taken in seconds.items():
                note = f"{chosen} layers sparse" if name == "auto" else ""
                times = [f"{min(taken):.3f}", f"{statistics.median(taken):.3f}", f"{1 / ratio(taken, base):.2f}"]
                rows.append([part, f"{100 * sparsity:g}", name, *times, note])
    print(f"wav2vec2-{args.size}, {args.seconds} s of audio, {rounds(args)}:\n")
    print_table(["part", "sparsity %", "backend", "min s", "median s", "times as fast as dense", ""], rows)


if __name__ == "__main__":
    main()
