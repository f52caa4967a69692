"""Runtimes: the same texts from all of them, compiled once, and one line about whatever they cannot do."""

import importlib.util
import json
import logging
import shutil
import subprocess
import sys

import pytest
import soundfile
import torch
from conftest import TINY
from small_models import AUDIO, TOKENS, make_model
from test_cli import run, speech
from transformers import HubertConfig, Wav2Vec2Config, Wav2Vec2ConformerConfig, WavLMConfig

import espnet_pinch
from espnet_pinch.asr.decode import transcribe
from espnet_pinch.asr.recogniser import Recogniser
from espnet_pinch.asr.upstream import save_ctc_model
from espnet_pinch.errors import UserError
from espnet_pinch.export.check import batch_logits, noise
from espnet_pinch.export.format import all_formats
from espnet_pinch.export.formats.onnx import inputs_of, write_onnx
from espnet_pinch.export.load import locate
from espnet_pinch.export.sparse_file import write_sparse
from espnet_pinch.inference import choose
from espnet_pinch.inference import runtime as registry
from espnet_pinch.inference.cache import CACHE_FOLDER
from espnet_pinch.inference.rounding import is_right
from espnet_pinch.inference.runtime import Options, Runtime, all_runtimes, register
from espnet_pinch.inference.runtimes.onnxruntime import Session
from espnet_pinch.inference.runtimes.openvino import agrees
from espnet_pinch.inference.timing import in_turns

if importlib.util.find_spec("openvino") is None:  # not imported: that would import its telemetry
    pytest.skip("openvino is not installed: pip install -e '.[openvino]'", allow_module_level=True)
COMPILED = ("onnxruntime", "openvino")


@pytest.fixture(autouse=True)
def _as_before():
    threads = torch.get_num_threads()
    yield
    logging.disable(logging.NOTSET)  # which the command line has changed
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model as a sparse file, a Hugging Face folder, an ONNX file and an OpenVINO model; a sound file."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("runtimes")
    model = make_model(TINY, mask=False)
    write_sparse(root / "m.safetensors", model)
    save_ctc_model(root / "hf", model.frontend.upstream, model.ctc.ctc_lo, TOKENS, model.frontend.processing)
    said = []
    for name, file in (("onnxruntime", "model.onnx"), ("openvino", "openvino")):
        espnet_pinch.load(root / "m.safetensors", name, say=said.append)
        [made] = root.glob(f"{CACHE_FOLDER}/m.safetensors-{name}-*/{file}")
        (shutil.copytree if made.is_dir() else shutil.copy)(made, root / file)
    assert said == [f"note: {root / 'm.safetensors'} is compiled for {name}, once" for name in COMPILED]
    soundfile.write(root / "long.wav", speech(23.7), 16000)
    return root


def transcribed(place, capsys, monkeypatch, model, *options):
    """The transcripts of the long file, in chunks, and what was said besides."""
    command = ["transcribe", place / model, place / "long.wav", "--chunk", "8", "--stride", "1", "--format", "json"]
    status, out, err = run(capsys, monkeypatch, *command, *options)
    assert status == 0, err
    return json.loads(out), err


def test_all_runtimes_say_the_same_of_all_formats(place, capsys, monkeypatch):
    want, err = transcribed(place, capsys, monkeypatch, "m.safetensors")
    assert len(want[0]["text"]) > 50 and want[0]["seconds"] == 23.7 and not err
    pairs = [("m.safetensors", name) for name in ("torch", *COMPILED)]
    pairs += [("hf", "torch"), ("model.onnx", "onnxruntime"), ("model.onnx", "openvino")]
    for model, runtime in [*pairs, ("openvino/model.xml", "openvino")]:
        got = transcribed(place, capsys, monkeypatch, model, "--runtime", runtime, "--threads", "1")
        assert got == (want, ""), (model, runtime)  # nothing is compiled a second time
    for model in ("model.onnx", "openvino/model.xml"):  # in the runtime that it is for
        assert transcribed(place, capsys, monkeypatch, model) == (want, "")


def test_the_cache_depends_on_every_file_of_a_model(place):
    fmt, found = locate(place / "hf")
    files = [file.name for file in fmt.files(found)]
    assert files[0] == "model.safetensors"
    assert {"config.json", "vocab.json", "preprocessor_config.json"} <= set(files)
    assert [file.name for file in all_formats()["espnet"].files(place)] == ["model.pth", "config.yaml"]
    assert [file.name for file in all_formats()["openvino"].files(place / "m.xml")] == ["m.xml", "m.bin"]


def test_a_padded_batch_is_that_of_torch(place):
    audio = [*AUDIO, AUDIO[0][:4321]]
    want = transcribe(espnet_pinch.load(place / "hf"), audio)
    for name in COMPILED:
        model = espnet_pinch.load(place / "model.onnx", name, threads=1)
        assert transcribe(model, audio) == want and len(" ".join(want)) > 20
        assert model.shortest == 80 and [model([torch.zeros(n)])[1].tolist() for n in (80, 399, 400)] == [[1], [1], [2]]


@pytest.mark.parametrize("name", ["torch", *COMPILED])
def test_an_utterance_without_a_frame_has_no_words_alone_and_in_a_batch(place, name):
    model = espnet_pinch.load(place / "hf", name, threads=1)
    tiny = torch.ones(model.shortest - 1)
    assert transcribe(model, [tiny]) == transcribe(model, [tiny, tiny[:0]])[:1] == [""] and transcribe(model, []) == []
    assert transcribe(model, [AUDIO[0], tiny]) == [*transcribe(model, AUDIO[:1]), ""]


@pytest.mark.parametrize("library", COMPILED)
@pytest.mark.parametrize(
    "key, value, message",
    [
        ("sampling_rate", "0", "its metadata has no sampling_rate"),
        ("sampling_rate", "1000000000000", "its metadata has no sampling_rate"),
        ("tokens", "[1, 2]", "its metadata has no tokens"),
        ("tokens", '["<blank>"]', "outputs, and its metadata names 1: export the model again"),
        ("macs", '{"convolutions": 1}', "its metadata has no macs"),
        ("shortest", "0", "its metadata has no shortest"),
        ("subwords", '"x"', "its metadata has no subwords"),
        ("shortest", "1", "cannot compute .*: .*; export the model again"),
    ],
)
def test_metadata_of_another_model_get_one_line(place, tmp_path, library, key, value, message):
    import onnx

    model = onnx.load(place / "model.onnx")
    [entry] = [entry for entry in model.metadata_props if entry.key == key]
    entry.value = value
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(UserError, match=message) as error:
        espnet_pinch.load(tmp_path / "m.onnx", library)([torch.zeros(10 if key == "shortest" else 4000)])
    assert "\n" not in str(error.value)


def test_auto_measures_once_and_says_what_it_chose(place, capsys, monkeypatch):
    speeds = {"torch": 2.0, "onnxruntime": 1.0, "openvino": 3.0}
    calls = []
    monkeypatch.setattr(
        choose, "in_turns", lambda sides, n: calls.append(n) or {name: [speeds[name]] for name in sides}
    )
    want, _ = transcribed(place, capsys, monkeypatch, "m.safetensors")
    got, err = transcribed(place, capsys, monkeypatch, "m.safetensors", "--runtime", "auto", "--threads", "1")
    line = "note: runtime onnxruntime: 10 s of audio take torch 2 s, onnxruntime 1 s, openvino 3 s"
    assert got == want and err.splitlines()[-1] == line
    _, err = transcribed(place, capsys, monkeypatch, "m.safetensors", "--runtime", "auto", "--threads", "1")
    assert err == f"{line} (measured before)\n" and len(calls) == 1
    transcribed(place, capsys, monkeypatch, "m.safetensors", "--runtime", "auto", "--threads", "2")
    assert len(calls) == 2  # another number of threads may have another fastest
    _, err = transcribed(place, capsys, monkeypatch, "model.onnx", "--runtime", "auto")
    assert "torch" not in err  # it does not read ONNX files


def test_the_threads_are_those_asked_for(place, monkeypatch):
    import onnxruntime

    seen = []

    class Spy(onnxruntime.InferenceSession):
        def __init__(self, file, settings, **options):
            seen.append(settings.intra_op_num_threads)
            super().__init__(file, settings, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Spy)
    torch.set_num_threads(2)
    espnet_pinch.load(place / "model.onnx", "onnxruntime")
    espnet_pinch.load(place / "model.onnx", "onnxruntime", threads=3)
    assert seen == [2, 3]
    for threads in (1, 2):
        model = espnet_pinch.load(place / "model.onnx", "openvino", threads=threads)
        assert model._run.get_property("INFERENCE_NUM_THREADS") == threads
        espnet_pinch.load(place / "hf", "torch", threads=threads)
        assert torch.get_num_threads() == threads


@pytest.mark.parametrize("kind", [Wav2Vec2Config, HubertConfig, WavLMConfig, Wav2Vec2ConformerConfig])
def test_torch_computes_in_bfloat16_where_asked(kind, tmp_path):
    write_sparse(tmp_path / "m.safetensors", make_model(TINY, sparsity=0.5, odd=False, config_class=kind))
    said = []
    exact = espnet_pinch.load(tmp_path / "m.safetensors", "torch")
    rough = espnet_pinch.load(tmp_path / "m.safetensors", "torch", dtype="bfloat16", say=said.append)
    (want, frames), (got, frames2) = exact(AUDIO), rough(AUDIO)
    assert torch.equal(frames, frames2) and got.dtype == torch.float32 and not torch.equal(got, want)
    assert (got - want).abs().max() < 0.1 * want.abs().max()  # without the check of convolutions, more than 1
    assert rough.model.frontend.upstream.encoder.layers[0].final_layer_norm.weight.dtype == torch.bfloat16
    assert all(line.endswith("wrong in bfloat16; float32 is used there") for line in said)


def test_a_convolution_that_is_wrong_in_bfloat16_is_seen(monkeypatch):
    convolution = torch.nn.Conv1d(32, 32, 3, 2)
    assert is_right(convolution, torch.bfloat16)
    right = torch.nn.functional.conv1d
    twice = lambda x, *rest, **settings: right(x, *rest, **settings) * (1.2 if x.dtype == torch.bfloat16 else 1)  # noqa: E731
    monkeypatch.setattr(torch.nn.functional, "conv1d", twice)
    assert not is_right(convolution, torch.bfloat16)


def test_openvino_computes_in_bfloat16_where_the_processor_has_it(place):
    runtime = all_runtimes()["openvino"]
    if "bfloat16" not in runtime.dtypes():
        with pytest.raises(UserError, match="the runtime openvino computes in float32 here, not in bfloat16"):
            espnet_pinch.load(place / "model.onnx", "openvino", dtype="bfloat16")
        return
    exact, rough = (espnet_pinch.load(place / "model.onnx", "openvino", dtype=d) for d in ("float32", "bfloat16"))
    want, got = exact(AUDIO)[0], rough(AUDIO)[0]
    assert not torch.equal(got, want) and (got - want).square().mean() < 0.1 * want.square().mean()


def test_a_model_with_a_mask_is_right_in_bfloat16_whatever_the_lengths(tmp_path):
    fields = {**TINY, "feat_extract_norm": "layer", "do_stable_layer_norm": True}
    model = make_model(fields, sparsity=0.5, odd=False, config_class=HubertConfig)
    write_onnx(tmp_path / "m.onnx", model)
    dtype = "bfloat16" if "bfloat16" in all_runtimes()["openvino"].dtypes() else "float32"
    rough, [noisy] = espnet_pinch.load(tmp_path / "m.onnx", "openvino", dtype=dtype, threads=2), noise(3)[2:]
    for lengths in ([16000], [24000], [39253, 30843], [48000, 16001, 32000]):
        audio = [noisy[:n] for n in lengths]
        for got, want in zip(batch_logits(rough, audio), batch_logits(model, audio)):
            assert (got - want).square().mean() < 0.01 * want.square().mean()


def test_outputs_of_an_earlier_call_are_seen(place):
    model = espnet_pinch.load(place / "model.onnx", "openvino")
    stale = model._run(inputs_of(AUDIO))
    stale = {name: stale[name].copy() for name in ("logits", "frames")}
    model._run = lambda inputs: stale
    assert model(AUDIO)[1].tolist() == [50, 100]
    with pytest.raises(UserError, match=r"cannot compute .*model.onnx in float32: frames \[50, 100\], not \[50\]"):
        model(AUDIO[:1])


def test_a_dtype_that_openvino_gets_wrong_is_seen(place):
    right = espnet_pinch.load(place / "model.onnx", "openvino")

    class Off(Recogniser):
        def __init__(self, change):
            self.change = change

        def __call__(self, audio):
            return self.change(*right(audio))

    assert agrees(Off(lambda logits, frames: (1.01 * logits, frames)), right)
    for change in (lambda a, b: (a[:, :0], b), lambda a, b: (a.flip(1), b), lambda a, b: (a, b - 1)):
        assert not agrees(Off(change), right)


@pytest.mark.parametrize(
    "model, options, line",
    [
        ("model.onnx", "--dtype bfloat16", "the runtime onnxruntime computes in float32 here, not in bfloat16"),
        ("m.safetensors", "--dtype float16", "the runtime torch computes in float32, bfloat16 here, not in float16"),
        ("m.safetensors", "--threads 0", "the number of threads must be a whole number from 1 to 1024, not 0"),
        ("model.onnx", "--threads 100000", "the number of threads must be a whole number from 1 to 1024, not 100000"),
        ("model.onnx", "--device cuda", "the runtime onnxruntime runs on a CPU alone, not on the device cuda"),
        ("model.onnx", "--runtime torch", "which onnxruntime loads and torch does not"),
        ("openvino/model.xml", "--runtime onnxruntime", "which openvino loads and onnxruntime does not"),
        ("model.onnx", "--runtime auto --dtype float16", "no runtime can run "),
    ],
)
def test_what_a_runtime_cannot_do_is_one_line(place, model, options, line, capsys, monkeypatch):
    status, out, err = run(capsys, monkeypatch, "transcribe", place / model, place / "long.wav", *options.split())
    [said] = err.splitlines()
    assert status == 1 and not out and said.startswith("error: ") and line in said


@pytest.mark.parametrize("name, extra", [("onnxruntime", "export"), ("openvino", "openvino")])
def test_a_runtime_that_is_not_installed_names_its_extra(place, name, extra, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    command = ["transcribe", place / "m.safetensors", place / "long.wav", "--runtime", name]
    status, out, err = run(capsys, monkeypatch, *command)
    wanted = f"error: the package {name} is not installed: run pip install -e '.[{extra}]' in the repository\n"
    assert (status, out, err) == (1, "", wanted)


def test_a_device_that_there_is_not_is_one_line():
    with pytest.raises(UserError, match="^the device 'tpu' is not one of cpu, cuda$"):
        Options(device="tpu")


@pytest.mark.parametrize("name", COMPILED)
def test_a_runtime_whose_installation_is_broken_is_one_line(place, name, monkeypatch):
    def broken(runtime):
        raise ImportError("libstdc++.so.6: version `GLIBCXX_3.4.99' not found\nrequired by x.so")

    monkeypatch.setattr(type(all_runtimes()[name]), "import_packages", broken)
    with pytest.raises(UserError, match=f"^{name} is installed, but cannot be imported: libstdc.* required by x.so$"):
        espnet_pinch.load(place / "model.onnx", name)
    assert espnet_pinch.load(place / "model.onnx", "auto").shortest == 80  # the other one runs


def test_files_of_other_programs_and_damaged_ones_are_one_line(place, tmp_path):
    import onnx

    tensors = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "xy"]
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", tensors[:1], tensors[1:])
    other = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(other, tmp_path / "other.onnx")
    (tmp_path / "noise.onnx").write_bytes(b"whatever" * 9)
    (tmp_path / "noise.xml").write_text("<xml/>")
    for name in COMPILED:
        with pytest.raises(UserError, match="other.onnx is not a file that this release of espnet_pinch wrote"):
            espnet_pinch.load(tmp_path / "other.onnx", name)
        with pytest.raises(UserError, match=f"noise.onnx cannot be read by {name}: it is damaged"):
            espnet_pinch.load(tmp_path / "noise.onnx", name)
    with pytest.raises(UserError, match="noise.xml cannot be read by openvino"):
        espnet_pinch.load(tmp_path / "noise.xml", "openvino")


def test_openvino_comes_without_its_telemetry():
    code = "from espnet_pinch.inference.runtime import find_runtime; find_runtime('openvino').import_packages()"
    code += "; import sys; print('openvino' in sys.modules, 'openvino_telemetry' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_outputs_that_are_not_finite_are_an_error(place):
    model = espnet_pinch.load(place / "model.onnx", "onnxruntime")
    with pytest.raises(UserError, match="the model's outputs are not finite"):
        model([torch.full((4000,), torch.inf)])


def test_a_class_is_all_that_a_runtime_takes(place, monkeypatch):
    all_runtimes()
    monkeypatch.setattr(registry, "_found", dict(registry._found))

    @register
    class Abacus(Runtime):
        name, reads = "abacus", ("onnx",)

        def open(self, file, options):
            assert file == place / "model.onnx" and options == Options(threads=7)
            return Session(file, 1)

    assert list(all_runtimes()) == ["torch", *COMPILED, "abacus"]
    assert transcribe(espnet_pinch.load(place / "model.onnx", "abacus", threads=7), AUDIO)
    with pytest.raises(UserError, match="unknown runtime 'tpu'; there is: torch, onnxruntime, openvino, abacus, auto"):
        espnet_pinch.load(place / "model.onnx", "tpu")
    with pytest.raises(TypeError, match="threads are options of a runtime"):
        espnet_pinch.load(place / "hf", threads=2)


def test_sides_take_turns():
    calls = []
    taken = in_turns({name: lambda name=name: calls.append(name) for name in "ab"}, 3, warm_up=2)
    assert calls == ["a", "b"] * 5 and [len(times) for times in taken.values()] == [3, 3]
