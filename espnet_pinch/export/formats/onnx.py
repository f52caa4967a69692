"""ONNX files: they take waveforms and return logits. They normalise the waveform and make the attention mask.

``model.onnx`` computes in float32, ``model.int8.onnx`` mostly in 8 bits (``espnet_pinch/export/int8_graph.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from espnet_pinch.asr.head import CLASSIFY
from espnet_pinch.errors import UserError
from espnet_pinch.export.format import Comparison, Format, Original, register
from espnet_pinch.export.metadata import Metadata

if TYPE_CHECKING:
    import onnxruntime
    from numpy import ndarray
    from torch.onnx import ONNXProgram

    from espnet_pinch.asr.pruned import PrunedModel
    from espnet_pinch.export.check import Probe, Runner

# An ONNX file is a protobuf message, which ends at 2 GiB; weights of a larger model go to a second file.
LARGEST = 2_000_000_000
OPSET = 20
OVERFLOWS = "sums_may_overflow"  # key in the metadata of a file whose 8-bit products need processors with VNNI
FILES = {"fp32": "model.onnx", "int8": "model.int8.onnx"}  # sherpa-onnx's models have these names, too


@register
class Onnx(Format):
    name = "onnx"
    title = "ONNX file"
    library = "onnxruntime"
    place = 30
    default = True
    packages = ("onnx", "onnxruntime", "onnxscript")
    values = default_values = tuple(FILES)
    snippet = """With onnxruntime; the waveform is normalised inside, tokens and sampling rate are in the metadata:

```python
import json
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{file}")
tokens = json.loads(session.get_modelmeta().custom_metadata_map["tokens"])
inputs = {{"speech": samples[None], "lengths": np.array([len(samples)])}}  # float32 (1, samples), {rate} Hz
logits, frames = session.run(None, inputs)
best = logits[0].argmax(-1)
ids = [i for i, before in zip(best, [0, *best]) if i not in (0, before)]  # merge repeats, drop the blank
print("".join(tokens[i] for i in ids).replace("<space>", " ").replace("\u2581", " ").strip())
```"""
    snippets = {
        CLASSIFY: """With onnxruntime; the waveform is normalised inside, labels and sampling rate are in the metadata:

```python
import json
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{file}")
labels = json.loads(session.get_modelmeta().custom_metadata_map["tokens"])
inputs = {{"speech": samples[None], "lengths": np.array([len(samples)])}}  # float32 (1, samples), {rate} Hz
logits, _ = session.run(None, inputs)  # (1, 1, labels)
print(labels[logits[0, 0].argmax()])
```"""
    }

    def detect(self, path: Path) -> Path | None:
        return path if path.suffix == ".onnx" and path.is_file() else None

    def weight_files(self, found: Path) -> list[Path]:
        return [found, *sorted(found.parent.glob(f"{found.name}.data"))]

    def write(self, folder: Path, original: Original) -> dict[str, dict]:
        return write_files(folder, export_model(original.model), original.model, self.chosen(original))

    def check(self, file: Path, original: Original) -> Comparison:
        if is_int8(file):
            return check_int8(file, original.probe)
        return Comparison(check_onnx(file, original.probe))


class LogitsOfWaveform(nn.Module):
    """Frontend and head of a model, without ESPnet's other parts."""

    def __init__(self, model: PrunedModel):
        super().__init__()
        self.frontend, self.head = model.frontend, model.head

    def forward(self, speech: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        hidden, frames = self.frontend(speech, lengths)
        return self.frontend.kind.apply(self.head, hidden, frames)


def write_onnx(path: Path, model: PrunedModel) -> None:
    """Write a model as ONNX, in float32.

    Inputs: ``speech``, float32 (batch, samples), zero-padded, not normalised; ``lengths``, int64 (batch,), number of
    samples of each utterance. Outputs: ``logits``, (batch, frames, tokens); ``frames``, (batch,), number of frames of
    each utterance; of a classifier one, (batch, 1, labels). The file's metadata is that of ``Metadata``.
    """
    save(path, export_model(model))


def export_model(model: PrunedModel) -> ONNXProgram:
    """The program that ``write_onnx`` writes."""
    rate = model.frontend.processing.sampling_rate
    example = (torch.randn(2, 2 * rate), torch.tensor([2 * rate, rate]))
    axes = {"speech": {0: "batch", 1: "samples"}, "lengths": {0: "batch"}}
    return export_program(model, LogitsOfWaveform(model), example, axes, ["logits", "frames"])


def export_program(
    model: PrunedModel,
    program: nn.Module,
    example: tuple[Tensor, ...],
    axes: dict[str, dict[int, str]],
    outputs: list[str],
) -> ONNXProgram:
    """Export a module that computes a model, with the model's metadata.

    Args:
        program: holds the model's parts.
        example: its inputs.
        axes: ``{input: {dimension that varies: its name}}``, in the order of the inputs.
        outputs: their names.
    """
    from espnet_pinch.export.frame_mask import whole_frames
    from espnet_pinch.export.nan_guards import drop_nan_guards

    with whole_frames(model.frontend), model.frontend.family.exporting(model.frontend.upstream):
        exported = torch.onnx.export(
            program.eval(),
            example,
            input_names=list(axes),
            output_names=outputs,
            dynamic_shapes=axes,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert exported is not None  # with dynamo=True it always is a program
    for node in exported.model.graph.all_nodes():
        node.metadata_props.clear()  # source lines of the exporting machine
    exported.model.metadata_props.update(Metadata.of(model).strings())
    drop_nan_guards(exported.model.graph)
    return exported


def save(path: Path, program: ONNXProgram) -> None:
    weights = (value.const_value for value in program.model.graph.initializers.values())
    program.save(path, external_data=sum(weight.nbytes for weight in weights if weight is not None) > LARGEST)


def write_files(folder: Path, program: ONNXProgram, model: PrunedModel, values: Sequence[str]) -> dict[str, dict]:
    """Write an exported model into a folder, once for each of ``values``.

    Args:
        program: is changed.

    Returns: ``{file in the folder: facts}``, as ``Format.write``.
    """
    facts: dict[str, dict] = {}
    for kind, name in FILES.items():
        if kind not in values:
            continue
        if kind == "int8":
            from espnet_pinch.export.int8_graph import to_int8
            from espnet_pinch.export.int8_weights import NO_OVERFLOW, Int8Weights

            weights = Int8Weights(model)
            to_int8(program.model, weights.of)
            if weights.largest > NO_OVERFLOW:
                program.model.metadata_props[OVERFLOWS] = "true"
        save(folder / name, program)
        size = sum(file.stat().st_size for file in folder.glob(f"{name}*"))
        what = {"what": "computed in int8", "rounded": True} if kind == "int8" else {"what": "dense float32"}
        facts[name] = {**what, "bytes": size}
    return facts


def is_int8(file: Path) -> bool:
    return file.name == FILES["int8"]


def metadata_of(session: onnxruntime.InferenceSession, path: Path) -> Metadata:
    """The metadata of a file that is loaded; raises UserError, which names ``path``, if it is another program's."""
    return Metadata.parse(session.get_modelmeta().custom_metadata_map, str(path))


def check_inputs(names: Iterable[str], path: Path) -> None:
    """Raise UserError if a file does not take the inputs of ``write_onnx``'s, such as one for another program."""
    if set(names) != {"speech", "lengths"}:
        raise UserError(f"{path} has other inputs, as it is for another program: give model.onnx of that export")


def inputs_of(audio: Sequence[Tensor]) -> dict[str, ndarray]:
    """Inputs of ``write_onnx``'s file: utterances, each (samples,), in one padded batch."""
    lengths = torch.tensor([len(samples) for samples in audio])
    return {"speech": pad_sequence(list(audio), batch_first=True).numpy(), "lengths": lengths.numpy()}


def open_session(file: Path, threads: int = 0, quiet: bool = False) -> onnxruntime.InferenceSession:
    """A file in onnxruntime, on the CPU.

    Args:
        threads: that one call may use; 0 for all cores.
        quiet: without its warnings, which are for those who write graphs.
    """
    import onnxruntime

    from espnet_pinch.inference.processor import sums_overflow

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
    if quiet:
        settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
    if OVERFLOWS in session.get_modelmeta().custom_metadata_map and sums_overflow():
        settings.add_session_config_entry("session.x64quantprecision", "1")  # other products, which are slower
        session = onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
    return session


def check_onnx(path: Path, probe: Probe) -> float:
    """onnxruntime on the probe's utterances, one at a time and in one padded batch.

    Returns: the largest difference of logits.

    Raises:
        UserError: as ``Probe.compare``; or the tokens in the metadata differ.
    """
    return probe.compare_runtime("onnxruntime", _runner(path, probe))


def check_int8(path: Path, probe: Probe) -> Comparison:
    """As ``check_onnx``, for a file that rounds.

    Raises:
        UserError: as ``Probe.compare_rounded``; or the tokens in the metadata differ.
    """
    run = _runner(path, probe)
    alone = probe.compare_rounded(path.name, probe.logits_alone(run))
    padded = probe.compare_rounded(f"{path.name}, in a batch", probe.logits_padded(run), probe.padded)
    return Comparison(max(alone[0], padded[0]), alone[1])


def _runner(path: Path, probe: Probe) -> Runner:
    session = open_session(path)
    if metadata_of(session, path).tokens != probe.tokens:
        raise UserError("onnxruntime: the tokens in the file's metadata differ")
    return lambda audio: session.run(["logits", "frames"], inputs_of(audio))
