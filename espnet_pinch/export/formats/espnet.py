"""ESPnet's formats: the folder ``folded/``, which espnet_pinch loads, and the packed zip, which ``Speech2Text`` loads
if espnet_pinch is installed."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file

from espnet_pinch.asr.head import ASR
from espnet_pinch.core.parameters import Parameters
from espnet_pinch.data import subwords
from espnet_pinch.errors import UserError, one_line
from espnet_pinch.export.format import Comparison, Format, Original, register

if TYPE_CHECKING:
    from espnet_pinch.asr.pruned import PrunedModel
    from espnet_pinch.export.check import Probe


@register
class ESPnet(Format):
    name = "espnet"
    title = "ESPnet folder"
    library = "ESPnet's Speech2Text"
    place = 40
    default = True
    accepts = ("an experiment folder", "its folded/")
    signs = ("folded/", "config.yaml and model.pth")
    untested = (
        "ESPnet's beam search on the packed model was run, but its output was not compared: "
        "the error rates are those of greedy search."
    )
    snippet = """With ESPnet, if espnet_pinch is installed:

```python
import espnet_pinch.asr.task  # first: registers frontend and model
from espnet2.bin.asr_inference import Speech2Text
from espnet2.main_funcs.pack_funcs import unpack
from espnet_pinch.asr.safe_load import tensors_only

with tensors_only():  # ESPnet alone would run code from a pickle
    speech2text = Speech2Text(**unpack("{file}", "unpacked"), ctc_weight=1.0, lm_weight=0.0, beam_size=5)
print(speech2text(samples)[0][0])  # numpy array, {rate} Hz
```"""

    def detect(self, path: Path) -> Path | None:
        if path.suffix == ".zip" and path.is_file():
            return path
        for folder in (path / "folded", path):
            if (folder / "config.yaml").is_file() and (folder / "model.pth").is_file():
                return folder
        return None

    def nearly(self, path: Path) -> str | None:
        if parts := parts_of(path):
            folders = ", ".join(str(path / "folded" / part) for part in parts)
            return f"has several targets: give the folder of one, {folders}"
        return "has no folded/: its training is not finished" if (path / "config.yaml").is_file() else None

    def read(self, found: Path) -> PrunedModel:
        if found.is_file():
            raise UserError(f"{found} is packed for ESPnet's Speech2Text: unzip it and give the folder")
        return read_folded(found)

    def weight_files(self, found: Path) -> list[Path]:
        return [found / "model.pth"]

    def files(self, found: Path) -> list[Path]:
        from espnet_pinch.asr.checkpoint import SCALES

        own = [file for file in (found / SCALES, found / subwords.FILE) if file.exists()]
        return [*self.weight_files(found), found / "config.yaml", *own]

    def info(self, found: Path) -> dict:
        """The counts from before units were cut off, which the smaller matrices do not tell."""
        file = found / "parameters.json"
        counts = Parameters.read(file) if file.is_file() else None
        if counts is None or counts.params_stored == counts.params_total:
            return {}
        return {"before_the_cut": {"gated": counts.gated, "pruned": counts.pruned, "params": counts.params_total}}

    def info_lines(self, figures: dict) -> list[str]:
        before = figures.get("before_the_cut")
        if not before:
            return []
        return [
            f"cut from     {before['params']:,} parameters; {100 * before['pruned'] / before['gated']:.2f} % of "
            f"{before['gated']:,} gated weights are gone or 0"
        ]

    def write(self, folder: Path, original: Original) -> dict[str, dict]:
        write_packed(folder / "espnet.zip", original.folded)
        return {"espnet.zip": {"what": "dense float32"}}

    def check(self, file: Path, original: Original) -> Comparison:
        return Comparison(check_packed(file, original.probe))


def parts_of(exp: Path) -> list[str]:
    """The targets of a run that has several, as the folders in its ``folded/`` are named."""
    return sorted(file.parent.name for file in (exp / "folded").glob("[0-9]*/model.pth"))


def read_folded(folder: Path) -> PrunedModel:
    """The model of a folder that ``write_folded`` has written.

    Raises:
        UserError: a file is damaged or of a model with gates, or the two files do not fit each other.
    """
    from espnet_pinch.asr.checkpoint import SCALES
    from espnet_pinch.asr.safe_load import load_weights
    from espnet_pinch.export.model import build, fill, take_scales

    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        built = config["frontend_conf"]["built"]
        description = {**built, "tokens": config["token_list"], "pruning": config["pruning"]}
        description["task"], method = config.get("task", ASR), config["pruning"]["method"]
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{folder / 'config.yaml'} is not that of a folded model: {one_line(error)}") from None
    if method != "dense":
        raise UserError(f"{folder / 'config.yaml'} is that of a model with gates; give the folder folded/")
    state = load_weights(folder / "model.pth")
    try:
        model = fill(build(description), state)
        if (folder / SCALES).exists():
            take_scales(model, load_file(folder / SCALES))
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    except SafetensorError as error:
        raise UserError(f"{folder / SCALES} is damaged: {one_line(error)}") from None
    model.frontend.source, model.subwords = built.get("source"), subwords.read(folder)
    return model


def write_packed(path: Path, folded: Path) -> None:
    """Pack ``config.yaml``, ``model.pth`` and, of a model of subwords, ``bpe.model`` of a folded model, so named."""
    from espnet2.main_funcs.pack_funcs import pack

    # pack() keeps paths relative to the current folder, and prints.
    path = path.absolute()
    files = {"asr_model_file": "model.pth", "bpemodel": subwords.FILE}  # the options of Speech2Text
    with contextlib.chdir(folded), contextlib.redirect_stdout(sys.stderr):
        pack(
            files={name: file for name, file in files.items() if Path(file).exists()},
            yaml_files={"asr_train_config": "config.yaml"},
            outpath=path,
        )


def check_packed(path: Path, probe: Probe) -> float:
    """Unpack with ESPnet's ``unpack``, load and decode with its ``Speech2Text``.

    ESPnet's beam search may differ from greedy search: it only has to run. The logits are compared.

    Returns: the largest difference of logits.

    Raises:
        UserError: as ``Probe.compare``.
    """
    from espnet2.bin.asr_inference import Speech2Text
    from espnet2.main_funcs.pack_funcs import unpack

    import espnet_pinch.asr.task  # noqa: F401  (first: registers frontend and model with ESPnet)
    from espnet_pinch.asr.safe_load import tensors_only
    from espnet_pinch.export.check import batch_logits

    with tempfile.TemporaryDirectory() as folder, tensors_only():
        speech2text = Speech2Text(**unpack(path, folder), ctc_weight=1.0, lm_weight=0.0, beam_size=1)
        speech2text(probe.audio[0])  # here: it reads the sentencepiece model when it needs it
    return probe.compare("Speech2Text", [batch_logits(speech2text.asr_model, [a])[0] for a in probe.audio])
