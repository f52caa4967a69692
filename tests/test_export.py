"""Exported models: sparse files and their sizes, other formats by their own loaders, hostile files, the model card."""

import json
import pickle
import re
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.stats import entropy
from transformers import Wav2Vec2Config

import espnet_pinch
from espnet_pinch.asr.decode import transcribe
from espnet_pinch.asr.frontend import UpstreamFrontend
from espnet_pinch.asr.model import PruningASRModel
from espnet_pinch.asr.upstream import config_as_dict, save_ctc_model
from espnet_pinch.core.channels import compact
from espnet_pinch.data.kaldi_dir import Utterance, write_data_dir
from espnet_pinch.data.tokens import write_tokens
from espnet_pinch.export.check import Probe, batch_logits, check_weights, noise
from espnet_pinch.export.encoding import VALUES, decode, encode
from espnet_pinch.export.model import assemble, count_layers, gated_layers
from espnet_pinch.export.onnx_file import check_onnx, write_onnx
from espnet_pinch.export.sparse_file import KEY, _canonical, _crc32, read_sparse, sizes, write_sparse
from espnet_pinch.files import read_json, write_json

ROOT = Path(__file__).parents[1]
TOKENS = ["<blank>", "<s>", "<sos/eos>", "<unk>", "<space>", *"EATOIN"]
Q_PROJ = "frontend.upstream.encoder.layers.0.attention.q_proj.weight"
AUDIO = noise(2)


def make_model(config: dict, mask: bool = True, sparsity: float = 0.85, odd: bool = True) -> PruningASRModel:
    """A random model, every gated layer pruned by magnitude; where ``odd``, one has no zeros and one nothing else."""
    built = {
        "config": config_as_dict(Wav2Vec2Config(**{**config, "vocab_size": len(TOKENS)})),
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


def test_smaller_matrices_are_kept_small(tiny_config, tmp_path):
    model = make_model({**tiny_config, "feat_extract_norm": "layer"})
    with torch.no_grad():
        for name, layer in gated_layers(model).items():
            layer.weight.normal_()
            columns = name.endswith(("out_proj", "output_dense"))
            (layer.weight.T if columns else layer.weight)[::3] = 0
            if not columns:
                layer.bias[::3] = 0
    before = batch_logits(model, AUDIO)
    channels = compact(model.frontend.upstream, gated_layers(model))
    object.__setattr__(model.pruning.settings, "channels", channels)
    figures = write_sparse(tmp_path / "m.safetensors", model)
    again = espnet_pinch.load(tmp_path / "m.safetensors")
    assert states_equal(again, model) and figures["masked"] == 0
    assert figures["dense_bytes"] < 4 * sum(p.numel() for p in make_model(tiny_config).parameters())
    for a, b in zip(batch_logits(again, AUDIO), before):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    write_sparse(tmp_path / "m8.safetensors", model, "int8")
    check_weights("file", read_sparse(tmp_path / "m8.safetensors"), model, "int8")
    write_onnx(tmp_path / "m.onnx", model)
    assert check_onnx(tmp_path / "m.onnx", Probe.of(model, AUDIO)) < 1e-4


def test_weights_that_do_not_fit_are_refused_and_nothing_is_left(model, tmp_path):
    with torch.no_grad():
        model.ctc.ctc_lo.weight[0, 0] = 1e5
    with pytest.raises(ValueError, match=r"ctc.ctc_lo.weight holds 100000, too large for float16; take bf16"):
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
    (set_header("masked", "ctc.ctc_lo.weight", value=[11, 16]), "ctc_lo.weight is masked and no gated weight"),
    (set_header("model", "config", "model_type", value="bert"), "builds no model: ValueError: a model of type bert"),
    (set_header("model", "config", "hidden_act", value="magic"), "builds no model: KeyError"),
    (
        set_header("model", "config", "num_hidden_layers", value=10**9),
        "ValueError: 1000000000 hidden layers",
    ),
    (lambda t, h: h["model"]["config"].update(add_adapter=True, num_adapter_layers=10**9), "1000000000 adapter layers"),
    (set_header("model", "config", "conv_stride", value=[0, 0]), r"convolutions with strides \[0, 0\]"),
    (set_header("model", "processing", "sampling_rate", value=0), "a sampling rate of 0 Hz"),
    (set_header("model", "processing", "sampling_rate", value="x"), "a sampling rate of 'x' Hz"),
    (set_header("values", value=["fp32"]), r"unknown values \['fp32'\]"),
    (set_header("model", "config", "hidden_size", value=10**9), "has a mask of|has the shape|builds no model"),
    (set_header("model", "tokens", value=7), "builds no model: TypeError"),
    (set_header("model", "pruning", "layers", value="("), "builds no model|not a regular expression"),
    (set_header("model", "pruning", "layers", value=r"^((\w|\.)+)+\$$"), "a pattern of layers that repeats a group"),
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
    refused(path, "the header is damaged: masked missing or too many")
    for text in ("[]", "{", "[" * 100_000):
        save_file({"a": torch.zeros(2)}, path, metadata={KEY: text})
        refused(path, "the header is damaged: it is not the JSON object")
    save_file({"a": torch.zeros(2)}, path)
    refused(path, "no sparse file of espnet_pinch")


# ---- Experiments and folders


def fold_experiment(root: Path, start: PruningASRModel) -> Path:
    """The experiment folder of a model that ESPnet's task builds on ``start``, and that is folded as it is."""
    from espnet_pinch.asr.checkpoint import write_folded
    from espnet_pinch.asr.task import PruningASRTask

    write_tokens(root / "tokens.txt", TOKENS)
    save_ctc_model(root / "hf", start.frontend.upstream, start.ctc.ctc_lo, TOKENS, start.frontend.processing)
    options = ["--config", str(ROOT / "conf" / "mini.yaml"), "--token_list", str(root / "tokens.txt")]
    options += ["--frontend_conf", f"upstream={root / 'hf'}", "--pruning", "method=dense"]
    config = PruningASRTask.get_parser().parse_args(options)
    write_folded(PruningASRTask.build_model(config).eval(), config, root / "asr_tiny" / "folded")
    return root / "asr_tiny"


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """A folded experiment with transcripts and results, and the data directory they are of."""
    from conftest import TINY

    from espnet_pinch.asr.decode import decode_data_dir

    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("exp")
    (root / "wav").mkdir()
    rows = []
    for i, samples in enumerate(noise(3)):
        path = root / "wav" / f"{i}.wav"
        soundfile.write(path, samples.numpy(), 16000, subtype="FLOAT")
        rows.append(Utterance(f"s-{i}", str(path), "TEN TON", "s", len(samples)))
    write_data_dir(root / "test", rows)
    exp = fold_experiment(root, make_model(TINY))
    model = espnet_pinch.load(exp)
    decode_data_dir(model, root / "test", exp / "decode_ctc_greedy" / "test")
    score = {"wer": 0.25, "errors": 1, "words": 4}
    test = dict.fromkeys(("wer_difference", "bootstrap_low", "bootstrap_high", "mean_difference"), 1.5)
    test.update(segments=7, p_two_sided=0.04, p_one_sided=0.02, significant_increase=True)
    results = {"method": "pinch", "target_sparsity": 0.85, "wer": {"test": score}, "significance": {"test": test}}
    write_json(exp / "results.json", {**results, "baseline": {"wer": {"test": {**score, "wer": 0.125}}}})
    return exp


@pytest.fixture(scope="module")
def exported(experiment):
    """The export of that experiment, in all formats."""
    from espnet_pinch.export.write import export

    out = experiment.parent / "export"
    values = ("fp32", "fp16", "bf16", "int8")
    where = {"upstream": "facebook/wav2vec2-base-100h", "corpus": "noise"}
    figures = export(experiment, out, values=values, data=[experiment.parent / "test"], wer=True, **where)
    assert figures == read_json(out / "export.json")
    return out


def test_every_format_gives_the_models_logits(exported):
    files = read_json(exported / "export.json")["files"]
    sparse = [f"sparse_{values}.safetensors" for values in VALUES]
    assert list(files) == ["model.safetensors", *sparse, "model.onnx", "espnet.zip"]
    for name, entry in files.items():
        assert entry["bytes"] == (exported / name).stat().st_size
        assert entry["logit_difference"] < (1 if entry.get("sizes", {}).get("values", "fp32") != "fp32" else 1e-4)
    assert files["sparse_int8.safetensors"]["logit_difference"] > 1e-4
    assert files["sparse_fp32.safetensors"]["logit_difference"] == 0
    assert files["sparse_int8.safetensors"]["wer"]["test"]["words"] == 6
    assert "significance" in files["sparse_int8.safetensors"]["wer"]["test"]
    assert "wer" not in files["sparse_fp32.safetensors"]
    assert not [p for p in exported.parent.iterdir() if p.name.startswith(".")]


def test_the_card_says_what_it_is(exported):
    page = (exported / "README.md").read_text()
    assert page.startswith("---\nlicense: apache-2.0\n") and "base_model: facebook/wav2vec2-base-100h" in page
    for text in ("asr_tiny", "pinch, target 85 %", "| test | 12.50 | 25.00 | 4 |", "+1.50 to +1.50", "significant"):
        assert text in page
    assert "3 utterances of test" in page and "What was not tested" in page
    assert page.count("`encoder.layers.") == 12 and "| `encoder.layers.0.attention.v_proj` | 256 | 100.00 |" in page
    assert str(exported.parent) not in page


@pytest.mark.parametrize("word", ["pipeline", "espnet_pinch.load", "onnxruntime", "Speech2Text"])
def test_what_the_card_shows_runs(exported, word, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(exported)
    [code] = [c for c in re.findall("```python\n(.*?)```", Path("README.md").read_text(), re.S) if word in c]
    code = code.replace("path/to/this/folder", ".").replace('"unpacked"', repr(str(tmp_path)))
    samples = noise(1)[0]
    exec(code, {"samples": samples if word == "espnet_pinch.load" else samples.numpy()})  # noqa: S102
    own = espnet_pinch.load("sparse_int8.safetensors" if word == "espnet_pinch.load" else ".")
    [want] = transcribe(own, [samples])
    got = re.sub("<[^<> ]+>", "", capsys.readouterr().out.splitlines()[-1])
    if word != "Speech2Text":  # whose beam search need not agree
        assert " ".join(got.split()) == want and len(want) > 1


def test_all_folders_load_as_the_same_model(experiment, exported):
    whole = espnet_pinch.load(experiment)
    for path in (experiment / "folded", experiment / "folded" / "hf", exported, exported / "sparse_fp32.safetensors"):
        assert states_equal(espnet_pinch.load(path), whole)


def test_a_format_that_differs_is_an_error_and_leaves_nothing(experiment, tmp_path):
    from espnet_pinch.export.write import export

    exp = tmp_path / "exp"
    shutil.copytree(experiment / "folded", exp / "folded")
    weights = load_file(exp / "folded" / "hf" / "model.safetensors")
    weights["lm_head.weight"][3, 3] += 0.5
    save_file(weights, exp / "folded" / "hf" / "model.safetensors", metadata={"format": "pt"})
    export(exp, tmp_path / "out", formats=["sparse"])
    page = (tmp_path / "out" / "README.md").read_text()
    assert "license: unknown" in page and "unknown: check" in page and "have not been measured" in page
    assert "- The error rates of sparse_fp16.safetensors, sparse_int8.safetensors." in page
    with pytest.raises(ValueError, match="AutoModelForCTC: logits of utterance 0 are off by"):
        export(exp, tmp_path / "out", formats=["hf"])
    assert (tmp_path / "out" / "README.md").read_text() == page  # the older export stays
    with pytest.raises(ValueError, match="AutoModelForCTC: logits"):
        export(exp, tmp_path / "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["exp", "out"]


@pytest.mark.parametrize("mask", [False, True])
def test_onnx_is_the_model_alone_and_in_a_batch(tiny_config, tmp_path, mask):
    model = make_model({**tiny_config, "feat_extract_norm": "layer" if mask else "group"}, mask)
    write_onnx(tmp_path / "m.onnx", model)
    probe = Probe.of(model, [*AUDIO, noise(1)[0][:4321]])
    assert check_onnx(tmp_path / "m.onnx", probe) < 1e-4
    assert str(ROOT).encode() not in (tmp_path / "m.onnx").read_bytes()
    with torch.no_grad():
        model.ctc.ctc_lo.bias[5] += 0.01
    with pytest.raises(ValueError, match="onnxruntime: logits of utterance 0 are off by 0.01"):
        check_onnx(tmp_path / "m.onnx", Probe.of(model, AUDIO))


def test_a_transcript_that_differs_is_an_error(model):
    probe = Probe.of(model, AUDIO)
    probe.compare_texts("it", [f"{text}  <unk>" for text in probe.texts])
    with pytest.raises(ValueError, match="it: transcript of utterance 1 is 'NO', not"):
        probe.compare_texts("it", [probe.texts[0], "NO"])


class Exploit:
    def __reduce__(self):
        return Path.touch, (Path("owned"),)


def test_folders_without_a_model_get_one_line(experiment, exported, tmp_path, monkeypatch):
    from espnet_pinch.export.write import export

    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        espnet_pinch.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no model: neither"):
        espnet_pinch.load(tmp_path)
    (tmp_path / "config.yaml").write_text("a: 1")
    with pytest.raises(FileNotFoundError, match="has no folded/: its training is not finished"):
        espnet_pinch.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"config.yaml is missing: finish the training first \(stage 4\)"):
        export(tmp_path, tmp_path / "out")
    shutil.copytree(experiment / "folded", tmp_path / "f")
    whole = (tmp_path / "f" / "model.pth").read_bytes()
    (tmp_path / "f" / "model.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="model.pth is damaged"):
        espnet_pinch.load(tmp_path / "f")
    (tmp_path / "f" / "model.pth").write_bytes(pickle.dumps({"a": Exploit()}))
    with pytest.raises(ValueError, match="model.pth"):
        espnet_pinch.load(tmp_path / "f")
    assert not (tmp_path / "owned").exists()
    torch.save({"ctc.ctc_lo.bias": torch.zeros(11)}, tmp_path / "f" / "model.pth")
    with pytest.raises(ValueError, match="Missing key.*frontend.upstream"):
        espnet_pinch.load(tmp_path / "f")
    shutil.copytree(experiment / "folded" / "hf", tmp_path / "hf")
    whole = (tmp_path / "hf" / "model.safetensors").read_bytes()
    (tmp_path / "hf" / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="model.safetensors is damaged"):
        espnet_pinch.load(tmp_path / "hf")


def test_a_folder_with_a_weight_that_is_not_finite_gets_one_line(experiment, tmp_path):
    shutil.copytree(experiment / "folded", tmp_path / "f")
    state = torch.load(tmp_path / "f" / "model.pth")
    state["ctc.ctc_lo.bias"][2] = torch.inf
    torch.save(state, tmp_path / "f" / "model.pth")
    state = load_file(tmp_path / "f" / "hf" / "model.safetensors")
    state["lm_head.bias"][2] = torch.nan
    save_file(state, tmp_path / "f" / "hf" / "model.safetensors", metadata={"format": "pt"})
    for folder in (tmp_path / "f", tmp_path / "f" / "hf"):
        with pytest.raises(ValueError, match=f"{folder}: ctc.ctc_lo.bias holds a value that is not finite"):
            espnet_pinch.load(folder)


@pytest.mark.slow
def test_every_format_of_wav2vec2_base_at_85_percent(tmp_path):
    from espnet_pinch.export.write import export

    exp = fold_experiment(tmp_path, make_model({}, odd=False))
    figures = export(exp, tmp_path / "out", values=list(VALUES))
    assert (figures["gated"], figures["checked_on"]) == (84_934_656, "seeded noise")
    assert figures["sparsity"] == pytest.approx(0.85, abs=1e-4)
    files = figures["files"]
    for values, most in (("fp32", 100e6), ("fp16", 56e6), ("bf16", 56e6), ("int8", 45e6)):
        file = files[f"sparse_{values}.safetensors"]
        assert file["sizes"]["masked"] == 84_934_656
        assert file["sizes"]["entropy_bound"] < file["bytes"] <= most
    assert all(files[name]["logit_difference"] < 1e-3 for name in ("model.safetensors", "model.onnx", "espnet.zip"))
    assert files["sparse_fp32.safetensors"]["logit_difference"] == 0
    assert len(transcribe(espnet_pinch.load(tmp_path / "out"), AUDIO)[1]) > 10  # there was something to compare
