"""Exported models: every format by its own loader, folders and experiments, the model card."""

import json
import pickle
import re
import shutil
from pathlib import Path

import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file, save_file
from small_models import AUDIO, make_model, quantize, states_equal

import espnet_pinch
from espnet_pinch.asr.decode import transcribe
from espnet_pinch.asr.model import PruningASRModel
from espnet_pinch.asr.upstream import save_ctc_model
from espnet_pinch.data.kaldi_dir import Utterance, write_data_dir
from espnet_pinch.data.source import HUB, Source, read_record, write_record
from espnet_pinch.data.tokens import write_tokens
from espnet_pinch.errors import UserError
from espnet_pinch.export.check import Probe, noise
from espnet_pinch.export.format import Comparison, Original, all_formats
from espnet_pinch.export.formats.espnet import read_folded
from espnet_pinch.export.formats.onnx import check_onnx, write_onnx
from espnet_pinch.files import read_json

ROOT = Path(__file__).parents[1]


def fold_experiment(root: Path, start: PruningASRModel) -> Path:
    """The experiment folder of a model that ESPnet's task builds on ``start``, and that is folded as it is."""
    from espnet_pinch.asr.checkpoint import write_folded
    from espnet_pinch.asr.task import PruningASRTask

    tokens = start.token_list
    write_tokens(root / "tokens.txt", tokens)
    save_ctc_model(root / "hf", start.frontend.upstream, start.ctc.ctc_lo, tokens, start.frontend.processing)
    options = ["--config", str(ROOT / "conf" / "mini.yaml"), "--token_list", str(root / "tokens.txt")]
    options += ["--frontend_conf", f"upstream={root / 'hf'}", "--pruning", "method=dense"]
    if start.subwords:
        (root / "bpe.model").write_bytes(start.subwords)
        options += ["--token_type", "bpe", "--bpemodel", str(root / "bpe.model")]
    config = PruningASRTask.get_parser().parse_args(options)
    write_folded(PruningASRTask.build_model(config).eval(), config, root / "asr_tiny" / "folded")
    return root / "asr_tiny"


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """A folded experiment with transcripts and results, and the data directory they are of."""
    from conftest import TINY, write_results

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
    write_results(exp, "pinch", 0.85, wrong={"test": 80})
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
    sparse = [f"sparse_{values}.safetensors" for values in ("fp32", "fp16", "bf16", "int8")]
    assert list(files) == ["model.safetensors", *sparse, "model.onnx", "model.int8.onnx", "espnet.zip"]
    for name, entry in files.items():
        assert entry["bytes"] == (exported / name).stat().st_size
        assert entry["logit_difference"] < (1 if entry.get("rounded") else 1e-4)
    assert files["sparse_int8.safetensors"]["logit_difference"] > 1e-4
    assert files["sparse_fp32.safetensors"]["logit_difference"] == 0
    assert files["sparse_int8.safetensors"]["wer"]["test"]["words"] == 6
    for name in ("sparse_int8.safetensors", "model.int8.onnx"):
        assert files[name]["rounded"] and "significance" in files[name]["wer"]["test"]
    assert "wer" not in files["sparse_fp32.safetensors"]
    assert not [p for p in exported.parent.iterdir() if p.name.startswith(".")]


def test_of_a_quantized_model_its_codes_are_written(model, tmp_path):
    quantize(model, 4)
    sparse, original = all_formats()["sparse"], Original(model, tmp_path, Probe.of(model, AUDIO))
    [(name, facts)] = sparse.write(tmp_path, original).items()
    assert name == "sparse_quantized.safetensors" and "rounded" not in facts and "own codes" in facts["what"]
    assert sparse.check(tmp_path / name, original) == Comparison(0.0)


def test_the_card_says_what_it_is(exported):
    page = (exported / "README.md").read_text()
    assert page.startswith("---\nlicense: apache-2.0\n") and "base_model: facebook/wav2vec2-base-100h" in page
    for text in ("asr_tiny", "pinch, target 85 %", "| test | 5.00 | 8.00 | 1000 |", "| +3.00 |", "significant"):
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
    models = {"espnet_pinch.load": ("sparse_int8.safetensors",), "onnxruntime": ("model.int8.onnx", "onnxruntime")}
    own = espnet_pinch.load(*models.get(word, (".",)))
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


def test_the_card_has_commit_and_licence_of_the_upstreams_record(tiny_config, tmp_path):
    from espnet_pinch.export.write import export

    known = {"commit": "c" * 40, "licence": "other", "licence_name": "our-own", "licence_link": "LICENSE.md"}
    source = Source("own/model@v1", repo="own/model", revision="v1")
    write_record(tmp_path / "hf", source.record(**known, origin=HUB))
    exp = fold_experiment(tmp_path, make_model(tiny_config))
    figures = export(exp, tmp_path / "out", formats=["hf"], upstream=str(tmp_path))
    assert figures["upstream"] == "own/model" and figures["upstream_source"] == read_record(tmp_path / "hf")
    assert read_json(tmp_path / "out" / "export.json")["upstream_source"]["commit"] == "c" * 40
    page = (tmp_path / "out" / "README.md").read_text()
    head = yaml.safe_load(page.split("---")[1])
    assert (head["license"], head["license_name"], head["license_link"]) == ("other", "our-own", "LICENSE.md")
    assert head["base_model"] == "own/model"
    assert f"Upstream: own/model@v1 at commit {'c' * 40}; its licence: other." in page
    assert read_record(exp / "folded" / "hf") == figures["upstream_source"]  # for a run that starts from it


@pytest.mark.parametrize("mask", [False, True])
def test_onnx_is_the_model_alone_and_in_a_batch(tiny_config, tmp_path, mask):
    model = make_model({**tiny_config, "feat_extract_norm": "layer" if mask else "group"}, mask)
    write_onnx(tmp_path / "m.onnx", model)
    probe = Probe.of(model, [*AUDIO, noise(1)[0][:4321]])
    assert check_onnx(tmp_path / "m.onnx", probe) < 1e-4
    written = (tmp_path / "m.onnx").read_bytes()
    assert str(ROOT).encode() not in written and b"Softmax" in written
    assert b"Floor" not in written  # numbers of samples as floats, which bfloat16 would round
    assert b"IsNaN" not in written  # behind every softmax, which would cost a tenth of the time
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
    torch.save([torch.zeros(11)], tmp_path / "f" / "model.pth")
    with pytest.raises(ValueError, match="model.pth holds no weights by name"):
        espnet_pinch.load(tmp_path / "f")
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
    most = {"fp32": 97e6, "fp16": 53e6, "bf16": 53e6, "int8": 33e6}
    figures = export(exp, tmp_path / "out", values=list(most))
    assert (figures["gated"], figures["checked_on"]) == (84_934_656, "seeded noise")
    assert figures["sparsity"] == pytest.approx(0.85, abs=1e-4)
    files = figures["files"]
    for values, size in most.items():
        file = files[f"sparse_{values}.safetensors"]
        assert file["sizes"]["masked"] >= 84_934_656
        assert file["sizes"]["entropy_bound"] < file["bytes"] <= size
    assert all(files[name]["logit_difference"] < 1e-3 for name in ("model.safetensors", "model.onnx", "espnet.zip"))
    assert files["sparse_fp32.safetensors"]["logit_difference"] == 0
    assert len(transcribe(espnet_pinch.load(tmp_path / "out"), AUDIO)[1]) > 10  # there was something to compare


@pytest.mark.parametrize("pruning", [None, 3, ["dense"], {}])
def test_a_folded_folder_without_a_method_gets_one_line(pruning, tmp_path):
    config = {"frontend_conf": {"built": {}}, "token_list": ["<blank>"], "pruning": pruning}
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    with pytest.raises(UserError, match="config.yaml is not that of a folded model"):
        read_folded(tmp_path)
