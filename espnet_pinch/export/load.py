"""Load a model in any format that this package reads, into any runtime."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from espnet_pinch.errors import UserError
from espnet_pinch.export.format import Format, all_formats

if TYPE_CHECKING:
    from espnet_pinch.asr.pruned import PrunedModel
    from espnet_pinch.asr.recogniser import Recogniser


@overload
def load(path: str | os.PathLike) -> PrunedModel: ...
@overload
def load(path: str | os.PathLike, runtime: str, **options: Any) -> Recogniser: ...


def load(path: str | os.PathLike, runtime: str | None = None, **options: Any) -> PrunedModel | Recogniser:
    """A trained, folded or exported model, on the CPU, in eval mode, float32; or ready to decode in a runtime.

    Weights that are missing, unexpected or not finite are errors. Files cannot run code, and nothing is downloaded.
    ``espnet_pinch.asr.decode.transcribe(model, [samples])`` returns transcripts of both.

    Args:
        path: experiment folder, its ``folded/``, a Hugging Face folder of a CTC model, a sparse file, or anything else
            that a format in ``espnet_pinch/export/formats`` reads.
        runtime: "torch", "onnxruntime", "openvino", or "auto" for the one that is measured to be the fastest here.
            All but torch take an ONNX file of our export, openvino also its own; any other model is compiled first,
            and the result is kept beside its file.
        options: ``threads``, ``dtype``, ``device``, ``say`` of the runtime, as
            ``espnet_pinch.inference.runtime.Options``.

    Raises:
        FileNotFoundError: ``path`` does not exist, or holds no model.
        UserError: the model is damaged, incomplete, or not one of these; the runtime is not installed, or cannot do
            what the options say; the message is one line.
    """
    if runtime is None:
        if options:
            raise TypeError(f"{', '.join(options)} are options of a runtime: name one")
        return read_finite(*locate(path))
    from espnet_pinch.inference.runtime import Options, find_runtime

    fmt, found = locate(path)
    chosen = Options(**options)
    if runtime == "auto":
        from espnet_pinch.inference.choose import fastest

        return fastest(fmt, found, chosen)
    return find_runtime(runtime).load(fmt, found, chosen)


def read_finite(fmt: Format, found: Path) -> PrunedModel:
    """``fmt.read``, with the check that every weight is finite."""
    from espnet_pinch.export.encoding import all_finite
    from espnet_pinch.export.model import weights  # imports ESPnet, which other runtimes do not need

    model = fmt.read(found)
    for name, tensor in weights(model).items():
        if not all_finite(tensor):
            raise UserError(f"{found}: {name} holds a value that is not finite")
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
