"""Measure models in runtimes: each side alone first, then all in turns."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from espnet_pinch.asr.head import ASR
from espnet_pinch.bench.machine import free_bytes, machine
from espnet_pinch.bench.side import Side, Worker
from espnet_pinch.data.kaldi_dir import read_data_dir, read_table
from espnet_pinch.errors import UserError
from espnet_pinch.export.load import locate, read_finite
from espnet_pinch.export.metadata import Metadata
from espnet_pinch.export.model import count_layers
from espnet_pinch.inference.exported import ExportedRecogniser
from espnet_pinch.inference.runtime import FLOAT32, Options, Runtime, all_runtimes, find_runtime, usual_runtime
from espnet_pinch.inference.timing import ratio, take_turns
from espnet_pinch.results.records import SetScore, Significance
from espnet_pinch.results.scoring import score_files
from espnet_pinch.results.significance import compare_files
from espnet_pinch.results.unit import Unit, unit_of

MEMORY = 0.7  # fraction of the free memory that sides may take together


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be measured.

    Attributes:
        models: paths; the first one is what all are compared with.
        runtimes: names; all that are there if empty.
        dtypes: of weights and products; all that a runtime has if empty.
        batches, seconds: utterances and length of each; every combination is timed.
        repeats: rounds that count.
        threads: of the CPU.
        device: "cpu" or "cuda".
        clock: of ``espnet_pinch.inference.timing.CLOCKS``; without effect on a GPU.
        data: Kaldi data directories to transcribe.
        decode_batch: utterances in a batch of these.
    """

    models: Sequence[Path]
    runtimes: Sequence[str] = ()
    dtypes: Sequence[str] = ()
    batches: Sequence[int] = (1, 8)
    seconds: Sequence[float] = (1, 10, 30)
    repeats: int = 5
    threads: int = 1
    device: str = "cpu"
    clock: str = "wall"
    data: Sequence[Path] = ()
    decode_batch: int = 8

    def __post_init__(self):
        counts = [self.repeats, self.threads, self.decode_batch, *self.batches]
        if min(counts) < 1 or not all(0 < seconds < math.inf for seconds in self.seconds):
            raise UserError("numbers of rounds, threads, batches and seconds must be positive and finite")
        if len({d.name for d in self.data}) < len(self.data):
            raise UserError("data directories must have different names")


@dataclasses.dataclass
class Size:
    """A model, whatever computes it.

    Attributes:
        format: its title.
        bytes: of the files with its weights.
        parameters, zeros: of the whole model.
        pruned: zeros in gated layers.
        macs: multiplications of 10 s of audio, by part, without the head.
        task: of the model.
    """

    format: str
    bytes: int
    parameters: int
    zeros: int
    pruned: int
    macs: dict[str, float]
    task: str = ASR


@dataclasses.dataclass
class Timing:
    """Seconds of one side for one batch.

    Attributes:
        batch, seconds: utterances, and length of each in seconds.
        times: of the rounds.
        faster: how many times as fast as the first side, the median of the rounds.
        peak_bytes: the most that the process has held when it was done with this batch and with smaller ones.
    """

    batch: int
    seconds: float
    times: list[float] = dataclasses.field(default_factory=list)
    faster: float = 0.0
    peak_bytes: int = 0

    @property
    def best(self) -> float:
        return min(self.times)

    @property
    def median(self) -> float:
        return statistics.median(self.times)

    @property
    def rtf(self) -> float:
        """The real-time factor: seconds for a second of audio."""
        return self.best / (self.batch * self.seconds)


@dataclasses.dataclass
class Measured:
    """What was measured of a side.

    Attributes:
        load_seconds: from the files to a model that can decode, once.
        held_bytes: of the process with its libraries, before that.
        timings: of each batch.
        wer: scores by data directory.
        significance: tests against the first side, by data directory; empty for the first side.
        texts_differing: utterances whose text is not that of the first side, by data directory.
    """

    side: Side
    load_seconds: float
    held_bytes: int
    timings: list[Timing]
    wer: dict[str, SetScore] = dataclasses.field(default_factory=dict)
    significance: dict[str, Significance] = dataclasses.field(default_factory=dict)
    texts_differing: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def peak_bytes(self) -> int:
        return max(timing.peak_bytes for timing in self.timings)


@dataclasses.dataclass
class Comparison:
    """All that ``compare`` has found.

    Attributes:
        machine: what it was measured on.
        sizes: by model.
        sides: the first is what the others are compared with.
        left_out: ``{side: reason}``.
    """

    request: Request
    machine: str
    sizes: dict[str, Size]
    sides: list[Measured]
    left_out: dict[str, str]


def compare(request: Request, say: Callable[[str], None]) -> Comparison:
    """Measure every model in every runtime and dtype that it can run in.

    Each side is a process. First each is measured while the others wait: load time, peak memory, transcripts. Then they
    take turns, as many at a time as the memory holds, the first side always among them.

    Args:
        say: is called with a line before each step.

    Raises:
        FileNotFoundError, UserError: as ``espnet_pinch.load``; or the first model runs nowhere.
    """
    for data in request.data:
        read_data_dir(data)
    sizes = {}
    for model in request.models:
        say(f"bench: size of {model}")
        sizes[str(model)] = size_of(model)
    if request.data and len({size.task for size in sizes.values()}) > 1:
        raise UserError(
            "--data compares models of one task, and these are recognisers and classifiers: leave --data out"
        )
    wanted, left_out = sides_of(request)
    found: list[Measured] = []
    waiting: dict[int, Worker] = {}  # by place in ``found``
    room = MEMORY * free_bytes()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        for number, side in enumerate(wanted, 1):
            say(f"bench: {number} of {len(wanted)}: {side}")
            out = Path(folder) / str(number)
            worker = stack.enter_context(Worker(side))
            try:
                compile_for(side, say)
                measured = alone(worker, request, out)
            except UserError as error:
                left_out[str(side)] = str(error)
                worker.close()
                continue
            found.append(measured)
            first = Path(folder) / str(wanted.index(found[0].side) + 1)
            score(measured, request, out, first, unit_of(sizes[side.model].task))
            if waiting and sum(found[i].peak_bytes for i in waiting) + measured.peak_bytes > room:
                worker.close()
            else:
                waiting[len(found) - 1] = worker
        if not found or found[0].side.model != str(request.models[0]):
            reasons = "; ".join(dict.fromkeys(left_out.values()))
            raise UserError(f"{request.models[0]} runs in none of the runtimes: {reasons}")
        say(f"bench: {len(waiting)} sides in turns")
        in_turns([(found[i], worker) for i, worker in waiting.items()], request)
        for i in list(waiting)[1:]:
            waiting[i].close()
        for together in waves(found[0], [m for i, m in enumerate(found) if i not in waiting], room):
            say(f"bench: {1 + len(together)} sides in turns")
            with contextlib.ExitStack() as wave:
                pairs = [(measured, wave.enter_context(Worker(measured.side))) for measured in together]
                for _, worker in pairs:
                    worker.ask("load")
                in_turns([(found[0], waiting[0]), *pairs], request)
    return Comparison(request, machine(request.threads, request.device), sizes, found, left_out)


def size_of(model: Path) -> Size:
    """Parameters, multiplications and bytes of a model, whatever its runtime."""
    fmt, path = locate(model)
    pruned = 0
    if fmt.accepts:
        loaded = read_finite(fmt, path)
        pruned = sum(layer["pruned"] for layer in count_layers(loaded).values())
        metadata = Metadata.of(loaded)
    else:
        recogniser = usual_runtime(fmt).load(fmt, path, Options(threads=1))
        assert isinstance(recogniser, ExportedRecogniser)  # what torch does not read has been exported
        metadata = recogniser.metadata
    return Size(
        format=fmt.title,
        bytes=sum(file.stat().st_size for file in fmt.weight_files(path)),
        parameters=metadata.parameters,
        zeros=metadata.zeros,
        pruned=pruned,
        macs=metadata.macs,
        task=metadata.task,
    )


def compile_for(side: Side, say: Callable[[str], None]) -> None:
    """Compile a model if its runtime needs that, so that the side's process finds it in the cache."""
    runtime, (fmt, found) = find_runtime(side.runtime), locate(side.model)
    if runtime.reads and fmt.name not in runtime.reads:
        runtime.compiled(fmt, found, say)


def sides_of(request: Request) -> tuple[list[Side], dict[str, str]]:
    """The sides to measure, models in the order of the request, and ``{what is left out: reason}``."""
    wanted, left_out = [], {}
    known = all_runtimes()
    for name in request.runtimes:
        if name not in known:
            raise UserError(f"unknown runtime {name!r}; there is: {', '.join(known)}")
    for model in map(str, request.models):
        fmt, found = locate(model)
        for name in request.runtimes or known:
            for dtype in request.dtypes or _dtypes(known[name], request.device):
                side = Side(model, name, dtype, request.device, request.threads)
                try:
                    known[name].check(fmt, found, side.options())
                    wanted.append(side)
                except UserError as error:
                    left_out[str(side)] = str(error)
    return wanted, left_out


def _dtypes(runtime: Runtime, device: str) -> Sequence[str]:
    return (() if runtime.missing() else runtime.dtypes(device)) or (FLOAT32,)


def alone(worker: Worker, request: Request, out: Path) -> Measured:
    """What is measured of a side by itself. Its transcripts go to ``out/SET/text``. Smaller batches come first."""
    loaded = worker.ask("load")
    timings = [Timing(batch, seconds) for batch in request.batches for seconds in request.seconds]
    for timing in sorted(timings, key=lambda timing: timing.batch * timing.seconds):
        worker.ask("decode", batch=timing.batch, seconds=timing.seconds, clock=request.clock)
        timing.peak_bytes = worker.ask("peak")
    for data in request.data:
        worker.ask("transcribe", data=str(data), out=str(out / data.name), batch=request.decode_batch)
    return Measured(worker.side, loaded["seconds"], loaded["bytes"], timings)


def score(measured: Measured, request: Request, out: Path, first: Path, unit: Unit) -> None:
    """Compare transcripts with the references and with those of the first side."""
    for data in request.data:
        name, own, theirs = data.name, out / data.name / "text", first / data.name / "text"
        measured.wer[name] = score_files(data / "text", own, unit)
        if own != theirs:
            measured.significance[name] = compare_files(data / "text", theirs, own, unit)
            texts, others = read_table(own), read_table(theirs)
            measured.texts_differing[name] = sum(texts[id_] != others[id_] for id_ in texts)


def waves(first: Measured, others: Sequence[Measured], room: float) -> list[list[Measured]]:
    """Groups of ``others`` that fit into ``room`` bytes together with ``first``; none is empty."""
    groups: list[list[Measured]] = []
    for measured in others:
        held = sum(m.peak_bytes for m in [first, *groups[-1]]) if groups else room
        if held + measured.peak_bytes > room:
            groups.append([])
        groups[-1].append(measured)
    return groups


def in_turns(together: Sequence[tuple[Measured, Worker]], request: Request) -> None:
    """Time sides in turns, in every batch, and note how many times as fast as the first each is."""
    for place, shape in enumerate(together[0][0].timings):
        arguments = {"batch": shape.batch, "seconds": shape.seconds, "clock": request.clock}
        calls = {str(i): partial(worker.ask, "decode", **arguments) for i, (_, worker) in enumerate(together)}
        taken = list(take_turns(calls, request.repeats).values())
        for (measured, _), times in zip(together, taken):
            timing = measured.timings[place]
            timing.times += times
            timing.faster = 1 / ratio(times, taken[0])
