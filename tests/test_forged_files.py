"""Sparse files that are damaged, forged, or of the first version."""

import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_models import FILLED, make_model, quantize, states_equal

import espnet_pinch
from espnet_pinch.core.grids import Grid
from espnet_pinch.export.encoding import QUANTIZED, pack
from espnet_pinch.export.model import UPSTREAM, describe, gated_layers, weights
from espnet_pinch.export.sparse_file import KEY, _canonical, _crc32, sizes, write_sparse


def forge(path, change, honest=True):
    """Write a sparse file again, changed by ``change(tensors, header)``, with (or without) the checksums made right."""
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()[KEY])
    change(tensors, header)
    if honest:
        header["crc32"] = {name: _crc32(tensor) for name, tensor in tensors.items()}
        sign(header)
    save_file({name: t.contiguous() for name, t in tensors.items()}, path, metadata={KEY: json.dumps(header)})


def sign(header):
    """Make the checksum of a header right."""
    header["header_crc32"] = zlib.crc32(_canonical({k: v for k, v in header.items() if k != "header_crc32"}))
    return header


def put(name, new):
    def change(tensors, header):
        tensors[name] = new(tensors[name])

    return change


def set_header(*keys, value):
    def change(tensors, header):
        *parents, last = keys
        for key in parents:
            header = header[key]
        header[last] = value

    return change


def with_entry(index, value):
    def new(tensor):
        tensor = tensor.clone()
        tensor[index] = value
        return tensor

    return new


K_PROJ = "wav2vec2.encoder.layers.1.attention.k_proj.weight"
EMPTY = "wav2vec2.encoder.layers.0.attention.v_proj.weight"  # with nothing else


def deflated(raw, more=b""):
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    return torch.frombuffer(bytearray(stream.compress(bytes(raw)) + stream.flush() + more), dtype=torch.uint8)


BITS_OF_K = "k_proj.weight has a mask part that is not 32 bytes for 256 weights"
SCALES_OF_K = "k_proj.weight has scales that are not 16 numbers of at least 0"
LEVELS_OF_K = "k_proj.weight has levels that are not rising whole numbers from 1 to 127"
FORGED = [
    (lambda t, h: t.pop(f"{K_PROJ}.mask"), "k_proj.weight has a codes part that is not 256 bytes for 256 weights"),
    (lambda t, h: t.pop(f"{K_PROJ}.codes"), "the tensor .*k_proj.weight.codes is missing"),
    (lambda t, h: t.pop(f"{K_PROJ}.scales"), "the tensor .*k_proj.weight.scales is missing"),
    (lambda t, h: [t.pop(name) for name in [*t] if name.startswith(K_PROJ)], "the tensor .*k_proj.weight is missing$"),
    (lambda t, h: t.pop("lm_head.bias"), "the tensor lm_head.bias is missing"),
    (lambda t, h: t.update(extra=torch.zeros(2)), "the tensor extra is not one of the model's"),
    (lambda t, h: t.update({K_PROJ: torch.zeros(16, 16)}), "k_proj.weight is not one of the model's"),
    (lambda t, h: t.update({f"{K_PROJ}.values": torch.zeros(2)}), "k_proj.weight.values is not one of the model's"),
    (put(f"{K_PROJ}.mask", lambda t: t[:-1]), BITS_OF_K),
    (put(f"{K_PROJ}.mask", lambda t: t[:0]), BITS_OF_K),
    (put(f"{K_PROJ}.mask", lambda t: deflated(range(31))), BITS_OF_K),
    (put(f"{K_PROJ}.mask", lambda t: deflated(range(33))), BITS_OF_K),
    (put(f"{K_PROJ}.mask", lambda t: deflated(range(32), b"more")), BITS_OF_K),
    (put(f"{K_PROJ}.mask", lambda t: deflated(range(32))[:-1]), BITS_OF_K),
    (put(f"{K_PROJ}.mask", lambda t: deflated(bytes(10**8))), BITS_OF_K),
    (put(f"{K_PROJ}.mask", lambda t: t.int()), "k_proj.weight has a mask part that is torch.int32 of the shape"),
    (put(f"{K_PROJ}.mask", lambda t: t[:, None]), r"k_proj.weight has a mask part that is torch.uint8 of the shape"),
    (put(f"{K_PROJ}.mask", lambda t: deflated([255] * 32)), "k_proj.weight has a codes part that is not 256 bytes for"),
    (put(f"{K_PROJ}.codes", lambda t: t[1:]), r"k_proj.weight has a codes part that is not \d+ bytes for 39 weights"),
    (put(f"{K_PROJ}.codes", lambda t: torch.full_like(t, 255)), "k_proj.weight has a codes part with a byte over"),
    (put(f"{K_PROJ}.levels", lambda t: t[:2]), "k_proj.weight has a codes part that is not 10 bytes for 39 weights"),
    (put(f"{K_PROJ}.levels", lambda t: t[:0]), "k_proj.weight has no levels"),
    (put(f"{K_PROJ}.levels", lambda t: t.flip(0)), LEVELS_OF_K),
    (put(f"{K_PROJ}.levels", lambda t: t - t[0]), LEVELS_OF_K),
    (put(f"{K_PROJ}.levels", lambda t: t.int() + 127), LEVELS_OF_K),
    (put(f"{K_PROJ}.levels", lambda t: t[None]), LEVELS_OF_K),
    (put(f"{K_PROJ}.levels", lambda t: t.bfloat16()), LEVELS_OF_K),
    (put(f"{K_PROJ}.levels", with_entry(1, -128)), LEVELS_OF_K),
    (put(f"{K_PROJ}.scales", with_entry(0, torch.nan)), SCALES_OF_K),
    (put(f"{K_PROJ}.scales", with_entry(0, torch.inf)), "k_proj.weight holds a value that is not finite"),
    (put(f"{K_PROJ}.scales", with_entry(0, 3e38)), "k_proj.weight holds a value that is not finite"),
    (put(f"{K_PROJ}.scales", lambda t: -t), SCALES_OF_K),
    (put(f"{K_PROJ}.scales", lambda t: t[:1]), SCALES_OF_K),
    (put(f"{K_PROJ}.scales", lambda t: t.double()), SCALES_OF_K),
    (put(f"{EMPTY}.codes", lambda t: torch.zeros(1, dtype=torch.uint8)), "0 bytes for 0 weights"),
    (put(f"{FILLED}.codes", lambda t: t[:-1]), "k_proj.weight has a codes part that is not 256 bytes for"),
    (put("lm_head.bias", with_entry(0, torch.nan)), "lm_head.bias holds a value that is not finite"),
    (put("lm_head.bias", lambda t: t[1:]), r"lm_head.bias has the shape \(10,\), not \(11,\)"),
    (put("lm_head.bias", lambda t: t.double()), "lm_head.bias is stored as torch.float64, not one of torch.float32"),
    (put("lm_head.bias", lambda t: t.long()), "lm_head.bias is stored as torch.int64, not one of torch.float32"),
    (set_header("format_version", value=3), "format version 3; this release reads 1 and 2"),
    (set_header("format_version", value="x" * 10**6), "^.{0,300}format version 'xxx[x.]*'; this release reads"),
    (set_header("format_version", value=1), "the header is damaged: masked missing or unexpected"),
    (set_header("values", value="int3"), "unknown values 'int3'"),
    (set_header("model", "config", "model_type", value="bert"), "from its description: a model of type bert"),
    (set_header("model", "config", "hidden_act", value="magic"), "from its description: KeyError"),
    (
        set_header("model", "config", "num_hidden_layers", value=10**9),
        "from its description: num_hidden_layers 1000000000",
    ),
    (lambda t, h: h["model"]["config"].update(add_adapter=True, num_adapter_layers=10**9), "num_adapter_layers 10000"),
    (
        lambda t, h: h["model"]["config"].update(
            num_feat_extract_layers=10**5, conv_dim=[8] * 10**5, conv_kernel=[2] * 10**5, conv_stride=[1] * 10**5
        ),
        "num_feat_extract_layers 100000",
    ),
    (set_header("model", "config", "conv_stride", value=[0, 0]), r"convolutions with strides \[0, 0\]"),
    (set_header("model", "processing", "sampling_rate", value=0), "the sampling rate cannot be 0 Hz"),
    (set_header("model", "processing", "sampling_rate", value="x"), "the sampling rate cannot be 'x' Hz"),
    (set_header("model", "processing", "do_normalize", value="no"), "do_normalize must be true or false, not .no."),
    (set_header("values", value=["fp32"]), r"unknown values \['fp32'\]"),
    (set_header("model", "config", "intermediate_size", value=10**7), "the model would take 2.6 GB, which no file of"),
    (set_header("model", "config", "hidden_size", value=10**5), "the model would take 400.1 GB, which no file of"),
    (set_header("model", "config", "hidden_size", value=10**9), "from its description: a hidden size of 1000000000"),
    (set_header("model", "config", "num_labels", value=10**8), "from its description: num_labels 100000000"),
    (set_header("model", "config", "audio_config", value={"num_labels": 1e8}), "from its description: num_labels 1000"),
    (set_header("model", "tokens", value=7), "from its description: tokens that are not a list"),
    (set_header("model", "pruning", "layers", value="("), "from its description|not a regular expression"),
    (set_header("model", "tokens", value=[1] * 11), "from its description: tokens that are not a list"),
    (set_header("model", "pruning", "layers", value=r"^((\w|\.)+)+\$$"), "the pattern of layers repeats a group"),
    (set_header("model", "pruning", "layers", value=".*" * 20 + "!"), "it may take forever to match"),
    (set_header("model", "pruning", "layers", value="(?:.|..)" * 40 + "!"), "it may take forever to match"),
    (
        set_header("model", "pruning", "dense", "channels", value={"no.layer": 3}),
        "from its description: AttributeError",
    ),
    (set_header("model", "pruning", "dense", "channels", value=[1]), "from its description: AttributeError"),
    (
        set_header("model", "pruning", "dense", "channels", value={K_PROJ[9:-7].replace("k_proj", "out_proj"): -4}),
        "from its description: RuntimeError",
    ),
]


@pytest.fixture(scope="module")
def int8_file(tmp_path_factory):
    from conftest import TINY

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("int8") / "m.safetensors"
    write_sparse(path, make_model(TINY), "int8")
    return path


def refused(path, message):
    with pytest.raises(ValueError, match=message) as caught:
        espnet_pinch.load(path)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(path))


def test_a_description_does_not_say_how_a_model_runs(int8_file, tmp_path):
    path = Path(shutil.copy(int8_file, tmp_path / "m.safetensors"))
    forge(path, lambda t, h: h["model"]["config"].update(return_dict=False, attn_implementation="someone/attention"))
    models = [espnet_pinch.load(file) for file in (int8_file, path)]
    want, got = (model.encode(torch.zeros(1, 4000), torch.tensor([4000]))[0] for model in models)
    assert torch.equal(got, want)


def test_half_of_a_surrogate_pair_is_damage(int8_file, tmp_path):
    with safe_open(int8_file, framework="pt") as file:
        header = file.metadata()[KEY]
    tensors = load_file(int8_file)
    path = tmp_path / "m.safetensors"
    save_file(tensors, path, metadata={KEY: header.replace('"<blank>"', '"\\ud800"', 1)})
    refused(path, "the header is damaged: 'utf-8' codec can't encode")


@pytest.mark.parametrize("change, message", FORGED)
def test_a_forged_file_gets_one_line(int8_file, tmp_path, change, message):
    path = Path(shutil.copy(int8_file, tmp_path / "m.safetensors"))
    forge(path, lambda tensors, header: None)
    espnet_pinch.load(path)  # forging as such does no harm
    forge(path, change)
    refused(path, message)


def test_padding_that_is_not_zero_is_refused(tmp_path, tiny_config):
    path = tmp_path / "m.safetensors"
    model = make_model(tiny_config, odd=False)
    quantize(model, 4)
    write_sparse(path, model, QUANTIZED)
    kept = sizes(path)["weights"][K_PROJ]["kept"]
    assert kept % 2
    forge(path, put(f"{K_PROJ}.codes", lambda t: pack(np.full(kept, 1, np.uint8), 16)))
    espnet_pinch.load(path)
    forge(path, put(f"{K_PROJ}.codes", lambda t: deflated([17] * (kept // 2 + 1))))
    refused(path, f"k_proj.weight has a codes part with more than its {kept} weights")


def test_every_damaged_bit_is_seen(int8_file, tmp_path):
    whole = int8_file.read_bytes()
    path = tmp_path / "m.safetensors"
    generator = np.random.default_rng(0)
    for position in [*range(0, 200, 7), *generator.integers(len(whole), size=60).tolist()]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        refused(path, "")
    for length in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(path, "")
    path.write_bytes(whole + b"more")
    refused(path, "")


def test_a_damaged_tensor_is_named(int8_file, tmp_path):
    path = Path(shutil.copy(int8_file, tmp_path / "m.safetensors"))
    forge(path, put(f"{K_PROJ}.codes", with_entry(0, 1)), honest=False)
    refused(path, "k_proj.weight.codes is damaged: its checksum differs")
    forge(path, set_header("values", value="fp32"), honest=False)
    refused(path, "the header is damaged: its checksum differs")
    forge(path, lambda tensors, header: header.pop("values"), honest=False)
    refused(path, "the header is damaged: values missing or unexpected")
    forge(path, lambda tensors, header: header.update(sign({**header, "values": "int8", "crc32": []})), honest=False)
    refused(path, "the header is damaged: model and crc32 must be JSON objects")
    for text in ("[]", "{", "[" * 100_000):
        save_file({"a": torch.zeros(2)}, path, metadata={KEY: text})
        refused(path, "the header is damaged: it is not the JSON object")
    save_file({"a": torch.zeros(2)}, path)
    refused(path, "not a sparse file of espnet_pinch")


# ---- Version 1


def write_version_1(path, model, values):
    """As the first release wrote it: the names of the model, masks in plain bits, gated weights in ``values``."""
    gated = {f"{UPSTREAM}{name}.weight" for name in gated_layers(model)}
    stored, masked = {}, {}
    for name, weight in weights(model).items():
        if name not in gated:
            stored[name] = weight.half() if values == "int8" else weight.clone()
            continue
        keep = weight != 0
        if values == "int8":
            weight, stored[f"{name}.scales"] = Grid(8).round(weight)
            weight = weight.to(torch.int8)
        if keep.all():
            stored[name] = weight.clone()
            continue
        masked[name] = list(weight.shape)
        bits = np.packbits(keep.flatten().numpy(), bitorder="little")
        stored.update({f"{name}.mask": torch.from_numpy(bits), f"{name}.values": weight[keep]})
    header = {"format_version": 1, "values": values, "masked": masked, "model": describe(model)}
    save_file(stored, path, metadata={KEY: json.dumps({**header, "crc32": {}, "header_crc32": 0})})
    forge(path, lambda tensors, header: None)


def test_version_1_is_still_read(model, tmp_path):
    path = tmp_path / "m.safetensors"
    write_version_1(path, model, "fp32")
    assert states_equal(espnet_pinch.load(path), model)
    old, new = sizes(path), write_sparse(tmp_path / "new.safetensors", model)
    assert sum(old["parts"].values()) == path.stat().st_size
    assert all(old[key] == new[key] for key in ("masked", "kept", "dense_bytes"))
    write_version_1(path, model, "int8")
    again = espnet_pinch.load(path)
    for name, layer in gated_layers(model).items():
        got = again.frontend.upstream.get_submodule(name).weight
        assert torch.equal(got, Grid(8).round(layer.weight).weight())
    assert torch.equal(again.ctc.ctc_lo.weight, model.ctc.ctc_lo.weight.half().float())
    write_sparse(tmp_path / "new.safetensors", again, QUANTIZED)
    assert states_equal(espnet_pinch.load(tmp_path / "new.safetensors"), again)


OLD = K_PROJ.replace("wav2vec2.", UPSTREAM)
FORGED_1 = [
    (lambda t, h: t.pop(f"{OLD}.mask"), "the tensor .*k_proj.weight.mask is missing"),
    (lambda t, h: t.pop("ctc.ctc_lo.bias"), "the tensor ctc.ctc_lo.bias is missing"),
    (lambda t, h: t.update(extra=torch.zeros(2)), "the tensor extra is not one of the model's"),
    (put(f"{OLD}.mask", lambda t: t[:-1]), "k_proj.weight has a mask part that is not 32 bytes for 256 weights"),
    (put(f"{OLD}.values", lambda t: t[1:]), r"k_proj.weight has values of the shape \(38,\) where its mask keeps 39"),
    (put(f"{OLD}.values", lambda t: t.float()), "k_proj.weight is stored as torch.float32, not torch.int8"),
    (put(f"{OLD}.scales", lambda t: -t), SCALES_OF_K),
    (put("ctc.ctc_lo.weight", lambda t: t.T), r"ctc.ctc_lo.weight has the shape \(16, 11\), not \(11, 16\)"),
    (set_header("format_version", value=2), "the header is damaged: masked missing or unexpected"),
    (set_header("model", "config", "intermediate_size", value=10**7), "the model would take 2.6 GB, which no file of"),
]


@pytest.mark.parametrize("change, message", FORGED_1)
def test_a_forged_file_of_version_1_gets_one_line(model, tmp_path, change, message):
    write_version_1(tmp_path / "m.safetensors", model, "int8")
    forge(tmp_path / "m.safetensors", change)
    refused(tmp_path / "m.safetensors", message)
