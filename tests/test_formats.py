"""Export formats: a file, or a class, is all that a new one takes; OpenVINO is such a one."""

import importlib.util
import json
import re
import sys
from typing import Literal, get_args

import pytest
import test_export
import torch
from safetensors.torch import load_file, save_file
from small_models import AUDIO, make_model, states_equal
from test_export import fold_experiment

import espnet_pinch
from espnet_pinch import cli
from espnet_pinch.asr.decode import transcribe
from espnet_pinch.bin import export as export_program
from espnet_pinch.bin import run_main
from espnet_pinch.errors import UserError
from espnet_pinch.export import format as registry
from espnet_pinch.export.check import Probe, noise
from espnet_pinch.export.format import Comparison, Format, Original, all_formats, choose_formats, register
from espnet_pinch.export.load import locate
from espnet_pinch.export.model import build, describe, fill, weights
from espnet_pinch.export.write import export
from espnet_pinch.files import read_json

experiment = test_export.experiment


class Toy(Format):
    """All weights as one half-precision safetensors file, with a description beside it."""

    name = "toy"
    title = "toy file"
    library = "toyland"
    accepts = ("a toy file",)
    values = ("fp16", "fp8")
    default_values = ("fp16",)
    snippet = 'With toys: `play("{file}", {rate}, {{}})`'
    untested = "Toys in the bath."

    def detect(self, path):
        return path if path.suffix == ".toy" else None

    def read(self, found):
        state = {name: tensor.float() for name, tensor in load_file(found).items()}
        return fill(build(read_json(found.with_suffix(".json"))), state)

    def write(self, folder, original):
        state = {name: tensor.half().contiguous() for name, tensor in weights(original.model).items()}
        save_file(state, folder / "model.toy")
        (folder / "model.json").write_text(json.dumps(describe(original.model)))
        return {"model.toy": {"what": "dense float16", "rounded": True}}

    def check(self, file, original):
        other = Probe.of(self.read(file), original.probe.audio)
        return Comparison(max(float((a - b).abs().max()) for a, b in zip(other.logits, original.probe.logits)))

    def info(self, found):
        return {"toys": 7}

    def info_lines(self, figures):
        return [f"toys         {figures['toys']}"]


@pytest.fixture
def toy(monkeypatch):
    all_formats()
    monkeypatch.setattr(registry, "_found", dict(registry._found))
    register(Toy)


def program(main, monkeypatch, capsys, *command):
    """Exit status, stdout and stderr of an entry point."""
    monkeypatch.setattr(sys, "argv", ["program", *map(str, command)])
    status = 0
    try:
        run_main(main)
    except SystemExit as stop:
        status = stop.code
    return status, *capsys.readouterr()


def test_a_class_is_all_that_a_format_takes(toy, experiment, tmp_path, monkeypatch, capsys):
    _, out, _ = program(export_program.main, monkeypatch, capsys, "--help")
    assert re.search(r"\{hf,sparse,onnx,espnet,.*toy.*\}", out) and "fp8" in out
    assert "toy: toy file" in " ".join(out.split())
    data = experiment.parent / "test"
    command = ["--exp", experiment, "--out", tmp_path / "out", "--formats", "toy", "--data", data, "--wer"]
    status, out, err = program(export_program.main, monkeypatch, capsys, *command)
    assert status == 0 and "model.toy: " in out and "loaded by toyland: logits differ by" in out
    file = tmp_path / "out" / "model.toy"
    [entry] = read_json(tmp_path / "out" / "export.json")["files"].values()
    assert (entry["format"], entry["loader"], entry["bytes"]) == ("toy", "toyland", file.stat().st_size)
    assert 0 < entry["logit_difference"] < 1 and entry["wer"]["test"]["words"] == 6
    page = (tmp_path / "out" / "README.md").read_text()
    for text in ('play("model.toy", 16000, {})', "| `model.toy` | dense float16 |", "- Toys in the bath.", "toyland"):
        assert text in page
    assert "pipeline(" not in page and "beam search" not in page and "library_name" not in page

    assert locate(file)[0].name == "toy"
    again, whole = espnet_pinch.load(file), espnet_pinch.load(experiment)
    assert again.token_list == whole.token_list and not states_equal(again, whole)
    assert torch.equal(again.ctc.ctc_lo.weight, whole.ctc.ctc_lo.weight.half().float())
    _, out, _ = program(cli.main, monkeypatch, capsys, "info", file)
    assert out.startswith(f"{file}: toy file, wav2vec2, 11 tokens\n") and "\ntoys         7\n" in out
    _, out, _ = program(cli.main, monkeypatch, capsys, "info", file, "--format", "json")
    assert (json.loads(out)["kind"], json.loads(out)["toys"]) == ("toy file", 7)
    _, out, _ = program(cli.main, monkeypatch, capsys, "info", "--help")
    assert "a toy file" in " ".join(out.split())


def test_a_weight_that_is_not_finite_is_refused_whatever_the_format(toy, experiment, tmp_path):
    export(experiment, tmp_path / "out", formats=["toy"])
    file = tmp_path / "out" / "model.toy"
    state = load_file(file)
    state["ctc.ctc_lo.bias"][2] = torch.nan
    save_file(state, file)
    with pytest.raises(UserError, match="model.toy: ctc.ctc_lo.bias holds a value that is not finite"):
        espnet_pinch.load(file)


def test_a_format_that_does_not_say_who_loads_it_is_a_mistake_of_the_program(toy):
    with pytest.raises(TypeError, match="the format Nameless does not define its library, snippet"):

        @register
        class Nameless(Format):
            name = title = "nameless"
            write = check = None

    assert "nameless" not in all_formats()


def test_newcomers_are_written_only_where_they_are_named(toy):
    assert [fmt.name for fmt in choose_formats()] == ["hf", "sparse", "onnx", "espnet"]
    assert [fmt.name for fmt in choose_formats(["toy", "sparse"])] == ["sparse", "toy"]


def test_a_name_that_is_unknown_gets_one_line(toy, experiment, tmp_path):
    with pytest.raises(
        UserError,
        match="unknown format 'gguf'; there is: hf, sparse, onnx, espnet, onnx_asr, openvino, sherpa_onnx, toy",
    ):
        export(experiment, tmp_path / "out", formats=["hf", "gguf"])
    there_is = "cannot store values as 'int4'; there is: fp32, fp16, bf16, int8, quantized, fp8"
    with pytest.raises(UserError, match=f"the formats sparse, toy {there_is}"):
        export(experiment, tmp_path / "out", formats=["toy", "sparse"], values=["fp32", "int4"])
    with pytest.raises(UserError, match="the formats hf cannot store values as 'fp16'; there is: no choice"):
        export(experiment, tmp_path / "out", formats=["hf"], values=["fp16"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name, reason", [("m.onnx", "onnxruntime loads"), ("m.xml", "openvino loads")])
def test_a_file_that_others_load_is_named_as_such(name, reason, tmp_path):
    (tmp_path / name).write_bytes(b"whatever")
    with pytest.raises(UserError, match=f"{name} is of the format .*, which {reason} and torch does not"):
        espnet_pinch.load(tmp_path / name)


def test_the_packed_zip_is_to_be_unzipped_and_then_loads(experiment, tmp_path):
    import zipfile

    export(experiment, tmp_path / "out", formats=["espnet"])
    with pytest.raises(UserError, match="espnet.zip is packed for ESPnet's Speech2Text: unzip it and give the folder"):
        espnet_pinch.load(tmp_path / "out" / "espnet.zip")
    with zipfile.ZipFile(tmp_path / "out" / "espnet.zip") as packed:
        packed.extractall(tmp_path / "unzipped")
    assert states_equal(espnet_pinch.load(tmp_path / "unzipped"), espnet_pinch.load(experiment))


def test_without_a_formats_package_one_line_says_what_to_install(experiment, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "openvino", None)
    command = ["--exp", experiment, "--out", tmp_path / "out", "--formats", "hf", "openvino"]
    status, out, err = program(export_program.main, monkeypatch, capsys, *command)
    [line] = [line for line in err.splitlines() if line]
    assert status == 1 and not out and not list(tmp_path.iterdir())
    assert line == (
        "error: the format openvino needs openvino, which must be installed: pip install 'espnet_pinch[openvino]'"
    )


def test_formats_are_imported_without_what_they_work_with():
    import subprocess

    code = "import sys; from espnet_pinch.export.format import all_formats; all_formats(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"transformers", "espnet2", "onnxruntime", "openvino"} & set(done.stdout.split())


# ---- OpenVINO

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="openvino is not installed: pip install -e '.[openvino]'"
)


@needs_openvino
@pytest.mark.parametrize("mask", [False, True])
def test_openvino_is_the_model_alone_and_in_a_batch(tiny_config, tmp_path, mask):
    model = make_model({**tiny_config, "feat_extract_norm": "layer" if mask else "group"}, mask)
    [fmt] = choose_formats(["openvino"])
    audio = [*AUDIO, noise(1)[0][:4321]]
    original = Original(model, tmp_path, Probe.of(model, audio))
    [(file, facts)] = fmt.write(tmp_path, original).items()
    assert file == "openvino/model.xml"
    assert sorted(path.name for path in (tmp_path / "openvino").iterdir()) == ["model.bin", "model.xml"]
    assert facts["bytes"] > 4 * 0.99 * sum(p.numel() for p in model.parameters())  # nothing in half precision
    assert fmt.check(tmp_path / file, original).logit_difference < 1e-4
    assert str(tmp_path).encode() not in (tmp_path / file).read_bytes()
    assert "openvino_telemetry" not in sys.modules  # nobody is told
    with torch.no_grad():
        model.ctc.ctc_lo.bias[5] += 0.01
    with pytest.raises(UserError, match="openvino: logits of utterance 0 are off by 0.01"):
        fmt.check(tmp_path / file, Original(model, tmp_path, Probe.of(model, AUDIO)))


@needs_openvino
def test_what_the_card_shows_of_openvino_runs(tiny_config, tmp_path, monkeypatch, capsys):
    exp = fold_experiment(tmp_path, make_model(tiny_config))
    figures = export(exp, tmp_path / "out", formats=["openvino"])
    assert {"openvino", "torch"} <= figures["versions"].keys()
    monkeypatch.chdir(tmp_path / "out")
    [code] = re.findall("```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.S)
    samples = noise(1)[0]
    exec(code, {"samples": samples.numpy()})  # noqa: S102
    [want] = transcribe(espnet_pinch.load(exp), [samples])
    got = re.sub("<[^<> ]+>", "", capsys.readouterr().out.splitlines()[-1])
    assert " ".join(got.split()) == want and len(want) > 1


# ---- sherpa-onnx


def test_sherpa_onnx_says_what_the_model_says(tiny_config, tmp_path, monkeypatch, capsys):
    pytest.importorskip("sherpa_onnx", reason="sherpa-onnx is not installed: pip install -e '.[sherpa]'")
    exp = fold_experiment(tmp_path, make_model(tiny_config))
    figures = export(exp, tmp_path / "out", formats=["sherpa_onnx"], values=["fp32"])  # compares logits and texts
    assert figures["files"]["sherpa_onnx/model.onnx"]["logit_difference"] < 1e-4
    lines = (tmp_path / "out" / "sherpa_onnx" / "tokens.txt").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "<blank> 0" and lines[4] == "\u2581 4" and len(lines) == 11
    with pytest.raises(UserError, match="model.onnx has other inputs, as it is for another program"):
        espnet_pinch.load(tmp_path / "out" / "sherpa_onnx" / "model.onnx", "onnxruntime")
    monkeypatch.chdir(tmp_path / "out")
    [code] = re.findall("```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.S)
    samples = noise(2)[1]
    exec(code, {"samples": samples.numpy()})  # noqa: S102
    [want] = transcribe(espnet_pinch.load(exp), [samples])
    got = re.sub("<[^<> ]+>", "", capsys.readouterr().out.splitlines()[-1])
    assert " ".join(got.split()) == want and len(want) > 1


def test_what_sherpa_onnx_would_get_wrong_is_refused(tiny_config, tmp_path):
    model, sherpa = make_model(tiny_config), all_formats()["sherpa_onnx"]
    original = Original(model, tmp_path, Probe.of(model, AUDIO))
    for field, value, line in (("do_normalize", False, "normalises every"), ("sampling_rate", 8000, "of 8000 Hz")):
        before = getattr(model.frontend.processing, field)
        object.__setattr__(model.frontend.processing, field, value)
        with pytest.raises(UserError, match=line):
            sherpa.write(tmp_path, original)
        object.__setattr__(model.frontend.processing, field, before)
    model.token_list[5] = "A B"
    with pytest.raises(UserError, match="the token 'A B' holds white space"):
        sherpa.write(tmp_path, original)
    assert not list(tmp_path.rglob("*.onnx"))


# ---- onnx-asr


@pytest.fixture
def onnx_asr_loader(monkeypatch):
    """onnx-asr's loader with wav2vec2-CTC models. Release 0.12.0 has no such type: it gets one here that does what that
    of the development branch does. Finding the files, reading them, batches, and decoding are the library's own."""
    loader = pytest.importorskip("onnx_asr.loader", reason="onnx-asr is not installed: pip install -e '.[onnx-asr]'")
    if "wav2vec2-ctc" in get_args(loader.AsrTypeNames):
        return loader
    import onnxruntime
    from onnx_asr.asr import _AsrWithCtcDecoding
    from onnx_asr.resolver import Resolver

    class Waveforms(_AsrWithCtcDecoding):
        _preprocessor_name = "identity"
        _subsampling_factor = property(lambda self: self.config["subsampling_factor"])

        def __init__(self, files, preprocessors, options):
            super().__init__(files, preprocessors, options)
            self._session = onnxruntime.InferenceSession(files["model"], **options)

        @staticmethod
        def _get_model_files(quantization=None):
            return {"model": f"model?{quantization}.onnx" if quantization else "model.onnx", "vocab": "vocab.txt"}

        def _encode(self, waves, lengths):
            [rows] = self._session.run(["logprobs"], {"input_values": waves, "input_lengths": lengths})
            return rows, (lengths // self._subsampling_factor + 1).clip(max=rows.shape[1])

    found = {"wav2vec2-ctc": Waveforms}
    monkeypatch.setattr(loader, "AsrTypeNames", Literal["wav2vec2-ctc"])
    monkeypatch.setattr(loader, "create_asr_resolver", lambda *model, **options: Resolver(found, *model, **options))
    return loader


def test_onnx_asr_says_what_the_model_says(onnx_asr_loader, tiny_config, tmp_path, monkeypatch, capsys):
    model = make_model({**tiny_config, "feat_extract_norm": "layer"})
    exp = fold_experiment(tmp_path, model)
    figures = export(exp, tmp_path / "out", formats=["onnx_asr"])  # compares logits, and texts alone and in a batch
    differences = [entry["logit_difference"] for entry in figures["files"].values()]
    assert list(figures["files"]) == ["onnx_asr/model.onnx", "onnx_asr/model.int8.onnx"]
    assert differences[0] < 1e-4 < differences[1]
    place = tmp_path / "out" / "onnx_asr"
    lines = (place / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "<blk> 0" and lines[4] == "\u2581 4" and len(lines) == 11
    assert read_json(place / "config.json") == {"model_type": "wav2vec2-ctc", "subsampling_factor": 320}

    audio = [*AUDIO, noise(1)[0][:4321]]  # onnx-asr counts a frame more of the last one than there is
    again = onnx_asr_loader.load_model("wav2vec2-ctc", place).recognize([samples.numpy() for samples in audio])
    want = transcribe(espnet_pinch.load(exp), audio)
    assert [" ".join(re.sub("<[^<> ]+>", "", text).split()) for text in again] == want and len(want[1]) > 5

    with pytest.raises(UserError, match="model.onnx has other inputs, as it is for another program"):
        espnet_pinch.load(place / "model.onnx", "onnxruntime")
    monkeypatch.chdir(tmp_path / "out")
    [code] = re.findall("```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.S)
    exec(code, {"samples": AUDIO[1].numpy()})  # noqa: S102
    assert " ".join(re.sub("<[^<> ]+>", "", capsys.readouterr().out.splitlines()[-1]).split()) == want[1]

    file = place / "model.onnx"
    with torch.no_grad():
        model.ctc.ctc_lo.bias[5] += 0.1
    with pytest.raises(UserError, match="onnx-asr: logits of utterance 0 are off by 0.0"):
        all_formats()["onnx_asr"].check(file, Original(model, tmp_path, Probe.of(model, AUDIO)))


def test_an_onnx_asr_without_wav2vec2_models_gets_one_line(onnx_asr_loader, monkeypatch):
    monkeypatch.setattr(onnx_asr_loader, "AsrTypeNames", Literal["vosk"])
    with pytest.raises(
        UserError, match=r"needs an onnx-asr that knows wav2vec2-ctc models, and \d.* does not: install"
    ):
        choose_formats(["onnx_asr"])
