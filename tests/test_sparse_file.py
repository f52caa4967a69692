"""Sparse files: what is kept of the weights, how large they are, and hostile ones."""

import itertools
import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.stats import entropy
from transformers import Wav2Vec2Config, Wav2Vec2ConformerConfig

import espnet_pinch
from espnet_pinch.asr.decode import transcribe
from espnet_pinch.asr.frontend import UpstreamFrontend
from espnet_pinch.asr.model import PruningASRModel
from espnet_pinch.asr.upstream import config_as_dict
from espnet_pinch.core.channels import compact
from espnet_pinch.core.grids import Grid
from espnet_pinch.export.check import Probe, batch_logits, check_weights, noise
from espnet_pinch.export.encoding import FLOATS, QUANTIZED, decode, encode, figures, pack
from espnet_pinch.export.formats.onnx import check_onnx, write_onnx
from espnet_pinch.export.model import UPSTREAM, assemble, count_layers, describe, gated_layers, weights
from espnet_pinch.export.sparse_file import KEY, _canonical, _crc32, read_sparse, sizes, write_sparse

TOKENS = ["<blank>", "<s>", "<sos/eos>", "<unk>", "<space>", *"EATOIN"]
Q_PROJ = "frontend.upstream.encoder.layers.0.attention.q_proj.weight"
BITS = {8: 8, 4: 4, 3: 3, 2: 2, "ternary": 1}
AUDIO = noise(2)


def make_model(
    config: dict,
    mask: bool = True,
    sparsity: float = 0.85,
    odd: bool = True,
    config_class=Wav2Vec2Config,
    tokens=TOKENS,
) -> PruningASRModel:
    """A random model, every gated layer pruned by magnitude; where ``odd``, one has no zeros and one nothing else."""
    built = {
        "config": config_as_dict(config_class(**{**config, "vocab_size": len(tokens)})),
        "processing": {"sampling_rate": 16000, "do_normalize": True, "return_attention_mask": mask},
    }
    model = assemble(UpstreamFrontend("", built=built), tokens, {"method": "dense"}).eval()
    with torch.no_grad():
        for layer in gated_layers(model).values():
            size = layer.weight.abs().flatten()
            layer.weight[layer.weight.abs() <= size.kthvalue(int(sparsity * len(size))).values] = 0
        if odd:
            first, second, *_ = gated_layers(model).values()
            first.weight.normal_()
            second.weight.zero_()
    return model


def quantize(model: PruningASRModel, *widths: int | str) -> None:
    """Quantise as training would: gated layers to these widths in turn, the rest to 8 bits, one layer not at all."""
    gated, widths = {f"{UPSTREAM}{name}.weight" for name in gated_layers(model)}, itertools.cycle(widths)
    for name, weight in weights(model).items():
        if weight.dim() > 1 and len(weight) > 1 and "conv_layers.0" not in name:
            grid = Grid(next(widths) if name in gated else 8)
            grid.fit(weight)
            codes = grid.round(weight)
            weight.copy_(codes.weight())
            model.scales[name] = codes.scales


@pytest.fixture
def model(tiny_config) -> PruningASRModel:
    return make_model(tiny_config)


def states_equal(one: PruningASRModel, other: PruningASRModel) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---- The sparse file


def test_fp32_is_bit_exact(model, tmp_path):
    write_sparse(tmp_path / "m.safetensors", model)
    again = espnet_pinch.load(tmp_path / "m.safetensors")
    assert states_equal(again, model) and not again.training
    assert again.token_list == TOKENS and again.frontend.processing == model.frontend.processing
    for a, b in zip(batch_logits(again, AUDIO), batch_logits(model, AUDIO)):
        assert torch.equal(a, b)
    assert transcribe(again, AUDIO) == transcribe(model, AUDIO) and len(transcribe(model, AUDIO)[1]) > 5
    first = (tmp_path / "m.safetensors").read_bytes()
    write_sparse(tmp_path / "m.safetensors", again)
    assert (tmp_path / "m.safetensors").read_bytes() == first


@pytest.mark.parametrize("width", BITS)
def test_codes_of_a_quantized_model_are_exact(model, tmp_path, width):
    quantize(model, width)
    with torch.no_grad():
        model.ctc.ctc_lo.bias.copy_(model.ctc.ctc_lo.bias.half())
    path = tmp_path / "m.safetensors"
    write_sparse(path, model, QUANTIZED)
    again = espnet_pinch.load(path)
    assert states_equal(again, model) and again.scales.keys() == model.scales.keys()
    assert all(torch.equal(scales, model.scales[name]) for name, scales in again.scales.items())
    for a, b in zip(batch_logits(again, AUDIO), batch_logits(model, AUDIO)):
        assert torch.equal(a, b)
    bits = {name: weight["bits"] for name, weight in sizes(path)["weights"].items()}
    assert bits[FILLED] == BITS[width]
    assert bits["wav2vec2.feature_extractor.conv_layers.0.conv.weight"] == 32
    stored = load_file(path)
    assert stored["lm_head.bias"].dtype == torch.float16
    assert stored["wav2vec2.encoder.layer_norm.bias"].dtype == torch.float16  # zeros
    assert stored["wav2vec2.feature_projection.projection.bias"].dtype == torch.float32
    first = path.read_bytes()
    write_sparse(path, again, QUANTIZED)
    assert path.read_bytes() == first
    write_sparse(path, model, "int8")  # no scale is made anew
    check_weights("file", read_sparse(path), model, "int8")
    assert torch.equal(read_sparse(path).state_dict()[Q_PROJ], model.state_dict()[Q_PROJ])


@pytest.mark.parametrize("values, step", [("fp16", 2**-11), ("bf16", 2**-8), ("int8", 1 / 127)])
def test_rounded_values_are_as_near_as_can_be(model, tmp_path, values, step):
    write_sparse(tmp_path / "m.safetensors", model, values)
    again = read_sparse(tmp_path / "m.safetensors")
    for name, weight in weights(model).items():
        got, size = weights(again)[name], weight.abs()
        if values == "int8" and name in again.scales:
            half = size.flatten(1).amax(1).view(-1, *[1] * (weight.dim() - 1)) * step / 2
            # Only weights below half a step, which do not become 0, are further off.
            assert ((got - weight).abs() <= 1.0001 * torch.where((size > 0) & (size < half), 2 * half, half)).all()
        else:
            assert ((got - weight).abs() <= (0 if values == "int8" else step) * size).all()
        assert torch.equal(got == 0, weight == 0)
    assert (len(again.scales) == 17) == (values == "int8") and "ctc.ctc_lo.bias" not in again.scales
    assert not torch.equal(weights(again)[Q_PROJ], weights(model)[Q_PROJ])
    check_weights("file", again, model, values)
    with torch.no_grad():
        weights(again)[Q_PROJ][0, 0] *= 1.02
    with pytest.raises(ValueError, match=f"{Q_PROJ} differs by more than {values} explains"):
        check_weights("file", again, model, values)


@pytest.mark.parametrize("values", [*FLOATS, "int8", QUANTIZED])
def test_sizes_are_those_of_the_file(model, tmp_path, values):
    if values == QUANTIZED:
        quantize(model, "ternary", 4)
    path = tmp_path / "m.safetensors"
    figures = write_sparse(path, model, values)
    parts = figures["parts"]
    assert figures == sizes(path) and figures["bytes"] == path.stat().st_size == sum(parts.values())
    stored = load_file(path)
    for part in ("mask", "values", "codes", "levels", "scales"):
        assert parts[part] == sum(tensor.nbytes for name, tensor in stored.items() if name.endswith(f".{part}"))
    layers = {f"wav2vec2.{name}.weight": layer for name, layer in count_layers(model).items()}
    pruned = {name: layer for name, layer in layers.items() if layer["pruned"]}
    kept = sum(layer["weights"] - layer["pruned"] for layer in pruned.values())
    assert (figures["masked"], figures["kept"]) == (sum(la["weights"] for la in pruned.values()), kept)
    assert figures["dense_bytes"] == 4 * sum(p.numel() for p in model.parameters()) and len(pruned) == 11
    assert figures["entropy_bound"] < figures["bytes"] - parts["header"]
    own = {f"wav2vec2.{name.removeprefix(UPSTREAM)}": weight for name, weight in weights(model).items()}
    for name, layer in pruned.items():
        found, n = figures["weights"][name], layer["weights"]
        assert (found["shape"], found["weights"], found["kept"]) == (layer["shape"], n, n - layer["pruned"])
        assert found["bytes"] == sum(t.nbytes for stored_name, t in stored.items() if stored_name.startswith(name))
        bound = n * entropy([layer["pruned"], n - layer["pruned"]], base=2) / 8
        if values in FLOATS:
            bound += (n - layer["pruned"]) * FLOATS[values].itemsize
            assert found["bits"] == 8 * FLOATS[values].itemsize
        elif found["kept"]:
            rows, scales = own[name], stored[f"{name}.scales"]
            codes = (rows / torch.where(scales > 0, scales, 1)[:, None]).round()
            _, counts = codes[rows != 0].unique(return_counts=True)
            bound += entropy(counts, base=2) * counts.sum() / 8 + 4 * len(scales) + len(stored[f"{name}.levels"])
        assert found["entropy_bound"] == pytest.approx(float(bound), abs=1) or not found["kept"]


@pytest.mark.parametrize("width", BITS)
@pytest.mark.parametrize("sparsity", [0.0, 0.65, 0.85, 0.99])
def test_masks_and_codes_are_near_their_entropy(width, sparsity):
    weight = torch.randn(768, 768)
    weight[torch.rand(768, 768) < sparsity] = 0
    grid = Grid(width)
    grid.fit(weight)
    codes = grid.round(weight)
    parts = encode(codes)
    found = figures(parts, decode(parts, weight))
    assert ("mask" in parts) == (sparsity > 0) and found["bits"] == BITS[width]
    assert found["entropy_bound"] <= found["bytes"] <= (1.05 if sparsity < 0.99 else 1.3) * found["entropy_bound"]
    assert torch.equal(decode(parts, weight).weight(), codes.weight())


def test_a_third_party_can_read_it_as_documented(model, tmp_path):
    quantize(model, 3)
    write_sparse(tmp_path / "m.safetensors", model, QUANTIZED)
    stored = load_file(tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        header = json.loads(file.metadata()["espnet_pinch"])
    assert header["format_version"] == 2 and header["values"] == "quantized"
    theirs = {f"wav2vec2.{name.removeprefix(UPSTREAM)}" for name in weights(model) if name.startswith(UPSTREAM)}
    assert {name.rpartition(".")[0] for name in stored if name.endswith(".scales")} < {*theirs, "lm_head.weight"}

    def digits(name, base, count):
        in_byte = max(n for n in range(1, 9) if base**n <= 256)
        size, raw = -(-count // in_byte), stored[name].numpy().tobytes()
        raw = raw if len(raw) == size else zlib.decompress(raw, -15)
        return [byte // base**i % base for byte in raw for i in range(in_byte)][:count]

    name = "wav2vec2.encoder.layers.1.feed_forward.output_dense.weight"
    rows, columns = 16, 24
    levels, scales = stored[f"{name}.levels"].tolist(), stored[f"{name}.scales"]
    mask = digits(f"{name}.mask", 2, rows * columns)
    codes = iter(digits(f"{name}.codes", 2 * len(levels), sum(mask)))
    weight = torch.zeros(rows * columns)
    for i in range(rows * columns):
        if mask[i]:
            code = next(codes)
            weight[i] = (-1) ** (code % 2) * levels[code // 2] * scales[i // columns]
    assert torch.equal(weight.view(rows, columns), model.state_dict()[name.replace("wav2vec2.", UPSTREAM)])


def test_a_mask_may_end_within_a_byte():
    weight = torch.tensor([[0.0, 2.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, -3.0, 0.0], [0.0, 0.0, 0.0, 0.0, 5.0]])
    parts = encode(weight)
    assert parts["mask"].tolist() == [0b00000010, 0b01000001] and parts["values"].tolist() == [2, -3, 5]
    assert torch.equal(decode(parts, weight), weight)
    parts["mask"][1] |= 0b10000000
    parts["values"] = torch.ones(4)
    with pytest.raises(ValueError, match="has a mask part with more than its 15 weights"):
        decode(parts, weight)


@pytest.mark.parametrize(
    "weight",
    [torch.zeros(3, 4), torch.ones(3, 4), torch.tensor([[0.0, -1e-40], [3e38, 1.0]]), torch.tensor([[[0.5]]])],
)
def test_odd_weights_come_back(weight):
    codes = Grid(8).round(weight)
    again = decode(encode(codes), weight)
    assert torch.equal(again.codes, codes.codes) and torch.equal(again.scales, codes.scales)
    assert torch.equal(decode(encode(weight), weight), weight)


@pytest.mark.parametrize(
    "config_class, fields",
    [
        (Wav2Vec2Config, {}),
        pytest.param(Wav2Vec2ConformerConfig, {"position_embeddings_type": "rotary"}, marks=pytest.mark.slow),
    ],
)
def test_smaller_matrices_are_kept_small(config_class, fields, tiny_config, tmp_path):
    config = {**tiny_config, **fields, "feat_extract_norm": "layer"}
    model = make_model(config, config_class=config_class)
    with torch.no_grad():
        for name, layer in gated_layers(model).items():
            layer.weight.normal_()
            columns = name.endswith(("out_proj", "linear_out", "output_dense"))
            (layer.weight.T if columns else layer.weight)[::3] = 0
            if not columns:
                layer.bias[::3] = 0
    before = batch_logits(model, AUDIO)
    kept = compact(model.frontend.upstream, gated_layers(model), model.pruning.structure.ties)
    channels = {name: len(places) for name, places in kept.items()}
    object.__setattr__(model.pruning.settings, "channels", channels)
    figures = write_sparse(tmp_path / "m.safetensors", model)
    again = espnet_pinch.load(tmp_path / "m.safetensors")
    assert states_equal(again, model) and figures["masked"] == 0
    assert figures["dense_bytes"] < 4 * sum(
        p.numel() for p in make_model(config, config_class=config_class).parameters()
    )
    for a, b in zip(batch_logits(again, AUDIO), before):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    write_sparse(tmp_path / "m8.safetensors", model, "int8")
    check_weights("file", read_sparse(tmp_path / "m8.safetensors"), model, "int8")
    write_onnx(tmp_path / "m.onnx", model)
    assert check_onnx(tmp_path / "m.onnx", Probe.of(model, AUDIO)) < 1e-4


def test_weights_that_do_not_fit_are_refused_and_nothing_is_left(model, tmp_path):
    with torch.no_grad():
        model.ctc.ctc_lo.weight[0, 0] = 1e5
    with pytest.raises(ValueError, match=r"lm_head.weight holds 100000, too large for float16; use bf16"):
        write_sparse(tmp_path / "m.safetensors", model, "fp16")
    write_sparse(tmp_path / "b.safetensors", model, "bf16")
    with torch.no_grad():
        model.ctc.ctc_lo.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="lm_head.weight holds a value that is not finite"):
        write_sparse(tmp_path / "m.safetensors", model)
    with pytest.raises(ValueError, match="unknown values 'int4'; there is: fp32, fp16, bf16, int8, quantized"):
        write_sparse(tmp_path / "m.safetensors", model, "int4")
    with pytest.raises(ValueError, match="the model is not quantized"):
        write_sparse(tmp_path / "m.safetensors", model, QUANTIZED)
    scales = model.scales[Q_PROJ] = Grid(8).round(model.state_dict()[Q_PROJ]).scales
    message = "layers.0.attention.q_proj.weight is not whole numbers from -127 to 127 times the scales of its rows"
    with pytest.raises(ValueError, match=message):
        write_sparse(tmp_path / "m.safetensors", model, QUANTIZED)
    model.scales[Q_PROJ] = scales[:1]
    with pytest.raises(ValueError, match=message):
        write_sparse(tmp_path / "m.safetensors", model, QUANTIZED)
    assert [p.name for p in tmp_path.iterdir()] == ["b.safetensors"]


# ---- Hostile files


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
FILLED = "wav2vec2.encoder.layers.0.attention.k_proj.weight"  # without zeros
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
