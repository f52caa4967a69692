"""The folder for sherpa-onnx: ``model.onnx``, ``model.int8.onnx``, which take whole waveforms, and ``tokens.txt``.

sherpa-onnx loads it as it loads omnilingual CTC models: one utterance at a time, 16 kHz, normalised by itself. The
graph of another model normalises again. That undoes sherpa-onnx's larger addend to the variance, so the logits are
those of the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from espnet_pinch.data.tokens import SPACE, WORD, token_of
from espnet_pinch.errors import UserError
from espnet_pinch.export.format import Comparison, Format, Original, register
from espnet_pinch.export.formats.onnx import (
    FILES,
    LogitsOfWaveform,
    export_program,
    is_int8,
    open_session,
    write_files,
)

if TYPE_CHECKING:
    from espnet_pinch.asr.frontend import UpstreamFrontend

FOLDER = "sherpa_onnx"
RATE = 16000  # Hz, what sherpa-onnx resamples to
FLOOR = 1e-5  # what sherpa-onnx adds to the variance


@register
class SherpaOnnx(Format):
    name = "sherpa_onnx"
    title = "sherpa-onnx folder"
    library = "sherpa-onnx"
    packages = ("sherpa_onnx", "onnx", "onnxruntime", "onnxscript")
    extra = "sherpa"
    values = default_values = tuple(FILES)
    untested = (
        "sherpa-onnx on other systems than this one, and its other programming languages; models quantised in "
        "training on x86 processors without VNNI, where sums of 8-bit products overflow."
    )
    snippet = """With sherpa-onnx, which normalises the waveform:

```python
import sherpa_onnx

recognizer = sherpa_onnx.OfflineRecognizer.from_omnilingual_asr_ctc(model="{file}", tokens="sherpa_onnx/tokens.txt")
stream = recognizer.create_stream()
stream.accept_waveform({rate}, samples)  # float32 (samples,), in [-1, 1]
recognizer.decode_stream(stream)
print(" ".join(stream.result.text.split()))
```"""

    def write(self, folder: Path, original: Original) -> dict[str, dict]:
        model, place = original.model, folder / FOLDER
        processing = model.frontend.processing
        if processing.sampling_rate != RATE:
            raise UserError(f"sherpa-onnx takes models of {RATE} Hz, and this one is of {processing.sampling_rate} Hz")
        if not processing.do_normalize:
            raise UserError("sherpa-onnx normalises every utterance, and this model takes waveforms as they are")
        place.mkdir()
        lines = [f"{symbol} {i}\n" for i, symbol in enumerate(symbols(model.token_list, self.library))]
        tokens = place / "tokens.txt"
        tokens.write_text("".join(lines), encoding="utf-8")
        example, axes = (torch.randn(2, 2 * RATE),), {"speech": {0: "batch", 1: "samples"}}
        with _as_sherpa_onnx_gives_it(model.frontend):
            program = export_program(model, LogitsOfWhole(LogitsOfWaveform(model)), example, axes, ["logits"])
        files = write_files(place, program, model, self.chosen(original))
        size = tokens.stat().st_size
        return {f"{FOLDER}/{name}": {**facts, "bytes": facts["bytes"] + size} for name, facts in files.items()}

    def check(self, file: Path, original: Original) -> Comparison:
        """sherpa-onnx's texts and, as it gives no logits, those of onnxruntime; one utterance at a time."""
        import sherpa_onnx

        from espnet_pinch.asr.frontend import normalize_waveform

        probe = original.probe
        session = open_session(file)
        audio = [samples[None] for samples in probe.audio]
        if _normalises_alike(original.model.frontend):
            audio = [normalize_waveform(a, torch.ones_like(a, dtype=torch.bool), FLOOR) for a in audio]
        logits = [torch.from_numpy(session.run(None, {"speech": a.numpy()})[0][0]) for a in audio]
        recognizer = sherpa_onnx.OfflineRecognizer.from_omnilingual_asr_ctc(
            model=str(file), tokens=str(file.with_name("tokens.txt"))
        )
        streams = [recognizer.create_stream() for _ in probe.audio]
        for stream, samples in zip(streams, probe.audio):
            stream.accept_waveform(RATE, samples.numpy())
        recognizer.decode_streams(streams)
        texts = [stream.result.text for stream in streams]
        if is_int8(file):
            difference, _ = probe.compare_rounded(file.name, logits)
            return Comparison(
                difference, probe.count_texts("sherpa-onnx", texts, [probe.text(rows) for rows in logits])
            )
        difference = probe.compare("onnxruntime", logits)
        probe.compare_texts("sherpa-onnx", texts)
        return Comparison(difference)


def _normalises_alike(frontend: UpstreamFrontend) -> bool:
    """Whether sherpa-onnx's normalised waveform is that of the model's own processor."""
    return frontend.family.variance_floor == FLOOR


@contextmanager
def _as_sherpa_onnx_gives_it(frontend: UpstreamFrontend) -> Iterator[None]:
    """Inside the block, the frontend normalises unless sherpa-onnx has done so alike."""
    before = frontend.processing
    frontend.processing = dataclasses.replace(before, do_normalize=not _normalises_alike(frontend))
    try:
        yield
    finally:
        frontend.processing = before


class LogitsOfWhole(nn.Module):
    """Logits, (batch, frames, tokens), of waveforms without padding, (batch, samples)."""

    def __init__(self, logits: LogitsOfWaveform):
        super().__init__()
        self.logits = logits

    def forward(self, speech: Tensor) -> Tensor:
        lengths = torch.ones_like(speech[:, 0], dtype=torch.long) * speech.size(1)
        return self.logits(speech, lengths)[0]


def symbols(tokens: list[str], library: str) -> list[str]:
    """The tokens as sherpa-onnx and onnx-asr write them. They print a space for ``WORD``. A special token keeps its
    name, "<unk>", and is printed so.

    Args:
        library: for the message.

    Raises:
        UserError: a token holds white space, which the file cannot say.

    >>> symbols(["<blank>", "<space>", "A"], "onnx-asr")[::2]
    ['<blank>', 'A']
    """
    found = [WORD if name == SPACE else token_of(name) for name in tokens]
    wrong = next((name for name, symbol in zip(tokens, found) if len(symbol.split()) != 1), None)
    if wrong is not None:
        raise UserError(f"the token {wrong!r} holds white space, which a file of {library} cannot say")
    return found
