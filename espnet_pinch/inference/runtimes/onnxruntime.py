"""onnxruntime: ONNX files on the CPU, in float32, or in 8 bits where the file says so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from espnet_pinch.asr.recogniser import Recogniser
from espnet_pinch.errors import UserError, one_line
from espnet_pinch.inference.exported import ExportedRecogniser
from espnet_pinch.inference.runtime import Options, Runtime, cannot_be_read, register

if TYPE_CHECKING:
    from torch import Tensor


@register
class OnnxRuntime(Runtime):
    name = "onnxruntime"
    place = 20
    packages = ("onnxruntime",)
    reads = ("onnx",)

    def open(self, file: Path, options: Options) -> Recogniser:
        return Session(file, options.count_threads())


class Session(ExportedRecogniser):
    """A file of ``espnet_pinch.export.formats.onnx``.

    Args:
        threads: that one call may use.
    """

    def __init__(self, file: Path, threads: int):
        from espnet_pinch.export.formats.onnx import check_inputs, metadata_of, open_session

        try:
            session = open_session(file, threads, quiet=True)
        except MemoryError:
            raise
        except Exception as error:  # onnxruntime's errors have no base class of their own
            raise cannot_be_read(file, "onnxruntime", error) from None
        super().__init__(metadata_of(session, file), file)
        check_inputs((tensor.name for tensor in session.get_inputs()), file)
        self._session = session

    def __call__(self, audio: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        import torch

        from espnet_pinch.export.formats.onnx import inputs_of

        try:
            logits, frames = self._session.run(["logits", "frames"], inputs_of(audio))
        except MemoryError:
            raise
        except Exception as error:
            raise UserError(
                f"onnxruntime cannot compute {self.file}: {one_line(error)[:200]}; export the model again"
            ) from None
        return self.checked(torch.from_numpy(logits)), torch.from_numpy(frames)
