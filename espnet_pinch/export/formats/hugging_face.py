"""The Hugging Face folder: a dense model for transformers, with its processor and vocabulary."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from espnet_pinch.asr.head import ASR, CLASSIFY
from espnet_pinch.data import subwords
from espnet_pinch.errors import UserError
from espnet_pinch.export.format import OURS, Comparison, Format, Original, register
from espnet_pinch.inference.cache import CACHE_FOLDER

if TYPE_CHECKING:
    from espnet_pinch.asr.pruned import PrunedModel


PLAIN = "transformers.AutoModelForCTC"  # the loader of a model that transformers' pipeline does not take

_PLAIN = """With transformers, whose pipeline does not take such models:

```python
from transformers import AutoModelForCTC, AutoProcessor

model, processor = AutoModelForCTC.from_pretrained("{folder}"), AutoProcessor.from_pretrained("{folder}")
ids = model.generate(**processor(samples, sampling_rate={rate}))  # numpy array (samples,), {rate} Hz
print(processor.decode(ids[0], skip_special_tokens=True))
```"""

# For a model in smaller layers.
_OWN = """With espnet_pinch; transformers alone refuses the smaller layers:

```python
import espnet_pinch
from espnet_pinch.asr.decode import FUNCTION

model = espnet_pinch.load("{folder}")
[found] = FUNCTION(model, [samples])  # torch tensor (samples,), {rate} Hz
print(found)
```"""


@register
class HuggingFace(Format):
    name = "hf"
    title = "Hugging Face folder"
    library = "transformers"
    place = 10
    default = True
    accepts = ("an exported Hugging Face folder",)
    signs = ("config.json",)
    hub_library = "transformers"
    snippet = """With transformers:

```python
from transformers import pipeline

recognise = pipeline("automatic-speech-recognition", model="{folder}")
print(recognise(samples)["text"])  # numpy array, {rate} Hz; or the name of a file, if ffmpeg is installed
```

`AutoModelForCTC.from_pretrained` and `AutoProcessor.from_pretrained` work too."""
    snippets = {
        CLASSIFY: """With transformers:

```python
from transformers import pipeline

classify = pipeline("audio-classification", model="{folder}")
print(classify(samples)[0])  # numpy array, {rate} Hz; or the name of a file, if ffmpeg is installed
```

`AutoModelForAudioClassification.from_pretrained` and `AutoFeatureExtractor.from_pretrained` work too."""
    }

    own_snippets = {ASR: _OWN.replace("FUNCTION", "transcribe"), CLASSIFY: _OWN.replace("FUNCTION", "recognise")}

    def loading(self, task: str, loader: str) -> str:
        return _PLAIN if loader == PLAIN else super().loading(task, loader)

    def detect(self, path: Path) -> Path | None:
        return path if (path / "config.json").is_file() else None

    def read(self, found: Path) -> PrunedModel:
        from espnet_pinch.asr.frontend import UpstreamFrontend
        from espnet_pinch.asr.upstream import has_head, read_config
        from espnet_pinch.export.model import assemble

        config = read_config(str(found))
        task = CLASSIFY if has_head(str(found), config, CLASSIFY) else ASR
        frontend = UpstreamFrontend(str(found), task=task)
        head = frontend.take_head()
        if head is None or frontend.tokens is None:
            raise UserError(f"{found} has no CTC head, or no {frontend.family.vocabulary_file} to name its outputs")
        model = assemble(frontend, frontend.tokens, {"method": "dense"})
        model.set_submodule(model.head_name, head)
        model.subwords = subwords.read(found)
        return model.eval()

    def weight_files(self, found: Path) -> list[Path]:
        from espnet_pinch.asr.weight_files import weight_files

        return weight_files(found)

    def files(self, found: Path) -> list[Path]:
        from espnet_pinch.data.upstream_files import check_folder

        weights = self.weight_files(found)
        return [*weights, *(found / name for name in check_folder(found) if found / name not in weights)]

    def write(self, folder: Path, original: Original) -> dict[str, dict]:
        shutil.copytree(original.folded / "hf", folder, ignore=shutil.ignore_patterns(CACHE_FOLDER), dirs_exist_ok=True)
        facts = {"what": "dense float32"}
        if _is_cut(original):
            smaller = "dense float32, in smaller layers that espnet_pinch loads and transformers does not"
            facts = {"what": smaller, "loader": OURS}
        elif not original.model.frontend.family.has_pipeline:
            facts["loader"] = PLAIN
        return {"model.safetensors": facts}

    def check(self, file: Path, original: Original) -> Comparison:
        """transformers' model, processor and pipeline on the probe's utterances, one at a time; ours if it was cut.

        Where the pipeline takes no such model, its ``generate`` and the processor."""
        import torch
        import transformers

        folder, probe = file.parent, original.probe
        if _is_cut(original):
            from espnet_pinch.export.check import batch_logits

            model = self.read(folder)
            logits = [batch_logits(model, [samples])[0] for samples in probe.audio]
            return Comparison(probe.compare(OURS, logits))
        kind = probe.kind
        model = getattr(transformers, kind.auto).from_pretrained(folder)
        processor = getattr(transformers, kind.processor).from_pretrained(folder)
        rate = getattr(processor, "feature_extractor", processor).sampling_rate
        inputs = [processor(samples.numpy(), sampling_rate=rate, return_tensors="pt") for samples in probe.audio]
        with torch.inference_mode():
            logits = [model(**of_one).logits for of_one in inputs]
        width = len(probe.tokens)
        difference = probe.compare(kind.auto, [rows.reshape(-1, width) for rows in logits])
        if not original.model.frontend.family.has_pipeline:
            said = [processor.decode(model.generate(**of_one)[0], skip_special_tokens=True) for of_one in inputs]
            probe.compare_texts("generate", said)
            return Comparison(difference)
        run = transformers.pipeline(kind.hub_task, model=str(folder))
        found = [run(samples.numpy()) for samples in probe.audio]
        probe.compare_texts("pipeline", [kind.said(output) for output in found])
        return Comparison(difference)


def _is_cut(original: Original) -> bool:
    """Whether the layers of the model are smaller than its configuration alone says."""
    from espnet_pinch.asr.family import widths_of

    return bool(widths_of(original.model.frontend.upstream.config))
