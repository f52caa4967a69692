"""The OpenVINO model (``openvino/model.xml`` and ``.bin``), converted from the ONNX file, with the same inputs."""

from __future__ import annotations

import dataclasses
import importlib
import sys
import tempfile
from pathlib import Path
from types import ModuleType

from espnet_pinch.asr.head import CLASSIFY
from espnet_pinch.errors import UserError
from espnet_pinch.export.format import Comparison, Format, Original, register
from espnet_pinch.export.formats.onnx import inputs_of, write_onnx
from espnet_pinch.export.metadata import Metadata

KEY = "espnet_pinch"
EXACT = {"INFERENCE_PRECISION_HINT": "f32"}  # on some processors the default is bfloat16


@register
class OpenVINO(Format):
    name = "openvino"
    title = "OpenVINO model"
    library = "openvino"
    packages = ("openvino", "onnxscript")
    extra = "openvino"
    untested = "OpenVINO's devices other than the CPU, and its inference in less than float32."
    snippet = """With openvino; the waveform is normalised inside, the model's information has tokens and sampling rate:

```python
import json
import numpy as np
import openvino

model = openvino.Core().read_model("{file}")
tokens = json.loads(model.get_rt_info(["espnet_pinch", "tokens"]).astype(str))
run = openvino.compile_model(model, "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})
inputs = {{"speech": samples[None], "lengths": np.array([len(samples)])}}  # float32 (1, samples), {rate} Hz
best = run(inputs)["logits"][0].argmax(-1)
ids = [i for i, before in zip(best, [0, *best]) if i not in (0, before)]  # merge repeats, drop the blank
print("".join(tokens[i] for i in ids).replace("<space>", " ").replace("\u2581", " ").strip())
```"""
    snippets = {
        CLASSIFY: """With openvino; it normalises the waveform, the model's information has labels and sampling rate:

```python
import json
import numpy as np
import openvino

model = openvino.Core().read_model("{file}")
labels = json.loads(model.get_rt_info(["espnet_pinch", "tokens"]).astype(str))
run = openvino.compile_model(model, "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})
inputs = {{"speech": samples[None], "lengths": np.array([len(samples)])}}  # float32 (1, samples), {rate} Hz
print(labels[run(inputs)["logits"][0, 0].argmax()])
```"""
    }

    def detect(self, path: Path) -> Path | None:
        return path if path.suffix == ".xml" and path.is_file() else None

    def weight_files(self, found: Path) -> list[Path]:
        return [found, found.with_suffix(".bin")]

    def write(self, folder: Path, original: Original) -> dict[str, dict]:
        openvino = import_quietly()

        file = "openvino/model.xml"
        with tempfile.TemporaryDirectory() as other:
            write_onnx(Path(other) / "model.onnx", original.model)
            model = openvino.Core().read_model(Path(other) / "model.onnx")
            for key, value in Metadata.of(original.model).strings().items():
                model.set_rt_info(value, [KEY, key])
            openvino.save_model(model, folder / file, compress_to_fp16=False)
        size = sum(part.stat().st_size for part in self.weight_files(folder / file))
        return {file: {"what": "dense float32", "bytes": size}}

    def check(self, file: Path, original: Original) -> Comparison:
        """openvino on the probe's utterances, one at a time and in one padded batch."""
        openvino = import_quietly()

        core = openvino.Core()
        model = core.read_model(file)
        if metadata_of(model, file).tokens != original.probe.tokens:
            raise UserError("openvino: the tokens in the model's information differ")
        compiled = core.compile_model(model, "CPU", EXACT)

        def run(audio):
            outputs = compiled(inputs_of(audio))
            return outputs["logits"], outputs["frames"]

        return Comparison(original.probe.compare_runtime("openvino", run))


def metadata_of(model, path: Path) -> Metadata:
    """The metadata of an ``openvino.Model``; raises UserError, which names ``path``, if it is another program's."""
    keys = [field.name for field in dataclasses.fields(Metadata)]
    block = "framework" if path.suffix == ".onnx" else KEY  # where OpenVINO puts an ONNX file's own
    found = {key: model.get_rt_info([block, key]).astype(str) for key in keys if model.has_rt_info([block, key])}
    return Metadata.parse(found, str(path))


def import_quietly() -> ModuleType:
    """Import openvino without its telemetry, which would use the network."""
    sender = "openvino_telemetry"
    known = sys.modules.get(sender)
    # None stands for a module that is not installed, which openvino accepts; typeshed does not know it.
    sys.modules[sender] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("openvino")
    finally:
        sys.modules.pop(sender)
        if known is not None:
            sys.modules[sender] = known
