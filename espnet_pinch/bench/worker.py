"""The process of one side: it answers calls, a line of JSON each, on stdin and stdout.

Run by ``espnet_pinch.bench.side.Worker``.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
import time
import warnings
from typing import Any

from espnet_pinch.bench.machine import peak_bytes
from espnet_pinch.bench.side import Side
from espnet_pinch.errors import UserError
from espnet_pinch.explain import explain


class Answers:
    """What can be asked; each method returns JSON."""

    def __init__(self, side: Side):
        import torch

        from espnet_pinch.export.load import locate
        from espnet_pinch.inference.runtime import find_runtime

        self.side = side
        self.fmt, self.found = locate(side.model)
        self.runtime = find_runtime(side.runtime)
        torch.set_num_threads(side.threads)

    def load(self) -> dict:
        """``seconds`` from the files to a model that can decode, and ``bytes`` that the process held before.

        Python has imported the libraries before. The model is in the cache if it had to be compiled.
        """
        self.runtime.import_packages()
        held = self.peak()
        begin = time.perf_counter()
        self.recogniser = self.runtime.load(self.fmt, self.found, self.side.options(say=lambda line: None))
        return {"seconds": time.perf_counter() - begin, "bytes": held}

    def decode(self, batch: int, seconds: float, clock: str) -> float:
        """Seconds that the logits of a batch of noise take; on a GPU by CUDA's events."""
        samples = int(seconds * self.recogniser.sampling_rate)
        if samples < self.recogniser.shortest:
            raise UserError(f"{seconds:g} s of audio, {samples} samples, are too few for one frame")
        audio = _noise(batch, samples)
        if self.side.device == "cuda":
            import torch

            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            self.recogniser(audio)
            end.record()
            torch.cuda.synchronize()
            return start.elapsed_time(end) / 1000
        from espnet_pinch.inference.timing import CLOCKS, taken

        return taken(functools.partial(self.recogniser, audio), CLOCKS[clock])

    def peak(self) -> int:
        """Bytes: the most that the process has held; on a GPU the most that torch has held there."""
        if self.side.device == "cuda":
            import torch

            return torch.cuda.max_memory_allocated()
        return peak_bytes()

    def transcribe(self, data: str, out: str, batch: int) -> None:
        """Write the transcripts of a data directory to ``out/text``."""
        from espnet_pinch.asr.decode import decode_data_dir

        decode_data_dir(self.recogniser, data, out, batch, self.side.device)


@functools.cache
def _noise(batch: int, samples: int) -> list:
    import torch

    generator = torch.Generator().manual_seed(0)
    return [0.1 * torch.randn(samples, generator=generator) for _ in range(batch)]


def main() -> None:
    side = Side(**json.loads(sys.argv[1]))
    answers_to = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print does not go between the answers
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    answers: Answers | None = None
    for line in sys.stdin:
        what, arguments = json.loads(line)
        answer: dict[str, Any]
        try:
            answers = answers or Answers(side)
            answer = {"value": getattr(answers, what)(**arguments)}
        except Exception as error:
            reason = explain(error)
            if reason is None:
                raise
            answer = {"error": reason}
        print(json.dumps(answer), file=answers_to, flush=True)


if __name__ == "__main__":
    main()
