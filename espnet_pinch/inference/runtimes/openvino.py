"""OpenVINO: its own models and ONNX files on the CPU, in float32 or, where the processor has it, in bfloat16."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from espnet_pinch.asr.recogniser import Recogniser
from espnet_pinch.errors import UserError, one_line
from espnet_pinch.inference.exported import ExportedRecogniser
from espnet_pinch.inference.runtime import FLOAT32, Options, Runtime, cannot_be_read, register

if TYPE_CHECKING:
    from torch import Tensor

PRECISIONS = {FLOAT32: "f32", "bfloat16": "bf16"}


@register
class OpenVINO(Runtime):
    name = "openvino"
    place = 30
    packages = ("openvino",)
    reads = ("openvino", "onnx")

    def dtypes(self, device: str = "cpu") -> tuple[str, ...]:
        if device != "cpu":
            return ()
        from espnet_pinch.export.formats.openvino import import_quietly

        able = import_quietly().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return tuple(dtype for dtype, name in PRECISIONS.items() if dtype == FLOAT32 or name.upper() in able)

    def import_packages(self) -> None:
        from espnet_pinch.export.formats.openvino import import_quietly

        import_quietly()

    def open(self, file: Path, options: Options) -> Recogniser:
        model = CompiledModel(file, options.count_threads(), options.dtype)
        if options.dtype != FLOAT32 and not agrees(model, CompiledModel(file, options.count_threads(), FLOAT32)):
            raise UserError(
                f"openvino {version('openvino')} computes {file} wrong in {options.dtype}: choose the runtime torch, "
                f"or the dtype {FLOAT32}"
            )
        return model


def agrees(model: Recogniser, exact: Recogniser) -> bool:
    """Whether ``model`` computes what ``exact`` computes, apart from rounding, on noise."""
    from espnet_pinch.export.check import is_rounding, noise

    audio = noise(3, exact.sampling_rate)
    (got, frames), (want, wanted) = model(audio), exact(audio)
    return frames.tolist() == wanted.tolist() and is_rounding(got, want)


class CompiledModel(ExportedRecogniser):
    """A file of ``espnet_pinch.export.formats.openvino`` or ``.onnx``.

    Args:
        threads: that one call may use.
        dtype: a key of ``PRECISIONS``.
    """

    def __init__(self, file: Path, threads: int, dtype: str):
        from espnet_pinch.export.formats.onnx import check_inputs
        from espnet_pinch.export.formats.openvino import import_quietly, metadata_of

        self._dtype = dtype
        core = import_quietly().Core()
        settings = {"INFERENCE_PRECISION_HINT": PRECISIONS[dtype], "INFERENCE_NUM_THREADS": threads}
        settings |= {"PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False}  # so that others can share the cores
        try:
            model = core.read_model(file)
        except RuntimeError as error:
            raise cannot_be_read(file, "openvino", error) from None
        super().__init__(metadata_of(model, file), file)
        check_inputs((tensor.any_name for tensor in model.inputs), file)
        self._run = core.compile_model(model, "CPU", settings)

    def __call__(self, audio: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        import torch

        from espnet_pinch.export.formats.onnx import inputs_of

        # OpenVINO returns the outputs of an earlier call where one of its operators fails in a thread of its own.
        wanted = [(len(samples) - self.shortest) // self.samples_per_frame + 1 for samples in audio]
        try:
            outputs = self._run(inputs_of(audio))
            logits, frames = (torch.from_numpy(outputs[name].copy()) for name in ("logits", "frames"))
            fault = "" if frames.tolist() == wanted else f"frames {frames.tolist()}, not {wanted}"
        except RuntimeError as error:
            fault = one_line(error)[:200]
        if fault:
            raise UserError(f"openvino cannot compute {self.file} in {self._dtype}: {fault}; export the model again")
        return self.checked(logits), frames
