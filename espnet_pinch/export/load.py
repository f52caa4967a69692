"""Load a model in any format that this package reads."""

import os
from pathlib import Path

from espnet_pinch.asr.model import PruningASRModel
from espnet_pinch.errors import UserError
from espnet_pinch.export.format import Format, all_formats
from espnet_pinch.export.model import weights


def load(path: str | os.PathLike) -> PruningASRModel:
    """A trained, folded or exported model, on the CPU, in eval mode, float32.

    Weights that are missing, unexpected or not finite are errors. Files cannot run code, and nothing is downloaded.
    ``espnet_pinch.asr.decode.transcribe(model, [samples])`` returns transcripts.

    Args:
        path: experiment folder, its ``folded/``, a Hugging Face folder of a CTC model, a sparse file, or anything else
            that a format in ``espnet_pinch/export/formats`` reads.

    Raises:
        FileNotFoundError: ``path`` does not exist, or holds no model.
        UserError: the model is damaged, incomplete, or not one of these; the message is one line.
    """
    fmt, found = locate(path)
    model = fmt.read(found)
    for name, tensor in weights(model).items():
        if not tensor.isfinite().all():
            raise UserError(f"{path}: {name} holds a value that is not finite")
    return model


def locate(path: str | os.PathLike) -> tuple[Format, Path]:
    """The format of the model at ``path``, and where it is.

    Raises:
        FileNotFoundError: as ``load``.
    """
    path = Path(path)
    formats = list(all_formats().values())
    for fmt in reversed(formats):
        found = fmt.detect(path)
        if found is not None:
            return fmt, found
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    for fmt in formats:
        lacking = fmt.nearly(path)
        if lacking:
            raise FileNotFoundError(f"{path} {lacking}")
    signs = ", nor ".join(sign for fmt in reversed(formats) for sign in fmt.signs)
    raise FileNotFoundError(f"{path} holds no model: neither {signs} (if you mean a file in it, give the file)")


def weight_files_of(path: str | os.PathLike) -> list[Path]:
    """The files that hold the weights of the model at ``path``."""
    fmt, found = locate(path)
    return fmt.weight_files(found)
