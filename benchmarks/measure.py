"""Shared parts of the benchmarks: options, peak memory of a call in torch, sizes of models, tables."""

import argparse
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterable

import torch
from torch.profiler import ProfilerActivity, profile

from espnet_pinch.bench.machine import machine
from espnet_pinch.inference.timing import CLOCKS
from espnet_pinch.results.experiment import markdown_table

# The default configuration of transformers' Wav2Vec2Config is wav2vec2-base; "large" is wav2vec2-large, and as large as
# HuBERT-large; "tiny" is for a smoke test.
SIZES = {
    "base": {},
    "large": dict(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        conv_bias=True,
    ),
    "tiny": dict(
        conv_dim=(8, 8),
        conv_kernel=(10, 8),
        conv_stride=(10, 32),
        num_feat_extract_layers=2,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    ),
}


def parser(description: str) -> argparse.ArgumentParser:
    """Options that every benchmark has."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--repeats", type=int, default=5, help="rounds; each runs every side once [5]")
    made.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch [all cores]")
    made.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: processor time of all threads, for a machine that others use, too; with one thread it equals the "
        "wall time on an idle machine [wall]",
    )
    made.add_argument("--size", choices=SIZES, default="base", help="size of wav2vec2, with random weights [base]")
    return made


def start(made: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """Parse the options, set the threads and the seed, silence the libraries, print the machine."""
    args = made.parse_args(arguments)
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = getattr(args, "device", "cpu")
    print(f"Machine: {machine(args.threads, device)}; {time.strftime('%Y-%m-%d')}.\n", flush=True)
    return args


def peak_bytes(run: Callable, device: str, held: int) -> int:
    """Largest number of bytes in one side's tensors while it runs; before the run it has ``held`` bytes.

    On a CPU it is the sum of the events of torch's allocator in torch's profiler. Memory that oneDNN and MKL allocate
    themselves is not included.
    """
    if device == "cuda":
        others = torch.cuda.memory_allocated() - held
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - others
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        run()
    events = [e for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = held
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def rounds(args: argparse.Namespace) -> str:
    return f"{args.repeats} rounds, {args.clock} time"


def print_table(head: list[str], rows: Iterable[list[str]]) -> None:
    """Print a Markdown table, each row as soon as it is ready."""
    print("\n".join(markdown_table(head, [])), flush=True)
    for row in rows:
        print(markdown_table(row, [])[0], flush=True)
