"""The sparse file: a pruned model without its zeros. ``espnet_pinch/export/sparse_file.py`` describes the layout."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from espnet_pinch.asr.head import CLASSIFY
from espnet_pinch.export.encoding import FLOATS, QUANTIZED, VALUES
from espnet_pinch.export.format import OURS, Comparison, Format, Original, register

if TYPE_CHECKING:
    from espnet_pinch.asr.pruned import PrunedModel

EXACT = ("fp32", QUANTIZED)  # files that give the model's own logits
WHAT = {  # is stored, in words
    **{values: f"all weights {values}" for values in FLOATS},
    "int8": "weights rounded to 8 bits, norms and biases fp32",
    QUANTIZED: "the model's own codes, norms and biases fp16 or fp32",
}


@register
class SparseFile(Format):
    name = "sparse"
    title = "sparse file"
    library = OURS
    place = 20
    default = True
    values = VALUES
    default_values = ("fp32", "fp16", "int8")  # of a model that is not quantized
    accepts = ("a sparse file",)
    snippet = """A sparse file, with espnet_pinch (its layout is documented in `espnet_pinch/export/sparse_file.py`):

```python
import espnet_pinch
from espnet_pinch.asr.decode import transcribe

model = espnet_pinch.load("{file}")
[text] = transcribe(model, [samples])  # torch tensor (samples,), {rate} Hz
print(text)
```

or on the command line: `espnet-pinch transcribe {file} speech.flac`"""
    snippets = {
        CLASSIFY: """A sparse file, with espnet_pinch (`espnet_pinch/export/sparse_file.py` documents its layout):

```python
import espnet_pinch
from espnet_pinch.asr.decode import recognise

model = espnet_pinch.load("{file}")
[found] = recognise(model, [samples])  # torch tensor (samples,), {rate} Hz
print(found.text, found.words[0].confidence)  # the label and its probability
```

or on the command line: `espnet-pinch classify {file} speech.flac`"""
    }

    def detect(self, path: Path) -> Path | None:
        return path if path.is_file() else None  # any file that no other format takes; ``read`` checks it

    def read(self, found: Path) -> PrunedModel:
        from espnet_pinch.export.sparse_file import read_sparse

        return read_sparse(found)

    def chosen(self, original: Original) -> list[str]:
        asked = set(original.values) & set(self.values)
        return [QUANTIZED] if original.model.scales and not asked else super().chosen(original)

    def write(self, folder: Path, original: Original) -> dict[str, dict]:
        from espnet_pinch.export.sparse_file import write_sparse

        files = {}
        for values in self.chosen(original):
            file = f"sparse_{values}.safetensors"
            sizes = write_sparse(folder / file, original.model, values)
            del sizes["weights"]  # `info` shows them
            rounded = {} if values in EXACT else {"rounded": True}
            files[file] = {"what": f"{WHAT[values]}, zeros left out", "sizes": sizes, **rounded}
        return files

    def check(self, file: Path, original: Original) -> Comparison:
        """Compare every weight, and the logits. With rounded weights the logits may differ by any amount."""
        from espnet_pinch.export.check import Probe, check_weights
        from espnet_pinch.export.load import load

        again, values, probe = load(file), file.stem.removeprefix("sparse_"), original.probe
        check_weights(file.name, again, original.model, values)
        other = Probe.of(again, probe.audio)
        if values in EXACT:
            return Comparison(probe.compare(file.name, other.logits))
        difference = max(float((a - b).abs().max()) for a, b in zip(other.logits, probe.logits))
        return Comparison(difference, sum(a != b for a, b in zip(other.texts, probe.texts)))

    def info(self, found: Path) -> dict:
        from espnet_pinch.export.sparse_file import sizes

        return {"sparse_file": sizes(found)}

    def info_lines(self, figures: dict) -> list[str]:
        sizes = figures["sparse_file"]
        parts = ", ".join(f"{name} {size / 1e6:.2f}" for name, size in sizes["parts"].items())
        return [
            f"values       {sizes['values']}: {WHAT[sizes['values']]}",
            f"MB of        {parts}",
            f"bound        {sizes['entropy_bound'] / 1e6:.2f} MB, with masks and codes at their entropy",
        ]

    def layer_lines(self, layers: dict[str, dict], figures: dict) -> list[str]:
        """All weights with two dimensions or more: those that are not gated take bytes, too."""
        weights = figures["sparse_file"]["weights"]
        width = max(map(len, weights))
        return [
            f"{name:{width}}  {' x '.join(map(str, weight['shape'])):>14}  "
            f"{100 * (1 - weight['kept'] / weight['weights']):6.2f} %  {weight['bits']:2} bits  "
            f"{weight['bytes']:>11,} bytes, bound {weight['entropy_bound']:>11,}"
            for name, weight in weights.items()
        ]
