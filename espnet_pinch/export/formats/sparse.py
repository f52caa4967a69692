"""The sparse file: a pruned model without its zeros. ``espnet_pinch/export/sparse_file.py`` describes the layout."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from espnet_pinch.export.encoding import VALUES
from espnet_pinch.export.format import Comparison, Format, Original, register

if TYPE_CHECKING:
    from espnet_pinch.asr.model import PruningASRModel


@register
class SparseFile(Format):
    name = "sparse"
    title = "sparse file"
    library = "espnet_pinch.load"
    place = 20
    default = True
    values = tuple(VALUES)
    default_values = ("fp32", "fp16", "int8")
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

    def detect(self, path: Path) -> Path | None:
        return path if path.is_file() else None  # any file that no other format takes; ``read`` checks it

    def read(self, found: Path) -> PruningASRModel:
        from espnet_pinch.export.sparse_file import read_sparse

        return read_sparse(found)

    def write(self, folder: Path, original: Original) -> dict[str, dict]:
        from espnet_pinch.export.sparse_file import write_sparse

        files = {}
        for values in self.chosen(original):
            file = f"sparse_{values}.safetensors"
            sizes = write_sparse(folder / file, original.model, values)
            what = f"gated layers {values}, zeros left out; others {sizes['others']}"
            files[file] = {"what": what, "sizes": sizes, **({} if values == "fp32" else {"rounded": True})}
        return files

    def check(self, file: Path, original: Original) -> Comparison:
        """Compare every weight, and the logits. With rounded weights the logits may differ by any amount."""
        from espnet_pinch.export.check import Probe, check_weights
        from espnet_pinch.export.load import load
        from espnet_pinch.export.sparse_file import sizes

        again, values, probe = load(file), sizes(file)["values"], original.probe
        check_weights(file.name, again, original.model, values)
        other = Probe.of(again, probe.audio)
        if values == "fp32":
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
            f"values       {sizes['values']}, other weights {sizes['others']}",
            f"MB of        {parts}",
            f"bound        {sizes['entropy_bound'] / 1e6:.2f} MB, with masks at their entropy",
        ]
