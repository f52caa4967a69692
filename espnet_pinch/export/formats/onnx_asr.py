"""The folder for onnx-asr, as it loads wav2vec2 CTC models: ``model.onnx``, ``model.int8.onnx``, vocabulary, settings.

It passes padded waveforms of 16 kHz and their lengths, and takes log-probabilities. It may count more frames than an
utterance has; the graph says blank there.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from espnet_pinch.errors import UserError
from espnet_pinch.export.format import Comparison, Format, Original, register
from espnet_pinch.export.formats.onnx import (
    FILES,
    LogitsOfWaveform,
    export_program,
    inputs_of,
    is_int8,
    open_session,
    write_files,
)
from espnet_pinch.export.formats.sherpa_onnx import symbols
from espnet_pinch.files import write_json

if TYPE_CHECKING:
    from espnet_pinch.asr.pruned import PrunedModel

FOLDER = "onnx_asr"
MODEL = "wav2vec2-ctc"
RATE = 16000  # Hz, what onnx-asr resamples to
BLANK = "<blk>"
NEVER = -1e4  # the log-probability of what cannot be; finite, as runtimes compute with it


@register
class OnnxAsr(Format):
    name = "onnx_asr"
    title = "onnx-asr folder"
    library = "onnx-asr"
    packages = ("onnx_asr", "onnx", "onnxruntime", "onnxscript")
    extra = "onnx-asr"
    values = default_values = tuple(FILES)
    untested = (
        "onnx-asr on other systems than this one, and on a GPU; models quantised in training on x86 processors without "
        "VNNI, where sums of 8-bit products overflow."
    )
    snippet = """With onnx-asr (`quantization="int8"` for `model.int8.onnx`), which takes WAV files, too. Its own `text`
drops the space before an apostrophe that begins a word:

```python
import onnx_asr

model = onnx_asr.load_model("wav2vec2-ctc", "onnx_asr").with_timestamps()
result = model.recognize(samples, sample_rate={rate})  # float32 (samples,), in [-1, 1]
print(" ".join("".join(result.tokens).split()))
```"""

    def require(self) -> None:
        super().require()
        from importlib.metadata import version
        from typing import get_args

        from onnx_asr.loader import AsrTypeNames

        if MODEL not in get_args(AsrTypeNames):
            raise UserError(
                f"the format {self.name} needs an onnx-asr that knows {MODEL} models, and {version('onnx-asr')} does "
                "not: install a later release, or its development branch"
            )

    def write(self, folder: Path, original: Original) -> dict[str, dict]:
        model, place = original.model, folder / FOLDER
        rate = model.frontend.processing.sampling_rate
        if rate != RATE:
            raise UserError(f"onnx-asr takes {MODEL} models of {RATE} Hz, and this one is of {rate} Hz")
        place.mkdir()
        names = symbols(model.token_list, self.library)
        names[model.blank_id] = BLANK
        vocabulary = place / "vocab.txt"
        vocabulary.write_text("".join(f"{name} {i}\n" for i, name in enumerate(names)), encoding="utf-8")
        stride = model.frontend.family.stride(model.frontend.upstream.config)
        write_json(place / "config.json", {"model_type": MODEL, "subsampling_factor": stride})
        example = (torch.randn(2, 2 * RATE), torch.tensor([2 * RATE, RATE]))
        axes = {"input_values": {0: "batch", 1: "samples"}, "input_lengths": {0: "batch"}}
        program = export_program(model, LogProbabilities(model), example, axes, ["logprobs"])
        files = write_files(place, program, model, self.chosen(original))
        size = sum((place / name).stat().st_size for name in ("vocab.txt", "config.json"))
        return {f"{FOLDER}/{name}": {**facts, "bytes": facts["bytes"] + size} for name, facts in files.items()}

    def check(self, file: Path, original: Original) -> Comparison:
        """onnx-asr's tokens, and, as it gives no logits, onnxruntime's; one utterance at a time, and in one batch."""
        import onnx_asr

        probe, session = original.probe, open_session(file)

        def run(audio: list[Tensor], wanted: list[Tensor]) -> list[Tensor]:
            speech, lengths = inputs_of(audio).values()
            [rows] = session.run(None, {"input_values": speech, "input_lengths": lengths})
            return [torch.from_numpy(row[: len(want)]) for row, want in zip(rows, wanted)]

        alone = [run([samples], [want])[0] for samples, want in zip(probe.audio, probe.logits)]
        padded = run(probe.audio, probe.padded)
        model = onnx_asr.load_model(MODEL, file.parent, quantization="int8" if is_int8(file) else None)
        recognize, waves = model.with_timestamps().recognize, [samples.numpy() for samples in probe.audio]
        texts = ["".join(recognize(wave).tokens) for wave in waves]
        texts_padded = ["".join(result.tokens) for result in recognize(waves)]
        sides = (("onnx-asr", alone, probe.logits, texts), ("onnx-asr, in a batch", padded, probe.padded, texts_padded))
        largest, differing = 0.0, 0
        for what, got, logits, said in sides:
            wanted = [rows.log_softmax(-1) for rows in logits]
            of_side = dataclasses.replace(probe, texts=[probe.text(rows) for rows in logits])
            if is_int8(file):
                difference, _ = probe.compare_rounded(what, got, wanted)
                differing = max(differing, of_side.count_texts(what, said, [probe.text(rows) for rows in got]))
            else:
                difference = probe.compare(what, got, wanted)
                of_side.compare_texts(what, said)
            largest = max(largest, difference)
        return Comparison(largest, differing)


class LogProbabilities(nn.Module):
    """Log-probabilities, (batch, frames, tokens), of padded waveforms, (batch, samples), with lengths (batch,)."""

    silence: Tensor

    def __init__(self, model: PrunedModel):
        super().__init__()
        self.logits = LogitsOfWaveform(model)
        silence = torch.full((len(model.token_list),), NEVER)
        silence[model.blank_id] = 0.0
        self.register_buffer("silence", silence)

    def forward(self, input_values: Tensor, input_lengths: Tensor) -> Tensor:
        logits, frames = self.logits(input_values, input_lengths)
        padding = torch.arange(logits.size(1), device=logits.device) >= frames[:, None]
        return torch.where(padding[..., None], self.silence, logits.log_softmax(-1))
