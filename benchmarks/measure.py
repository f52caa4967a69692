"""Shared parts of the benchmarks: options, timing of calls in turns, peak memory, sizes of models, tables."""

import argparse
import logging
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from espnet_pinch.results.experiment import markdown_table

# The default configuration of transformers' Wav2Vec2Config is wav2vec2-base; "tiny" is for a smoke test.
SIZES = {
    "base": {},
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


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


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
    print(f"Machine: {machine(getattr(args, 'device', 'cpu'))}; {time.strftime('%Y-%m-%d')}.\n", flush=True)
    return args


def machine(device: str = "cpu") -> str:
    """Processor, threads and versions, on one line."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    info = dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)
    name = info.get("model name", platform.processor())
    has = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in info.get("flags", "").split()]
    gpu = f", {torch.cuda.get_device_name()}" if device == "cuda" else ""
    threads = f"{os.cpu_count()} cores, {torch.get_num_threads()} thread(s), load {os.getloadavg()[0]:.1f}"
    return f"{name} ({', '.join(has)}){gpu}, {threads}; Python {platform.python_version()}, torch {torch.__version__}"


def in_turns(
    sides: Mapping[str, Callable], repeats: int, clock: str = "wall", warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds of the calls of every side. The sides take turns, so that other load on the machine affects all alike."""
    now = CLOCKS[clock]
    seconds = {name: [] for name in sides}
    for turn in range(-warm_up, repeats):
        for name, run in sides.items():
            begin = now()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= 0:
                seconds[name].append(now() - begin)
    return seconds


def ratio(seconds: list[float], base: list[float]) -> float:
    """``seconds`` as a multiple of ``base``: the median of the ratios of the rounds."""
    return statistics.median(a / b for a, b in zip(seconds, base, strict=True))


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
