"""The sparse file: a pruned model without its zeros, in one safetensors file that needs no other file.

Layout, format version 1
------------------------
The file is a safetensors file. Its metadata has one key, ``espnet_pinch``, a JSON object:

- ``format_version``: 1.
- ``values``: "fp32", "fp16", "bf16" or "int8", the type of the weights of gated layers. All other weights have the same
  type, except that "int8" stores them as fp16.
- ``masked``: ``{name: [rows, columns]}`` of the weights that are stored as a mask and values.
- ``model``: ``config`` (the upstream's, as in the config.json of transformers), ``processing`` of the waveform
  (``sampling_rate``, ``do_normalize``, ``return_attention_mask``), ``tokens`` (names of the head's outputs, the blank
  first), ``pruning`` (``layers``, a regular expression of the gated layers' names; ``dense.channels``, the channels
  left in layers that were made smaller).
- ``crc32``: ``{stored tensor: CRC-32 of its bytes}``.
- ``header_crc32``: CRC-32 of the JSON text of all the above, with sorted keys, without spaces, in UTF-8.

Names are those of the model's ``state_dict``: ``frontend.upstream.X`` is ``X`` of transformers' model without a head,
``ctc.ctc_lo`` its CTC head. A masked weight ``N`` of shape (rows, columns) is stored as

- ``N.mask``: uint8, (ceil(rows * columns / 8),); weight i, counted row by row, is kept if bit i % 8 (bit 0 is the
  least significant) of byte i // 8 is 1. Bits beyond the last weight are 0.
- ``N.values``: (kept weights,), in that order.

Any other tensor is stored as ``N``. With "int8" every gated weight, masked or not, has ``N.scales``: float32,
(rows,); a stored value times the scale of its row is the weight. With "fp32" the weights are exact, except that a
negative zero becomes a positive one.
"""

import json
import math
import os
import zlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from espnet_pinch.asr.model import UPSTREAM, PruningASRModel
from espnet_pinch.errors import UserError
from espnet_pinch.export.encoding import OTHERS, VALUES, cast, decode, encode
from espnet_pinch.export.model import build, describe, fill, gated_layers, weights
from espnet_pinch.files import whole_file
from espnet_pinch.unreadable import why_unreadable

FORMAT_VERSION = 1
KEY = "espnet_pinch"
FIELDS = {"format_version", "values", "masked", "model", "crc32", "header_crc32"}


def write_sparse(path: str | os.PathLike, model: PruningASRModel, values: str = "fp32") -> dict:
    """Write a folded model to a sparse file, which appears only when it is complete.

    Args:
        path: of the file.
        model: folded.
        values: a key of ``VALUES``.

    Returns: ``sizes`` of the file.

    Raises:
        UserError: ``values`` is unknown, or cannot hold a weight.
    """
    if values not in VALUES:
        raise UserError(f"unknown values {values!r}; there is: {', '.join(VALUES)}")
    gated = {f"{UPSTREAM}{name}.weight" for name in gated_layers(model)}
    stored, masked = {}, {}
    for name, tensor in weights(model).items():
        try:
            if name in gated:
                parts = encode(tensor, values)
                if "mask" in parts:
                    masked[name] = list(tensor.shape)
                stored.update({_stored_name(name, part): value for part, value in parts.items()})
            else:
                stored[name] = cast(tensor, OTHERS[values]) if tensor.is_floating_point() else tensor
        except UserError as error:
            raise UserError(f"{name} {error}") from None
    header = {
        "format_version": FORMAT_VERSION,
        "values": values,
        "masked": masked,
        "model": describe(model),
        "crc32": {name: _crc32(tensor) for name, tensor in stored.items()},
    }
    header["header_crc32"] = zlib.crc32(_canonical(header))
    with whole_file(path) as new:
        save_file(stored, new, metadata={KEY: _canonical(header).decode()})
    return sizes(path)


def read_sparse(path: str | os.PathLike) -> PruningASRModel:
    """The model of a sparse file, on the CPU, in eval mode, float32, with its zeros.

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: the file is incomplete, of another version, damaged or inconsistent; the message is one line.
    """
    try:
        with _open(path) as file:
            header = _header(file)
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        model = build(header["model"])
        return fill(model, _state(model, header, stored))
    except (UserError, SafetensorError) as error:
        raise UserError(f"{path}: {error}") from None


def sizes(path: str | os.PathLike) -> dict:
    """What the bytes of a sparse file are used for, and a lower bound of its size.

    Returns: ``bytes`` of the file; ``values`` and ``others``, the types of gated and other weights; the bytes of its
    ``parts`` ("mask", "values", "scales", "others", "header"); the number of ``masked`` weights, and how many of them
    are ``kept``; ``dense_bytes`` of the whole model as float32; ``entropy_bound``, the bytes if every mask took only
    its entropy, n H(s) bits for n weights of sparsity s, and the header nothing.

    Raises:
        FileNotFoundError, UserError: as ``read_sparse``, but the content of tensors is not checked.
    """
    try:
        with _open(path) as file:
            header = _header(file)
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: torch.Size(part.get_shape()) for name, part in slices.items()}
            widths = {name: _width(part.get_dtype()) for name, part in slices.items()}
        layers = [(math.prod(shape), shapes[f"{name}.values"].numel()) for name, shape in header["masked"].items()]
    except (UserError, SafetensorError) as error:
        raise UserError(f"{path}: {error}") from None
    except KeyError as error:
        raise UserError(f"{path}: the tensor {error.args[0]} is missing") from None
    parts = dict.fromkeys(("mask", "values", "scales", "others"), 0)
    plain = 0  # weights that are not masked
    for name, shape in shapes.items():
        last = name.rpartition(".")[2]
        parts[last if last in parts else "others"] += shape.numel() * widths[name]
        plain += shape.numel() if last not in parts else 0
    total = Path(path).stat().st_size
    parts["header"] = total - sum(parts.values())
    masked = sum(n for n, _ in layers)
    entropy = sum(n * _entropy(kept / n) for n, kept in layers) / 8
    return {
        "bytes": total,
        "values": header["values"],
        "others": str(OTHERS[header["values"]]).removeprefix("torch."),
        "parts": parts,
        "masked": masked,
        "kept": sum(kept for _, kept in layers),
        "dense_bytes": 4 * (plain + masked),
        "entropy_bound": math.ceil(total - parts["header"] - parts["mask"] + entropy),
    }


def _stored_name(name: str, part: str) -> str:
    return name if part == "dense" else f"{name}.{part}"


def _open(path):
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist")
    wrong = why_unreadable(path, whole=False)
    if wrong:
        raise OSError(f"{path} {wrong}")
    return safe_open(path, framework="pt")


def _header(file) -> dict:
    """The JSON object of an open file, its version and checksum verified."""
    text = (file.metadata() or {}).get(KEY)
    if text is None:
        raise UserError("not a sparse file of espnet_pinch: the metadata has no such key")
    try:
        header = json.loads(text)
        version = header["format_version"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UserError("the header is damaged: it is not the JSON object of a sparse file") from None
    if version != FORMAT_VERSION:
        raise UserError(f"format version {version}; this release reads {FORMAT_VERSION}")
    if set(header) != FIELDS:
        raise UserError(f"the header is damaged: {', '.join(sorted(set(header) ^ FIELDS))} missing or unexpected")
    if zlib.crc32(_canonical({k: v for k, v in header.items() if k != "header_crc32"})) != header["header_crc32"]:
        raise UserError("the header is damaged: its checksum differs")
    if not all(isinstance(header[field], dict) for field in ("masked", "model", "crc32")):
        raise UserError("the header is damaged: masked, model and crc32 must be JSON objects")
    if header["values"] not in [*VALUES]:  # a list: a JSON value may not be hashable
        raise UserError(f"unknown values {header['values']!r}; there is: {', '.join(VALUES)}")
    return header


def _state(model: PruningASRModel, header: dict, stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """The model's ``state_dict`` from the stored tensors. Each of them is checked and used."""
    values, masked = header["values"], header["masked"]
    gated = {f"{UPSTREAM}{name}.weight" for name in gated_layers(model)}
    expected = weights(model)
    stray = sorted(set(masked) - gated)
    if stray:
        raise UserError(f"{stray[0]} is masked, but is not a gated weight of the model")
    wanted = {}
    for name in expected:
        wanted[name] = ["mask", "values"] if name in masked else ["dense"]
        wanted[name] += ["scales"] if name in gated and values == "int8" else []
    names = {_stored_name(name, part) for name, parts in wanted.items() for part in parts}
    for what, difference in (("missing", names - set(stored)), ("not one of the model's", set(stored) - names)):
        if difference:
            more = f" (and {len(difference) - 1} more)" if len(difference) > 1 else ""
            raise UserError(f"the tensor {min(difference)} is {what}{more}")
    state = {}
    for name, tensor in expected.items():
        parts = {part: stored[_stored_name(name, part)] for part in wanted[name]}
        try:
            if masked.get(name, list(tensor.shape)) != list(tensor.shape):
                raise UserError(f"has the shape {masked[name]}, not {list(tensor.shape)}")
            own = VALUES[values] if name in gated else OTHERS[values] if tensor.is_floating_point() else tensor.dtype
            for part in ("values", "dense"):
                if part in parts and parts[part].dtype != own:
                    raise UserError(f"is stored as {parts[part].dtype}, not {own}")
            state[name] = decode(parts, tensor.shape).to(tensor.dtype)
            for part, value in parts.items():
                if header["crc32"].get(_stored_name(name, part)) != _crc32(value):
                    raise UserError("is damaged: its checksum differs")
                if not value.isfinite().all():
                    raise UserError("holds a value that is not finite")
        except UserError as error:
            raise UserError(f"{name} {error}") from None
    return state


def _canonical(header: dict) -> bytes:
    return json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _crc32(tensor: Tensor) -> int:
    return zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy().data)


def _width(dtype: str) -> int:
    """Bytes of a value of a type, such as "F16", in safetensors' names."""
    return int("".join(filter(str.isdigit, dtype))) // 8


def _entropy(kept: float) -> float:
    """Entropy, in bits, of one entry of a mask in which a fraction ``kept`` is 1."""
    return -sum(p * math.log2(p) for p in (kept, 1 - kept) if p > 0)
