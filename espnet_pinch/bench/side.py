"""One side of a comparison: a model in a runtime, and the process that it runs in."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from espnet_pinch.errors import UserError
from espnet_pinch.inference.runtime import FLOAT32, Options


@dataclasses.dataclass(frozen=True)
class Side:
    """A model in a runtime.

    Attributes:
        model: what ``espnet_pinch.load`` takes.
        runtime: name of a runtime.
        dtype: one of ``espnet_pinch.inference.runtime.DTYPES``.
        device: "cpu" or "cuda".
        threads: of the CPU.
    """

    model: str
    runtime: str
    dtype: str = FLOAT32
    device: str = "cpu"
    threads: int = 1

    def __str__(self) -> str:
        return f"{self.model}, {self.runtime}, {self.dtype}"

    def options(self, **more: Any) -> Options:
        return Options(threads=self.threads, dtype=self.dtype, device=self.device, **more)


class Worker:
    """A process of its own, so that load time and peak memory are the side's alone."""

    def __init__(self, side: Side):
        self.side = side
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (libraries print notes; they are shown if it crashes)
        environment = {**os.environ, "OMP_NUM_THREADS": str(side.threads)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "espnet_pinch.bench.worker", json.dumps(dataclasses.asdict(side))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()  # type: ignore[union-attr]  # at the end of its input the worker ends
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def ask(self, what: str, **arguments: Any) -> Any:
        """The worker's answer to a call of ``espnet_pinch.bench.worker.Answers``.

        Raises:
            UserError: the model cannot be run so, or memory is full.
            RuntimeError: the worker has crashed; the message has what it printed.
        """
        line = ""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps([what, arguments]) + "\n")  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]
            line = self._process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            status = self._process.wait()
            if status == -signal.SIGKILL:
                raise UserError(f"{self.side}: the process was killed, perhaps as memory is full: try smaller batches")
            self._errors.seek(0)
            printed = self._errors.read().decode(errors="replace")
            raise RuntimeError(f"{self.side}: the process has ended with status {status}:\n{printed}")
        answer = json.loads(line)
        if "error" in answer:
            raise UserError(answer["error"])
        return answer["value"]


def shown(model: str | os.PathLike, among: Iterable[str | os.PathLike] = ()) -> str:
    """How a model is named in tables: the last two parts of its path, or as many as no other of ``among`` ends with."""
    parts = Path(model).parts
    others = {Path(other).parts for other in among} - {parts}
    tails = (parts[-count:] for count in range(2, len(parts) + 1))
    own = next((tail for tail in tails if all(other[-len(tail) :] != tail for other in others)), parts)
    return str(Path(*own))
