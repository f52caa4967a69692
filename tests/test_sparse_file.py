"""Sparse files: what is kept of the weights, how large they are, and hostile ones."""

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
from espnet_pinch.export.check import Probe, batch_logits, check_weights, noise
from espnet_pinch.export.encoding import VALUES, decode, encode
from espnet_pinch.export.formats.onnx import check_onnx, write_onnx
from espnet_pinch.export.model import assemble, count_layers, gated_layers
from espnet_pinch.export.sparse_file import KEY, _canonical, _crc32, read_sparse, sizes, write_sparse

TOKENS = ["<blank>", "<s>", "<sos/eos>", "<unk>", "<space>", *"EATOIN"]
Q_PROJ = "frontend.upstream.encoder.layers.0.attention.q_proj.weight"
AUDIO = noise(2)


def make_model(
    config: dict, mask: bool = True, sparsity: float = 0.85, odd: bool = True, config_class=Wav2Vec2Config
) -> PruningASRModel:
    """A random model, every gated layer pruned by magnitude; where ``odd``, one has no zeros and one nothing else."""
    built = {
        "config": config_as_dict(config_class(**{**config, "vocab_size": len(TOKENS)})),
        "processing": {"sampling_rate": 16000, "do_normalize": True, "return_attention_mask": mask},
    }
    model = assemble(UpstreamFrontend("", built=built), TOKENS, {"method": "dense"}).eval()
    with torch.no_grad():
        for layer in gated_layers(model).values():
            size = layer.weight.abs().flatten()
            layer.weight[layer.weight.abs() <= size.kthvalue(int(sparsity * len(size))).values] = 0
        if odd:
            first, second, *_ = gated_layers(model).values()
            first.weight.normal_()
            second.weight.zero_()
    return model


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


@pytest.mark.parametrize("values, step", [("fp16", 2**-11), ("bf16", 2**-8), ("int8", 1 / 254)])
def test_rounded_values_are_as_near_as_can_be(model, tmp_path, values, step):
    write_sparse(tmp_path / "m.safetensors", model, values)
    again = read_sparse(tmp_path / "m.safetensors")
    layer, weight = again.state_dict()[Q_PROJ], model.state_dict()[Q_PROJ]
    scale = weight.abs().amax(1, keepdim=True) if values == "int8" else weight.abs()
    error = (layer - weight).abs()
    assert 0 < error.max() and (error <= 1.0001 * step * scale).all()
    assert torch.equal(layer == 0, weight == 0)
    head = again.ctc.ctc_lo.weight - model.ctc.ctc_lo.weight
    assert (head.abs() <= 2**-8 * model.ctc.ctc_lo.weight.abs()).all()
    check_weights("file", again, model, values)
    with torch.no_grad():
        again.state_dict()[Q_PROJ][layer != 0] *= 1.02
    with pytest.raises(ValueError, match=f"{Q_PROJ} differs by more than {values} explains"):
        check_weights("file", again, model, values)


@pytest.mark.parametrize("values", VALUES)
def test_sizes_are_those_of_the_file(model, tmp_path, values):
    path = tmp_path / "m.safetensors"
    figures = write_sparse(path, model, values)
    assert figures == sizes(path) and figures["bytes"] == path.stat().st_size == sum(figures["parts"].values())
    width, other = VALUES[values].itemsize, {"fp32": 4}.get(values, 2)
    layers = [layer for layer in count_layers(model).values() if layer["pruned"]]
    weights, kept = sum(la["weights"] for la in layers), sum(la["weights"] - la["pruned"] for la in layers)
    assert (figures["masked"], figures["kept"]) == (weights, kept) and len(layers) == 11
    assert figures["parts"]["mask"] == weights / 8 and figures["parts"]["values"] == width * kept
    assert figures["parts"]["scales"] == (4 * sum(la["shape"][0] for la in count_layers(model).values())) * (width == 1)
    total = sum(p.numel() for p in model.parameters())
    dense = next(la["weights"] for la in count_layers(model).values() if not la["pruned"])
    assert figures["parts"]["others"] == other * (total - weights - dense) + width * dense
    assert figures["dense_bytes"] == 4 * total
    bits = sum(la["weights"] * entropy([la["pruned"], la["weights"] - la["pruned"]], base=2) for la in layers)
    bound = bits / 8 + sum(figures["parts"][part] for part in ("values", "scales", "others"))
    assert figures["entropy_bound"] == pytest.approx(bound, abs=1) and figures["entropy_bound"] < figures["bytes"]


def test_a_third_party_can_read_it_as_documented(model, tmp_path):
    write_sparse(tmp_path / "m.safetensors", model, "int8")
    stored = load_file(tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        header = json.loads(file.metadata()["espnet_pinch"])
    assert header["format_version"] == 1 and header["values"] == "int8"
    name = next(name for name in header["masked"] if "layers.1.feed_forward.output" in name)
    rows, columns = header["masked"][name]
    weight, values = np.zeros(rows * columns, np.float32), iter(stored[f"{name}.values"].tolist())
    for i in range(rows * columns):
        if stored[f"{name}.mask"][i // 8] >> i % 8 & 1:
            weight[i] = next(values) * stored[f"{name}.scales"][i // columns]
    weight, half_steps = weight.reshape(rows, columns), stored[f"{name}.scales"].numpy()[:, None] / 2
    assert np.array_equal(weight, read_sparse(tmp_path / "m.safetensors").state_dict()[name])
    assert (np.abs(weight - model.state_dict()[name].numpy()) <= 1.001 * half_steps).all()


def test_a_mask_may_end_within_a_byte():
    weight = torch.tensor([[0.0, 2.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, -3.0, 0.0], [0.0, 0.0, 0.0, 0.0, 5.0]])
    parts = encode(weight, "fp32")
    assert parts["mask"].tolist() == [0b00000010, 0b01000001] and parts["values"].tolist() == [2, -3, 5]
    assert torch.equal(decode(parts, weight.shape), weight)
    parts["mask"][1] |= 0b10000000
    parts["values"] = torch.ones(4)
    with pytest.raises(ValueError, match="has a mask with bits beyond its 15 weights"):
        decode(parts, weight.shape)


@pytest.mark.parametrize(
    "config_class, fields", [(Wav2Vec2Config, {}), (Wav2Vec2ConformerConfig, {"position_embeddings_type": "rotary"})]
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
    channels = compact(model.frontend.upstream, gated_layers(model), model.pruning.structure.ties)
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
    with pytest.raises(ValueError, match=r"ctc.ctc_lo.weight holds 100000, too large for float16; use bf16"):
        write_sparse(tmp_path / "m.safetensors", model, "int8")
    write_sparse(tmp_path / "b.safetensors", model, "bf16")
    with torch.no_grad():
        model.ctc.ctc_lo.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="ctc.ctc_lo.weight holds a value that is not finite"):
        write_sparse(tmp_path / "m.safetensors", model)
    with pytest.raises(ValueError, match="unknown values 'int4'; there is: fp32, fp16, bf16, int8"):
        write_sparse(tmp_path / "m.safetensors", model, "int4")
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
        header["header_crc32"] = zlib.crc32(_canonical({k: v for k, v in header.items() if k != "header_crc32"}))
    save_file({name: t.contiguous() for name, t in tensors.items()}, path, metadata={KEY: json.dumps(header)})


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


K_PROJ = Q_PROJ.replace("layers.0.attention.q_proj", "layers.1.attention.k_proj")
FORGED = [
    (lambda t, h: t.pop(f"{K_PROJ}.mask"), "the tensor .*k_proj.weight.mask is missing"),
    (lambda t, h: t.pop("ctc.ctc_lo.bias"), "the tensor ctc.ctc_lo.bias is missing"),
    (lambda t, h: t.update(extra=torch.zeros(2)), "the tensor extra is not one of the model's"),
    (lambda t, h: t.update({K_PROJ: torch.zeros(16, 16)}), "k_proj.weight is not one of the model's"),
    (put(f"{K_PROJ}.mask", lambda t: t[:-1]), r"k_proj.weight has a mask of 31 .* fit its shape \(16, 16\): 32 bytes"),
    (put(f"{K_PROJ}.mask", lambda t: t.int()), "k_proj.weight has a mask of 32 x torch.int32 that does not fit"),
    (put(f"{K_PROJ}.mask", with_entry(3, 255)), r"k_proj.weight has \d+ values where its mask keeps \d+$"),
    (put(f"{K_PROJ}.values", lambda t: t[1:]), "k_proj.weight has 38 values where its mask keeps 39"),
    (put(f"{K_PROJ}.values", lambda t: t[:, None]), "k_proj.weight has 39 values where its mask keeps 39"),
    (put(f"{K_PROJ}.values", lambda t: t.float()), "k_proj.weight is stored as torch.float32, not torch.int8"),
    (put(f"{K_PROJ}.scales", with_entry(0, torch.nan)), "k_proj.weight has scales that are not 16 numbers"),
    (put(f"{K_PROJ}.scales", with_entry(0, torch.inf)), "k_proj.weight holds a value that is not finite"),
    (put(f"{K_PROJ}.scales", with_entry(0, 3e38)), "k_proj.weight holds a value that is not finite"),
    (put(f"{K_PROJ}.scales", lambda t: -t), "k_proj.weight has scales that are not 16 numbers of at least 0"),
    (put(f"{K_PROJ}.scales", lambda t: t[:1]), "k_proj.weight has scales that are not 16 numbers"),
    (put("ctc.ctc_lo.weight", with_entry((0, 0), torch.nan)), "ctc.ctc_lo.weight holds a value that is not finite"),
    (put("ctc.ctc_lo.weight", lambda t: t.T), r"ctc.ctc_lo.weight has the shape \(16, 11\), not \(11, 16\)"),
    (put("ctc.ctc_lo.weight", lambda t: t.float()), "ctc.ctc_lo.weight is stored as torch.float32, not torch.float16"),
    (set_header("format_version", value=2), "format version 2; this release reads 1"),
    (set_header("values", value="int3"), "unknown values 'int3'"),
    (set_header("masked", K_PROJ, value=[16, 17]), r"k_proj.weight has the shape \[16, 17\], not \[16, 16\]"),
    (set_header("masked", value=[]), "the header is damaged: masked, model and crc32"),
    (set_header("masked", "ctc.ctc_lo.weight", value=[11, 16]), "ctc_lo.weight is masked, but is not a gated weight"),
    (set_header("model", "config", "model_type", value="bert"), "from its description: a model of type bert"),
    (set_header("model", "config", "hidden_act", value="magic"), "from its description: KeyError"),
    (
        set_header("model", "config", "num_hidden_layers", value=10**9),
        "from its description: 1000000000 hidden layers",
    ),
    (lambda t, h: h["model"]["config"].update(add_adapter=True, num_adapter_layers=10**9), "1000000000 adapter layers"),
    (set_header("model", "config", "conv_stride", value=[0, 0]), r"convolutions with strides \[0, 0\]"),
    (set_header("model", "processing", "sampling_rate", value=0), "the sampling rate cannot be 0 Hz"),
    (set_header("model", "processing", "sampling_rate", value="x"), "the sampling rate cannot be 'x' Hz"),
    (set_header("values", value=["fp32"]), r"unknown values \['fp32'\]"),
    (set_header("model", "config", "hidden_size", value=10**9), "has a mask of|has the shape|from its description"),
    (set_header("model", "tokens", value=7), "from its description: TypeError"),
    (set_header("model", "pruning", "layers", value="("), "from its description|not a regular expression"),
    (set_header("model", "pruning", "layers", value=r"^((\w|\.)+)+\$$"), "the pattern of layers repeats a group"),
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


@pytest.mark.parametrize("change, message", FORGED)
def test_a_forged_file_gets_one_line(int8_file, tmp_path, change, message):
    path = Path(shutil.copy(int8_file, tmp_path / "m.safetensors"))
    forge(path, lambda tensors, header: None)
    espnet_pinch.load(path)  # forging as such does no harm
    forge(path, change)
    refused(path, message)


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
    forge(path, put(f"{K_PROJ}.values", with_entry(0, 1)), honest=False)
    refused(path, "k_proj.weight is damaged: its checksum differs")
    forge(path, set_header("values", value="fp32"), honest=False)
    refused(path, "the header is damaged: its checksum differs")
    forge(path, lambda tensors, header: header.pop("masked"), honest=False)
    refused(path, "the header is damaged: masked missing or unexpected")
    for text in ("[]", "{", "[" * 100_000):
        save_file({"a": torch.zeros(2)}, path, metadata={KEY: text})
        refused(path, "the header is damaged: it is not the JSON object")
    save_file({"a": torch.zeros(2)}, path)
    refused(path, "not a sparse file of espnet_pinch")
