"""Time models whose heads, channels and filters were cut beside the unpruned one: torch, onnxruntime and OpenVINO.

One utterance at a time. The weights are random, every unit's times a random factor, so that the units of a group differ
in size, as those of a trained model do. ``pinch`` with ``unit: structured`` and ``conv: true`` lands on the target and
is folded, as at the end of a run. In each runtime all models take turns.
"""

import argparse
import copy
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from measure import in_turns, parser, print_table, ratio, rounds, start
from models import make_model

from espnet_pinch import Pinch
from espnet_pinch.asr.macs import count_macs
from espnet_pinch.asr.model import PruningASRModel
from espnet_pinch.export.formats.onnx import LogitsOfWaveform, write_onnx
from espnet_pinch.export.formats.openvino import import_quietly

Inputs = Mapping[str, np.ndarray]
Call = Callable[[Inputs], object]


@torch.no_grad()
def cut_model(dense: PruningASRModel, target: float) -> PruningASRModel:
    """A copy with the fraction ``target`` of the multiplications saved."""
    model = copy.deepcopy(dense)
    upstream, family = model.frontend.upstream, model.frontend.family
    pinch = Pinch(target_macs=target, layers=family.layers, unit="structured", conv=True)
    pinch.attach(upstream, total_steps=1, structure=family.structure(upstream))
    for gate in pinch.pinched.gates.values():
        factors = torch.randn(gate.groups[0].units).exp()
        for slices, weight in zip(gate.slices[0], gate.weights[0]):
            weight.mul_(slices.spread(factors, weight))
    pinch.land()
    pinch.fold()
    return model


def in_torch(model: PruningASRModel, dtype: torch.dtype) -> Call:
    whole = LogitsOfWaveform(copy.deepcopy(model)).eval()

    @torch.inference_mode()
    def call(inputs: Inputs) -> object:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            return whole(torch.from_numpy(inputs["speech"]), torch.from_numpy(inputs["lengths"]))

    return call


def in_onnxruntime(file: Path, threads: int) -> Call:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, inputs)


def in_openvino(file: Path, threads: int, precision: str) -> Call:
    options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    return import_quietly().Core().compile_model(file, "CPU", options)


def measured(args: argparse.Namespace) -> Iterator[list[str]]:
    """Rows of the table."""
    dense = make_model(args.size)
    models = {"unpruned": dense, **{f"{100 * t:g} % of MACs saved": cut_model(dense, t) for t in args.targets}}
    samples = 16000 * args.seconds
    macs = {name: count_macs(model.frontend.upstream, samples)[""] for name, model in models.items()}
    sizes = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    speech = np.random.default_rng(0).standard_normal((1, samples), dtype=np.float32)
    inputs = {"speech": speech, "lengths": np.array([samples])}
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{i}.onnx" for i, name in enumerate(models)}
        for name, model in models.items():
            write_onnx(files[name], model)
        runtimes: dict[str, Callable[[str], Call]] = {
            "torch float32": lambda name: in_torch(models[name], torch.float32),
            "torch bfloat16 (autocast)": lambda name: in_torch(models[name], torch.bfloat16),
            "onnxruntime float32": lambda name: in_onnxruntime(files[name], args.threads),
            "OpenVINO float32": lambda name: in_openvino(files[name], args.threads, "f32"),
            "OpenVINO bfloat16": lambda name: in_openvino(files[name], args.threads, "bf16"),
        }
        for runtime, prepare in runtimes.items():
            seconds = in_turns({name: partial(prepare(name), inputs) for name in models}, args.repeats, args.clock, 2)
            for name, taken in seconds.items():
                yield [
                    runtime,
                    name,
                    f"{macs[name] / 1e9:.1f}",
                    f"{sizes[name] / 1e6:.1f}",
                    f"{min(taken):.3f}",
                    f"{statistics.median(taken):.3f}",
                    f"{1 / ratio(taken, seconds['unpruned']):.2f}",
                ]


def main(arguments: list[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--seconds", type=int, default=10, help="length of the audio [10]")
    made.add_argument("--targets", type=float, nargs="+", default=[0.5, 2 / 3], metavar="TARGET")
    args = start(made, arguments)
    print(f"wav2vec2-{args.size}, {args.seconds} s of audio, {rounds(args)}:\n")
    head = ["runtime", "model", "G MACs", "M parameters", "min s", "median s", "times as fast as unpruned"]
    print_table(head, measured(args))


if __name__ == "__main__":
    main()
