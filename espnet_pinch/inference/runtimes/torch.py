"""torch: the model as it was trained, on the CPU or a GPU."""

from __future__ import annotations

from pathlib import Path

from espnet_pinch.asr.recogniser import Recogniser
from espnet_pinch.export.format import Format
from espnet_pinch.inference.runtime import DTYPES, FLOAT32, Options, Runtime, register


@register
class Torch(Runtime):
    name = "torch"
    place = 10
    reads = ()
    on_gpu = True

    def dtypes(self, device: str = "cpu") -> tuple[str, ...]:
        import torch

        if device == "cuda":
            return DTYPES if torch.cuda.is_available() else ()
        return (FLOAT32, "bfloat16")

    def loads(self, fmt: Format) -> bool:
        return bool(fmt.accepts)

    def import_packages(self) -> None:
        import espnet_pinch.export.model  # noqa: F401  (with ESPnet and transformers)

    def open(self, file: Path, options: Options) -> Recogniser:
        raise AssertionError("torch opens no format as it is")

    def load(self, fmt: Format, found: Path, options: Options) -> Recogniser:
        """As ``Runtime.load``; torch's number of threads is that of the whole process."""
        import torch

        from espnet_pinch.asr.recogniser import TorchRecogniser
        from espnet_pinch.export.load import read_finite

        self.check(fmt, found, options)
        if options.threads:
            torch.set_num_threads(options.threads)
        model = read_finite(fmt, found).to(options.device)
        if options.dtype != FLOAT32:
            from espnet_pinch.inference.rounding import to_dtype

            exact = to_dtype(model, getattr(torch, options.dtype))
            if exact:
                options.say(f"note: torch computes {', '.join(exact)} wrong in {options.dtype}; float32 is used there")
        return TorchRecogniser(model, options.device)
