"""ONNX files in 8 bits: near the model in both runtimes, alone and in a batch, and computed as such."""

import collections
import importlib.util
import itertools
import re
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile
import torch
from conftest import TINY
from onnx import numpy_helper
from small_models import make_model
from test_cli import run, speech
from test_export import fold_experiment
from transformers import Data2VecAudioConfig, HubertConfig, Wav2Vec2Config, Wav2Vec2ConformerConfig, WavLMConfig

import espnet_pinch
from espnet_pinch.asr.decode import transcribe
from espnet_pinch.bench.run import size_of
from espnet_pinch.core.grids import Grid
from espnet_pinch.errors import UserError
from espnet_pinch.export.check import Probe, noise
from espnet_pinch.export.format import Original, all_formats
from espnet_pinch.export.formats.onnx import FILES, check_int8, check_onnx, export_model, open_session, write_files
from espnet_pinch.export.int8_weights import Int8Weights
from espnet_pinch.export.model import gated_layers, weights
from espnet_pinch.export.write import export
from espnet_pinch.inference import processor

# Wide enough that all layers are worth 8 bits.
SMALL = {**TINY, "conv_dim": (16, 16), "hidden_size": 32, "intermediate_size": 48}
BASE = {"feat_extract_norm": "group"}
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
FAMILIES = {
    "wav2vec2": (Wav2Vec2Config, BASE, False),
    "hubert": (HubertConfig, LARGE, True),
    "wavlm": (WavLMConfig, BASE, True),
    "data2vec": (Data2VecAudioConfig, {"conv_pos_kernel_size": 3}, True),
    "conformer": (Wav2Vec2ConformerConfig, {"feat_extract_norm": "layer", "conv_depthwise_kernel_size": 5}, True),
}
AUDIO = [*noise(2), noise(1)[0][:4321]]
NEAR = 0.05  # root mean square of the logits' differences, as a fraction of theirs
RUNTIMES = ["onnxruntime", *(["openvino"] if importlib.util.find_spec("openvino") else [])]


def make_small(family="wav2vec2", **fields):
    kind, own, mask = FAMILIES[family]
    return make_model({**SMALL, **own, **fields}, mask, sparsity=0.5, odd=False, config_class=kind)


def write(folder, model, *values):
    write_files(folder, export_model(model), model, values or tuple(FILES))
    return folder / FILES["int8"]


def off(got, want):
    return float((got - want).square().mean().sqrt() / want.square().mean().sqrt())


def operators(path, optimised=None):
    """How often each operator is in a file, or in what onnxruntime makes of it."""
    if optimised:
        settings = onnxruntime.SessionOptions()
        settings.optimized_model_filepath, settings.log_severity_level = str(optimised), 3
        onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    return collections.Counter(node.op_type for node in onnx.load(optimised or path).graph.node)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model in float32 and in 8 bits, and a sound file."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("int8")
    model = make_small()
    write(root, model)
    soundfile.write(root / "long.wav", speech(3.7), 16000)
    return root, model


OFTEN = ("wav2vec2", "wavlm")  # in every run of the tests; WavLM's attention has a graph of its own


@pytest.mark.parametrize(
    "family", [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_int8_is_near_the_model_alone_and_in_a_batch(family, tmp_path):
    model = make_small(family)
    file = write(tmp_path, model)
    probe = Probe.of(model, AUDIO)
    assert check_onnx(tmp_path / FILES["fp32"], probe) < 1e-4
    assert 1e-3 < check_int8(file, probe).logit_difference < 1
    for runtime in RUNTIMES:
        recogniser = espnet_pinch.load(file, runtime, threads=1)
        alone = [recogniser([samples])[0][0] for samples in AUDIO]
        batch, frames = recogniser(AUDIO)
        rows = [logits[:n] for logits, n in zip(batch, frames.tolist())]
        assert max(map(off, alone, probe.logits)) < NEAR and max(map(off, rows, probe.padded)) < NEAR
        if family == "hubert":  # where padding does not reach the utterance, no rounding depends on it either
            assert max(float((a - b).abs().max()) for a, b in zip(alone, rows)) < 1e-4


def test_onnxruntime_computes_all_layers_in_8_bits(tmp_path):
    model = make_small(num_feat_extract_layers=3, conv_dim=(16,) * 3, conv_kernel=(10, 3, 4), conv_stride=(10, 2, 16))
    file = write(tmp_path, model)
    floats, ours = operators(tmp_path / FILES["fp32"]), operators(file, tmp_path / "optimised.onnx")
    assert floats["MatMul"] == 1 + 2 * 6 + 2 * 2 + 1 and floats["Conv"] == 4  # projection, layers, attention, head
    assert ours["MatMulIntegerToFloat"] == 1 + 2 * 6 + 2  # with the convolutions but the first, and that of positions
    assert ours["MatMul"] + ours["FusedMatMul"] == 5 and ours["Conv"] == 2 and not ours["DequantizeLinear"]
    assert ours["QuantizeLinear"] == 1 + 2 * 4 + (3 + 4)  # q, k and v share one; a convolution has one for each tap
    assert ours["Transpose"] <= floats["Transpose"] + 2  # none between convolutions


@pytest.mark.skipif("openvino" not in RUNTIMES, reason="openvino is not installed")
def test_openvino_computes_all_layers_in_8_bits(place):
    model = espnet_pinch.load(place[0] / FILES["int8"], "openvino", threads=1)
    kinds = [op.get_rt_info() for op in model._run.get_runtime_model().get_ordered_ops()]
    layers = [kind["primitiveType"].astype(str) for kind in kinds if "FullyConnected" in kind["layerType"].astype(str)]
    assert sum("i8" in layer.lower() for layer in layers) == len(layers) - 1 == 1 + 2 * 6 + 1


def test_a_quantised_model_is_stored_exactly(tmp_path):
    model = make_small()
    names = [f"frontend.upstream.{name}.weight" for name in gated_layers(model)]
    widths = dict(zip(names, itertools.cycle([8, 4, 2, "ternary"])))
    widths["frontend.upstream.feature_extractor.conv_layers.1.conv.weight"] = 8
    with torch.no_grad():
        for name, width in widths.items():
            grid, weight = Grid(width), weights(model)[name]
            grid.fit(weight)
            codes = grid.round(weight)
            weight.copy_(codes.weight())
            model.scales[name] = codes.scales
    stored = {i.name: numpy_helper.to_array(i) for i in onnx.load(write(tmp_path, model, "int8")).graph.initializer}
    found = {}
    for name, codes in stored.items():
        if name.endswith(".int8") and codes.ndim == 2:
            found[(codes * stored[name.removesuffix("int8") + "scales"]).T.tobytes()] = codes
    for name, width in widths.items():
        weight = weights(model)[name].numpy()
        exact = weight.transpose(0, 2, 1).reshape(len(weight), -1) if weight.ndim == 3 else weight
        assert exact.tobytes() in found, name
        if width == "ternary":  # so that no processor's sums overflow
            assert set(np.unique(found[exact.tobytes()])) == {-1, 0, 1}


def test_any_other_weight_is_rounded_to_its_own_channel():
    weight = torch.randn(24, 16) * torch.rand(24, 1)
    weight[5], weight[6, 3] = 0, 0
    codes, scales = Int8Weights(make_small()).of(weight.numpy())
    assert codes.dtype == np.int8 and scales.dtype == np.float32 and codes[6, 3] == 0 and (scales > 0).all()
    assert not codes[5].any() and np.abs(codes).max() == 63  # no processor's sums overflow
    assert (np.abs(codes * scales[:, None] - weight.numpy()) <= 0.501 * scales[:, None]).all()


def test_size_and_metadata_are_those_of_the_model(place):
    root, model = place
    floats, ours = (size_of(root / name) for name in FILES.values())
    assert (floats.parameters, floats.zeros, floats.macs) == (ours.parameters, ours.zeros, ours.macs)
    assert ours.parameters == sum(weight.numel() for weight in model.parameters()) and ours.zeros > 0
    assert ours.bytes == (root / FILES["int8"]).stat().st_size


def test_large_weights_of_other_layers_take_a_byte_each(tmp_path):
    model = make_small(num_conv_pos_embeddings=128, hidden_size=64, num_conv_pos_embedding_groups=2)
    count = 64 * 32 * 128
    file = write(tmp_path, model)
    saved = (tmp_path / FILES["fp32"]).stat().st_size - file.stat().st_size
    assert saved > 3 * count
    probe = Probe.of(model, AUDIO)
    for runtime in RUNTIMES:
        assert off(espnet_pinch.load(file, runtime)(AUDIO[1:2])[0][0], probe.logits[1]) < NEAR
    assert not operators(file, tmp_path / "optimised.onnx")["ReduceL2"]  # unpacked at loading, once


def test_another_model_is_not_taken_for_rounding(place):
    root, model = place
    probe = Probe.of(model, AUDIO)
    texts = [*probe.texts[:-1], probe.texts[-1] + "X"]
    assert probe.count_texts("it", [f"{text}  <unk>" for text in probe.texts], probe.texts) == 0
    assert probe.count_texts("it", texts, texts) == 1
    with pytest.raises(UserError, match="it: the transcripts are 'NO  ', not '"):
        probe.count_texts("it", ["NO", "", ""], probe.texts)
    torch.manual_seed(7)
    with pytest.raises(UserError, match="model.int8.onnx: logits of utterance 0 are those of another model"):
        check_int8(root / FILES["int8"], Probe.of(make_small(), AUDIO))


@pytest.mark.parametrize(
    "flags, overflow", [("avx2 fma", True), ("avx2 avx_vnni", False), ("avx512f avx512_vnni", False), (None, False)]
)
def test_only_x86_processors_without_vnni_overflow(flags, overflow, monkeypatch):
    monkeypatch.setattr(processor, "cpu_info", lambda: {} if flags is None else {"flags": flags})
    assert processor.sums_overflow() is overflow


def test_where_sums_overflow_other_products_are_used_if_the_file_needs_them(place, tmp_path, monkeypatch):
    if not processor.cpu_info().get("flags"):
        pytest.skip("a setting for x86 processors alone")
    settings = []
    whole = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *a, **k: settings.append(a[1]) or whole(*a, **k))
    monkeypatch.setattr(processor, "sums_overflow", lambda: True)
    open_session(place[0] / FILES["int8"])
    assert len(settings) == 1  # its codes have 7 bits
    model = make_small()
    for name, layer in gated_layers(model).items():
        codes = Grid(8).round(layer.weight)
        layer.weight.data.copy_(codes.weight())
        model.scales[f"frontend.upstream.{name}.weight"] = codes.scales
    file = write(tmp_path, model, "int8")
    careful = open_session(file, 1)
    assert len(settings) == 3 and settings[2].get_session_config_entry("session.x64quantprecision") == "1"
    monkeypatch.setattr(processor, "sums_overflow", lambda: False)
    usual = open_session(file, 1)
    assert len(settings) == 4
    if processor.VNNI & set(processor.cpu_info()["flags"].split()):
        inputs = {"speech": AUDIO[1][None].numpy(), "lengths": np.array([len(AUDIO[1])])}
        one, other = (session.run(["logits"], inputs)[0] for session in (usual, careful))
        assert np.abs(one - other).max() < 1e-4


def test_outputs_that_are_not_finite_are_an_error(place):
    model = espnet_pinch.load(place[0] / FILES["int8"], "onnxruntime")
    for value in (torch.inf, torch.nan):
        with pytest.raises(UserError, match="the model's outputs are not finite"):
            model([torch.full((4000,), value)])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_silence_is_no_error(place, runtime):
    root, model = place
    silence = [torch.zeros(8000)]
    want = espnet_pinch.load(root / FILES["fp32"], runtime)(silence)[0]
    assert off(espnet_pinch.load(root / FILES["int8"], runtime)(silence)[0], want) < NEAR


def test_the_command_line_takes_it(place, capsys, monkeypatch):
    root, _ = place
    for runtime in RUNTIMES:
        samples = torch.from_numpy(soundfile.read(root / "long.wav", dtype="float32")[0])
        [want] = transcribe(espnet_pinch.load(root / FILES["int8"], runtime), [samples])
        command = ["transcribe", root / FILES["int8"], root / "long.wav", "--runtime", runtime, "--threads", "1"]
        status, out, err = run(capsys, monkeypatch, *command)
        assert (status, out, err) == (0, f"{root / 'long.wav'}\t{want}\n", "") and len(want) > 5


def test_an_experiment_is_exported_and_scored_in_8_bits(tmp_path, capsys):
    from espnet_pinch.data.kaldi_dir import Utterance, write_data_dir

    exp = fold_experiment(tmp_path, make_small())
    soundfile.write(tmp_path / "a.wav", AUDIO[1].numpy(), 16000, subtype="FLOAT")
    write_data_dir(tmp_path / "test", [Utterance("s-0", str(tmp_path / "a.wav"), "TEN TON", "s", len(AUDIO[1]))])
    data = {"data": [tmp_path / "test"], "wer": True}
    figures = export(exp, tmp_path / "out", formats=["onnx"], values=["int8"], **data)
    [(name, entry)] = figures["files"].items()
    assert name == FILES["int8"] and entry["rounded"] and entry["what"] == "computed in int8"
    assert entry["bytes"] == (tmp_path / "out" / name).stat().st_size and entry["texts_differing"] in (0, 1)
    assert entry["wer"]["test"]["words"] == 2
    page = (tmp_path / "out" / "README.md").read_text()
    assert f"| {name} |" in page and f'InferenceSession("{name}")' in page
    both = all_formats()["onnx"].chosen(Original(None, tmp_path, None))
    assert both == ["fp32", "int8"]


def test_sherpa_onnx_loads_it(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sherpa_onnx", reason="sherpa-onnx is not installed: pip install -e '.[sherpa]'")
    exp = fold_experiment(tmp_path, make_small())
    figures = export(exp, tmp_path / "out", formats=["sherpa_onnx"])  # sherpa-onnx decodes both
    folder = tmp_path / "out" / "sherpa_onnx"
    assert {path.name for path in folder.iterdir()} == {"tokens.txt", *FILES.values()}
    entry = figures["files"][f"sherpa_onnx/{FILES['int8']}"]
    assert entry["rounded"] and entry["bytes"] == sum(
        (folder / n).stat().st_size for n in (FILES["int8"], "tokens.txt")
    )
    monkeypatch.chdir(tmp_path / "out")
    [code] = re.findall("```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.S)
    assert FILES["int8"] in code
    exec(code, {"samples": AUDIO[1].numpy()})  # noqa: S102
    assert len(capsys.readouterr().out.splitlines()[-1]) > 1
    shutil.rmtree(folder)
