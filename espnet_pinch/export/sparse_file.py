"""The sparse file: a pruned model without its zeros, in one safetensors file that needs no other file.

Layout, format version 2
------------------------
The file is a safetensors file. Its metadata has one key, ``espnet_pinch``, a JSON object:

- ``format_version``: 2. ``sparse_v1.py`` reads version 1.
- ``values``: how the weights were stored: "fp32", "fp16" or "bf16", all of them as that type; "quantized", with the
  codes that the model itself has, and, where it has none, in the smaller of float16 and float32 that holds them
  exactly; "int8", with the codes that the model has, else, if there are several rows and dimensions, rounded to 8 bits
  with a scale for each row, else as float32.
- ``model``: ``config`` (the upstream's, as in the config.json of transformers), ``processing`` of the waveform
  (``sampling_rate``, ``do_normalize``, ``return_attention_mask``), ``tokens`` (names of the head's outputs, the blank
  first), ``pruning`` (``layers``, a regular expression of the gated layers' names; ``dense.channels``, the channels
  left in layers that were made smaller); where the tokens are subwords, ``subwords`` (sentencepiece's model, base64).
- ``crc32``: ``{stored tensor: CRC-32 of its bytes}``.
- ``header_crc32``: CRC-32 of the JSON text of all the above, with sorted keys, without spaces, in UTF-8.

Weights have the names of transformers' model for CTC, such as ``wav2vec2.encoder.layers.0.attention.q_proj.weight`` and
``lm_head.weight``; those of smaller layers, which transformers has not, are like them. A weight ``N`` of shape
(rows, ...) is stored in one of three ways:

- ``N``: the whole weight: float32, float16 or bfloat16, or, if it counts something, integers.
- ``N.mask`` and ``N.values``: the mask says which weights are kept; the values, (kept weights,), are those.
- ``N.codes``, ``N.levels``, ``N.scales`` and, unless all weights are kept, ``N.mask``: a kept weight is a whole number
  times the scale of its row, computed in float32. Code 2 i stands for level i, code 2 i + 1 for minus level i.
  ``N.levels`` is int8, (levels,): whole numbers from 1 to 127 that rise. ``N.scales`` is float32, (rows,), at least 0.

Weights are counted row by row. A weight that is not kept is 0. ``N.mask`` and ``N.codes`` are uint8 and hold digits: a
mask has one of base 2 for every weight, 1 if it is kept; codes have one of base 2 * levels (at least 2) for every kept
weight. A byte holds as many whole digits as fit, the first as its least significant one: eight of a mask or of one
level, two of eight levels, one of 127. The last byte is filled with zeros. Where that is smaller, these bytes are
stored as one raw deflate stream (RFC 1951): that is so if and only if the tensor has another number of bytes than they
are.

The weights of a "fp32" and a "quantized" file are exactly the model's, except that a negative zero may become a
positive one.

What a reader needs in memory is the file and the model that ``model`` describes, whatever the tensors hold. A file is
refused if its model would take more than ``MOST_GROWTH`` times the file's bytes, as float32, and ``ROOM``. Only zeros
could make a file that small: a model of which 99 % are zeros takes at most 352 times its entropy.
"""

import json
import os
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from espnet_pinch.asr.pruned import PrunedModel
from espnet_pinch.core.grids import Codes
from espnet_pinch.core.settings import shown
from espnet_pinch.errors import UserError
from espnet_pinch.export import encoding, sparse_v1
from espnet_pinch.export.encoding import PARTS, QUANTIZED, VALUES, encode, figures, round_to
from espnet_pinch.export.model import build, describe, fill, stock_names, weights
from espnet_pinch.files import whole_file
from espnet_pinch.unreadable import why_unreadable

FORMAT_VERSION = 2
KEY = "espnet_pinch"
FIELDS = {"format_version", "values", "model", "crc32", "header_crc32"}
MOST_GROWTH, ROOM = 1000, 64_000_000  # bytes


def write_sparse(path: str | os.PathLike, model: PrunedModel, values: str = "fp32") -> dict:
    """Write a folded model to a sparse file, which appears only when it is complete.

    Args:
        path: of the file.
        model: folded.
        values: one of ``VALUES``.

    Returns: ``sizes`` of the file.

    Raises:
        UserError: ``values`` is unknown, is "quantized" where the model is not, or cannot hold a weight.
    """
    if values not in VALUES:
        raise UserError(f"unknown values {values!r}; there is: {', '.join(VALUES)}")
    if values == QUANTIZED and not model.scales:
        raise UserError(f"the model is not quantized: it has no codes to store as {QUANTIZED}; int8 rounds its weights")
    names, stored = stock_names(model), {}
    for name, tensor in weights(model).items():
        try:
            parts = encode(round_to(values, tensor, model.scales.get(name)))
        except UserError as error:
            raise UserError(f"{names[name]} {error}") from None
        stored.update({_stored_name(names[name], part): value for part, value in parts.items()})
    header = {
        "format_version": FORMAT_VERSION,
        "values": values,
        "model": describe(model),
        "crc32": {name: _crc32(tensor) for name, tensor in stored.items()},
    }
    header["header_crc32"] = zlib.crc32(_canonical(header))
    with whole_file(path) as new:
        save_file(stored, new, metadata={KEY: _canonical(header).decode()})
    return sizes(path)


def exact_bytes(model: PrunedModel) -> int:
    """The size of the smallest sparse file that computes the same as a model."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        return write_sparse(file, model, QUANTIZED if model.scales else "fp32")["bytes"]


def read_sparse(path: str | os.PathLike) -> PrunedModel:
    """The model of a sparse file, on the CPU, in eval mode, float32, with its zeros, and the ``scales`` of its codes.

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: the file is incomplete, of another version, damaged or inconsistent; the message is one line.
    """
    state, scales = {}, {}
    try:
        header, model, stored = _open(path)
        for name, _, weight in _weights(header, model, stored):
            if isinstance(weight, Codes):
                state[name], scales[name] = weight.weight(), weight.scales
            else:
                state[name] = weight
        model = fill(model, state)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    model.scales = scales
    return model


def sizes(path: str | os.PathLike) -> dict:
    """What the bytes of a sparse file are used for, and a lower bound of its size.

    Returns: ``bytes`` of the file; ``values``; the bytes of its ``parts`` ("mask", "values", "codes", "levels",
    "scales", "others", "header"); the number of ``masked`` weights, and how many of them are ``kept``; ``dense_bytes``
    of the whole model as float32; ``entropy_bound`` of all weights, the header nothing; and ``weights``, ``figures`` of
    all those with two dimensions or more.

    Raises:
        FileNotFoundError, UserError: as ``read_sparse``.
    """
    used = dict.fromkeys((*PARTS[1:], "others"), 0)
    masked = kept = numbers = bound = 0
    layers = {}
    try:
        header, model, stored = _open(path)
        names = stock_names(model)
        for name, parts, weight in _weights(header, model, stored):
            of = figures(parts, weight)
            for part, value in parts.items():
                used["others" if part == "dense" else part] += value.nbytes
            masked += of["weights"] if "mask" in parts else 0
            kept += of["kept"] if "mask" in parts else 0
            numbers, bound = numbers + of["weights"], bound + of["entropy_bound"]
            if len(of["shape"]) > 1:
                layers[names[name]] = of
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    total = Path(path).stat().st_size
    return {
        "bytes": total,
        "values": header["values"],
        "parts": {**used, "header": total - sum(used.values())},
        "masked": masked,
        "kept": kept,
        "dense_bytes": 4 * numbers,
        "entropy_bound": bound,
        "weights": layers,
    }


def _stored_name(name: str, part: str) -> str:
    return name if part == "dense" else f"{name}.{part}"


def _open(path) -> tuple[dict, PrunedModel, dict[str, Tensor]]:
    """The header of a file; its model, which has no weights yet; and its tensors, their checksums verified."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist")
    wrong = why_unreadable(path, whole=False)
    if wrong:
        raise OSError(f"{path} {wrong}")
    try:
        with safe_open(path, framework="pt") as file:
            header = _header(file)
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(str(error)) from None
    model = build(header["model"])
    dense, size = 4 * sum(t.numel() for t in [*model.parameters(), *model.buffers()]), Path(path).stat().st_size
    if dense > MOST_GROWTH * size + ROOM:
        raise UserError(f"the model would take {dense / 1e9:,.1f} GB, which no file of {size:,} bytes can hold")
    for name, tensor in stored.items():
        if header["crc32"].get(name) != _crc32(tensor):
            raise UserError(f"{name} is damaged: its checksum differs")
    return header, model, stored


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
    if version not in (1, FORMAT_VERSION):
        raise UserError(f"format version {shown(version)}; this release reads 1 and {FORMAT_VERSION}")
    fields = FIELDS | ({"masked"} if version == 1 else set())
    if set(header) != fields:
        raise UserError(f"the header is damaged: {', '.join(sorted(set(header) ^ fields))} missing or unexpected")
    if zlib.crc32(_canonical({k: v for k, v in header.items() if k != "header_crc32"})) != header["header_crc32"]:
        raise UserError("the header is damaged: its checksum differs")
    if not all(isinstance(header[field], dict) for field in ("model", "crc32")):
        raise UserError("the header is damaged: model and crc32 must be JSON objects")
    if header["values"] not in [*VALUES]:  # a list: a JSON value may not be hashable
        raise UserError(f"unknown values {shown(header['values'])}; there is: {', '.join(VALUES)}")
    return header


def _weights(
    header: dict, model: PrunedModel, stored: Mapping[str, Tensor]
) -> Iterator[tuple[str, dict[str, Tensor], Tensor | Codes]]:
    """The name in the model, the parts and the content of every weight. Each tensor is checked and used.

    Raises:
        UserError: a tensor is missing, of no use or wrong.
    """
    kind = sparse_v1 if header["format_version"] == 1 else encoding
    expected = weights(model)
    names = stock_names(model) if kind is encoding else {name: name for name in expected}
    there = {name: {part for part in PARTS if _stored_name(names[name], part) in stored} for name in expected}
    # The form that leaves the fewest parts over; of several, the smallest.
    forms = {name: min(kind.FORMS, key=lambda form: (len(found - form), len(form))) for name, found in there.items()}
    wanted = {_stored_name(names[name], part) for name, form in forms.items() for part in form}
    for what, difference in (("missing", wanted - set(stored)), ("not one of the model's", set(stored) - wanted)):
        if difference:
            more = f" (and {len(difference) - 1} more)" if len(difference) > 1 else ""
            raise UserError(f"the tensor {min(difference)} is {what}{more}")
    for name, tensor in expected.items():
        parts = {part: stored[_stored_name(names[name], part)] for part in PARTS if part in forms[name]}
        try:
            weight = kind.decode(parts, tensor)
        except UserError as error:
            raise UserError(f"{names[name]} {error}") from None
        yield name, parts, weight


def _canonical(header: dict) -> bytes:
    try:
        return json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair
        raise UserError(f"the header is damaged: {error}") from None


def _crc32(tensor: Tensor) -> int:
    return zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
