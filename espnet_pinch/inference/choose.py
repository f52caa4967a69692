"""The fastest runtime for a model on this machine, measured once."""

from __future__ import annotations

import hashlib
import platform
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

from espnet_pinch.asr.history import device_name
from espnet_pinch.asr.macs import SECONDS
from espnet_pinch.asr.recogniser import Recogniser
from espnet_pinch.errors import UserError
from espnet_pinch.export.check import noise
from espnet_pinch.export.format import Format
from espnet_pinch.files import read_json, write_json
from espnet_pinch.inference.cache import kept
from espnet_pinch.inference.runtime import Options, Runtime, all_runtimes, find_runtime
from espnet_pinch.inference.timing import in_turns

REPEATS = 3
FILE = "times.json"


def fastest(fmt: Format, found: Path, options: Options) -> Recogniser:
    """The model in the runtime that decodes 10 s of noise in the shortest time, and a line that says so.

    What was measured is kept beside the model. It is measured again after a change of the model, the versions, the
    machine, or ``options``.

    Raises:
        UserError: no runtime that is installed can do what the options say; or as ``Runtime.load``.
    """
    candidates, reasons = able(fmt, found, options)
    if not candidates:
        raise UserError(f"no runtime can run {found} so: {'; '.join(reasons)}")
    new = False

    def build(folder: Path) -> None:
        nonlocal new
        new = True
        write_json(folder / FILE, measure(candidates, fmt, found, options))

    machine = hashlib.sha256(f"{platform.node()} {device_name()}".encode()).hexdigest()[:8]
    settings = [f"{options.count_threads()}threads", options.dtype, options.device, machine]
    packages = dict.fromkeys(["torch", *(name for runtime in candidates for name in runtime.packages)])
    versions = [f"{name}{version(name)}" for name in packages]
    times = read_json(kept(fmt.files(found), "auto", [*settings, *versions], build, options.say) / FILE)
    best = min(times, key=times.__getitem__)
    shown = ", ".join(f"{name} {taken:.3g} s" for name, taken in times.items())
    options.say(f"note: runtime {best}: {SECONDS} s of audio take {shown}{'' if new else ' (measured before)'}")
    return find_runtime(best).load(fmt, found, options)


def able(fmt: Format, found: Path, options: Options) -> tuple[list[Runtime], list[str]]:
    """The runtimes that can run a model as ``options`` say, and why the others cannot."""
    candidates, reasons = [], []
    for runtime in all_runtimes().values():
        try:
            runtime.check(fmt, found, options)
        except UserError as error:
            reasons.append(str(error))
        else:
            candidates.append(runtime)
    return candidates, reasons


def measure(candidates: list[Runtime], fmt: Format, found: Path, options: Options) -> dict[str, float]:
    """``{runtime: seconds for 10 s of audio}``, the best of ``REPEATS``."""
    loaded = {runtime.name: runtime.load(fmt, found, options) for runtime in candidates}
    rate = next(iter(loaded.values())).sampling_rate
    audio = torch.cat(noise(4, rate))[: SECONDS * rate]
    taken = in_turns({name: partial(run, [audio]) for name, run in loaded.items()}, REPEATS)
    return {name: min(times) for name, times in taken.items()}
