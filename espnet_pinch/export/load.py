"""One call for a model in any format that this package writes."""

import os
from pathlib import Path

import yaml

from espnet_pinch.asr import safe_load
from espnet_pinch.asr.frontend import UpstreamFrontend
from espnet_pinch.asr.model import PruningASRModel
from espnet_pinch.asr.weight_files import weight_files
from espnet_pinch.errors import UserError
from espnet_pinch.export.model import assemble, build, fill, one_line, weights
from espnet_pinch.export.sparse_file import read_sparse


def load(path: str | os.PathLike) -> PruningASRModel:
    """A trained, folded or exported model, on the CPU, in eval mode, float32; every weight accounted for.

    ``espnet_pinch.asr.decode.transcribe(model, [samples])`` gives its transcripts. Nothing is unpickled but tensors,
    and nothing is fetched.

    Args:
        path: experiment folder, its ``folded/``, a Hugging Face folder of a CTC model, or a sparse file.

    Raises:
        FileNotFoundError: nothing there, or no model in it.
        ValueError: damaged, incomplete, or not one of these; one line.
    """
    kind, found = locate(path)
    readers = {"sparse file": read_sparse, "ESPnet folder": _read_espnet, "Hugging Face folder": _read_hugging_face}
    model = readers[kind](found)
    for name, tensor in weights(model).items():
        if not tensor.isfinite().all():
            raise UserError(f"{path}: {name} holds a value that is not finite")
    return model


def locate(path: str | os.PathLike) -> tuple[str, Path]:
    """The kind of model at ``path`` ("sparse file", "ESPnet folder" or "Hugging Face folder"), and where it is.

    Raises:
        FileNotFoundError: as ``load``.
    """
    path = Path(path)
    if path.is_file():
        return "sparse file", path
    for folder in (path / "folded", path):
        if (folder / "config.yaml").is_file() and (folder / "model.pth").is_file():
            return "ESPnet folder", folder
    if (path / "config.json").is_file():
        return "Hugging Face folder", path
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if (path / "config.yaml").is_file():
        raise FileNotFoundError(f"{path} has no folded/: its training is not finished")
    raise FileNotFoundError(
        f"{path} holds no model: neither folded/, nor config.yaml and model.pth, nor config.json (is it a sparse file "
        "that you mean? give the file)"
    )


def weight_files_of(path: str | os.PathLike) -> list[Path]:
    """The files that hold the weights of the model at ``path``."""
    kind, found = locate(path)
    if kind == "Hugging Face folder":
        return weight_files(found)
    return [found if kind == "sparse file" else found / "model.pth"]


def _read_espnet(folder: Path) -> PruningASRModel:
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        built = config["frontend_conf"]["built"]
        description = {**built, "tokens": config["token_list"], "pruning": config["pruning"]}
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{folder / 'config.yaml'} is not that of a folded model: {one_line(error)}") from None
    if description["pruning"].get("method") != "dense":
        raise UserError(f"{folder / 'config.yaml'} is that of a model with gates; give the folder folded/")
    reason = safe_load.damage(folder / "model.pth")
    if reason:
        raise UserError(f"{folder / 'model.pth'} is damaged: {reason}")
    state = safe_load.load(folder / "model.pth", map_location="cpu")
    try:
        return fill(build(description), state)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None


def _read_hugging_face(folder: Path) -> PruningASRModel:
    frontend = UpstreamFrontend(str(folder))
    head = frontend.take_head()
    if head is None or frontend.tokens is None:
        raise UserError(f"{folder} has no CTC head, or no vocab.json to name its outputs")
    model = assemble(frontend, frontend.tokens, {"method": "dense"})
    model.ctc.ctc_lo = head
    return model.eval()
