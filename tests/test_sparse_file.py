"""Sparse files: what is kept of the weights, and how large they are."""

import json
import zlib

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from scipy.stats import entropy
from small_models import AUDIO, BITS, FILLED, Q_PROJ, TOKENS, make_model, quantize, states_equal
from transformers import Wav2Vec2Config, Wav2Vec2ConformerConfig

import espnet_pinch
from espnet_pinch.asr.decode import transcribe
from espnet_pinch.core.channels import compact
from espnet_pinch.core.grids import Grid
from espnet_pinch.export.check import Probe, batch_logits, check_weights
from espnet_pinch.export.encoding import FLOATS, QUANTIZED, decode, encode, figures
from espnet_pinch.export.formats.onnx import check_onnx, write_onnx
from espnet_pinch.export.model import UPSTREAM, count_layers, gated_layers, weights
from espnet_pinch.export.sparse_file import read_sparse, sizes, write_sparse


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
