"""Classification: the same gates, training and files under another head; its errors, its test, its command."""

import contextlib
import json
import logging
import sys

import numpy as np
import pytest
import soundfile
import torch
import yaml
from test_espnet import ROOT
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, Wav2Vec2Config, Wav2Vec2Model

import espnet_pinch
from espnet_pinch import cli
from espnet_pinch.asr import history
from espnet_pinch.asr.decode import decode_data_dir, recognise
from espnet_pinch.asr.frontend import UpstreamFrontend
from espnet_pinch.asr.head import CLASSIFY
from espnet_pinch.asr.trainer import PruningTrainer
from espnet_pinch.bin import asr_train, prepare_labels, run_main
from espnet_pinch.core.registry import all_methods
from espnet_pinch.data.kaldi_dir import Utterance, read_table, write_data_dir
from espnet_pinch.errors import UserError
from espnet_pinch.export.any_target import Trained
from espnet_pinch.export.check import noise
from espnet_pinch.export.format import all_formats, choose_formats
from espnet_pinch.export.model import assemble
from espnet_pinch.export.sparse_file import write_sparse
from espnet_pinch.results.experiment import Experiment, significance_table, table, write_report
from espnet_pinch.results.scoring import score_files
from espnet_pinch.results.significance import compare_files, mcnemar
from espnet_pinch.results.unit import unit_of

LABELS = ["<none>", "turn off", "turn on"]


@pytest.fixture(autouse=True)
def _loud():
    yield
    logging.disable(logging.NOTSET)  # which commands change


@pytest.fixture
def model(tiny_config):
    config = Wav2Vec2Config(**tiny_config, classifier_proj_size=12, feat_extract_norm="layer").to_dict()
    processing = {"do_normalize": True, "return_attention_mask": True}
    frontend = UpstreamFrontend("", built={"config": config, "processing": processing}, task=CLASSIFY)
    model = assemble(frontend, LABELS, {"method": "dense"}).eval()
    torch.nn.init.normal_(model.classes.classifier.weight, std=5.0)  # so that it says something
    return model


def save(model, folder):
    frontend = model.frontend
    model.kind.save(folder, frontend.upstream, model.head, model.token_list, frontend.processing)
    return folder


def logits_of(model, audio):
    lengths = torch.tensor([len(samples) for samples in audio])
    with torch.inference_mode():
        hidden, frames = model.encode(torch.nn.utils.rnn.pad_sequence(audio, batch_first=True), lengths)
        return model.kind.apply(model.head, hidden, frames)[0][:, 0]


def test_transformers_and_every_file_compute_the_same(model, tmp_path):
    audio = noise(3)
    own = logits_of(model, audio)
    for i, samples in enumerate(audio):  # padding changes nothing
        torch.testing.assert_close(logits_of(model, [samples])[0], own[i], rtol=0, atol=1e-5)
    stock = AutoModelForAudioClassification.from_pretrained(save(model, tmp_path / "hf")).eval()
    extract = AutoFeatureExtractor.from_pretrained(tmp_path / "hf")
    inputs = extract([a.numpy() for a in audio], sampling_rate=16000, padding=True, return_tensors="pt")
    with torch.inference_mode():
        torch.testing.assert_close(stock(**inputs).logits, own, rtol=0, atol=1e-5)
    assert [stock.config.id2label[i] for i in range(3)] == LABELS
    write_sparse(tmp_path / "m.safetensors", model)
    for path in (tmp_path / "hf", tmp_path / "m.safetensors"):
        again = espnet_pinch.load(path)
        assert again.task == CLASSIFY and again.token_list == LABELS
        torch.testing.assert_close(logits_of(again, audio), own, rtol=0, atol=1e-6)
        found = recognise(again, audio)
        assert [t.text for t in found] == [LABELS[i] for i in own.argmax(-1)]
        torch.testing.assert_close(
            torch.tensor([t.words[0].confidence for t in found]), own.softmax(-1).amax(-1), rtol=1e-4, atol=1e-5
        )


def test_the_command_prints_labels_and_other_commands_say_whose_the_model_is(model, tmp_path, capsys, monkeypatch):
    write_sparse(tmp_path / "m.safetensors", model)
    [samples] = noise(1, 8000)
    for name in ("a.wav", "b.flac"):
        soundfile.write(tmp_path / name, np.stack([samples, samples], 1), 8000)
    (tmp_path / "bad.wav").write_bytes(b"RIFF")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["espnet-pinch", *map(str, arguments)])
        try:
            run_main(cli.main)
        except SystemExit as end:
            return end.code, *capsys.readouterr()
        return 0, *capsys.readouterr()

    status, out, _ = run("classify", tmp_path / "m.safetensors", tmp_path / "a.wav", tmp_path / "b.flac", "--top", "3")
    rows = [line.split("\t") for line in out.splitlines()]
    assert status == 0 and [row[0] for row in rows] == [str(tmp_path / n) for n in ("a.wav",) * 3 + ("b.flac",) * 3]
    for three in (rows[:3], rows[3:]):
        values = [float(value) for _, _, value in three]
        assert {label for _, label, _ in three} == set(LABELS) and values == sorted(values, reverse=True)
        assert sum(values) == pytest.approx(1, abs=2e-4)
    status, out, err = run("classify", tmp_path / "m.safetensors", tmp_path / "a.wav", tmp_path / "bad.wav")
    assert status == 1 and out.count("\n") == 1 and "bad.wav" in err and "1 of 2 files were classified" in err
    status, _, err = run("transcribe", tmp_path / "m.safetensors", tmp_path / "a.wav")
    assert status == 1 and "espnet-pinch classify takes it" in err
    assert run("info", tmp_path / "m.safetensors")[1].splitlines()[0].endswith("wav2vec2, 3 labels")


def test_an_utterance_without_a_frame_is_refused(model):
    with pytest.raises(UserError, match="^an utterance of 10 samples at 16000 Hz is too short for one frame$"):
        recognise(model, [torch.zeros(4000), torch.zeros(10)])


def test_a_format_without_classifiers_says_so(capsys):
    assert [fmt.name for fmt in choose_formats((), CLASSIFY)] == ["hf", "sparse", "onnx"]
    assert "the format espnet (ESPnet folder) takes no utterance classifier: it is left out" in capsys.readouterr().out
    with pytest.raises(UserError, match="sherpa_onnx .* takes no utterance classifier"):
        choose_formats(["sherpa_onnx"], CLASSIFY)
    assert all(fmt.snippets[CLASSIFY].format(folder="f", file="m", rate=1) for fmt in choose_formats((), CLASSIFY))
    assert "tokens" not in all_formats()["sparse"].snippets[CLASSIFY]


def test_mcnemar_counts_utterances_that_one_alone_has_wrong(tmp_path):
    def write(name, labels):
        path = tmp_path / "dump" / "test" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"u{i:02d} {label}\n" for i, label in enumerate(labels)))
        return path

    truth = write("text", ["turn on", "turn off"] * 10)
    baseline = write("baseline", ["turn off"] * 2 + ["turn on", "turn off"] * 9)
    run = write("run", ["turn off"] * 2 + ["turn off", "turn on"] * 3 + ["turn on", "turn off"] * 6)
    score = score_files(truth, run, unit_of(CLASSIFY))
    assert (score.errors, score.words, score.wer) == (7, 20, 0.35)  # a label is one word, whatever is in it
    test = compare_files(truth, baseline, run, unit_of(CLASSIFY))
    assert (test.baseline_errors, test.errors, test.alone) == (1, 7, (0, 6))
    assert test.p_one_sided == pytest.approx(0.5**6) and test.p_two_sided == pytest.approx(2 * 0.5**6)
    assert test.significant_increase and test.wer_difference == pytest.approx(30)
    even = mcnemar([(1, 1)] * 9)
    assert even.segments == 0 and even.p_one_sided == even.p_two_sided == 1 and not even.significant_increase


def corpus(folder, labels, count=6):
    """A set of tones, one pitch for each label."""
    rows, generator = [], np.random.default_rng(0)
    audio = folder.parents[1] / "audio"
    audio.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        label, n = labels[i % len(labels)], 4000 + 500 * i
        file = audio / f"{folder.name}{i}.wav"
        samples = 0.3 * np.sin(np.arange(n) * (0.1 + 0.4 * (i % len(labels)))) + generator.normal(0, 0.01, n)
        soundfile.write(file, samples, 16000)
        rows.append(Utterance(f"s-{i}", str(file), label, "s", n, 16000))
    write_data_dir(folder, rows)


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    """Stage 2 of sets of tones, and the upstream beside them."""
    from conftest import TINY

    root = tmp_path_factory.mktemp("classify")
    Wav2Vec2Model(Wav2Vec2Config(**TINY, classifier_proj_size=12)).save_pretrained(root / "upstream")
    for name in ("train", "dev"):
        corpus(root / "data" / name, ["turn on", "turn off", "<none>"])
    prepare(root)
    assert (root / "dump" / "token_list" / "label" / "tokens.txt").read_text().splitlines() == LABELS
    return root


def prepare(root, *more):
    sets = ("--train_set", "train", "--valid_set", "dev", "--test_sets", "dev")
    before, sys.argv = (
        sys.argv,
        ["x", "--data", f"{root}/data", "--upstream", f"{root}/upstream", "--out", f"{root}/dump", *sets, *more],
    )
    try:
        prepare_labels.main()
    finally:
        sys.argv = before


def test_a_label_that_the_training_lacks_is_an_error(dump, tmp_path):
    for name in ("data", "upstream"):
        (tmp_path / name).symlink_to(dump / name)
    (tmp_path / "data").unlink()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").symlink_to(dump / "data" / "train")
    corpus(tmp_path / "data" / "dev", ["turn on", "turn of"])
    with pytest.raises(UserError, match=r"dev: labels that train lacks: 'turn of' \(3\); first in utterance s-1"):
        prepare(tmp_path)
    assert not (tmp_path / "dump" / "dev").exists()
    prepare(tmp_path, "--text", "no_punctuation", "--train_set", "dev")
    corpus(tmp_path / "data" / "dev", ["turn on"])
    with pytest.raises(UserError, match="dev has 1 labels, and a classifier needs 2"):
        prepare(tmp_path, "--train_set", "dev")


def options(root, out, upstream, config, *more):
    found = ["--task", CLASSIFY, "--config", str(ROOT / "conf" / "classify" / config), "--output_dir", str(out)]
    found += ["--token_list", f"{root}/dump/token_list/label/tokens.txt", "--frontend_conf", f"upstream={upstream}"]
    for option, name in (("train", "train"), ("valid", "dev")):
        data = f"--{option}_data_path_and_name_and_type"
        found += [data, f"{root}/dump/{name}/wav.scp,speech,sound", data, f"{root}/dump/{name}/text,text,text"]
        found += [f"--{option}_shape_file", f"{root}/dump/{name}/utt2num_samples"]
    return [*found, "--resume", "true", "--max_epoch", "2", "--batch_size", "3", *more]


def test_a_classifier_is_trained_pruned_folded_and_reported(dump, tmp_path, capsys):
    base, run = tmp_path / "base", tmp_path / "run"
    asr_train.main(options(dump, base, dump / "upstream", "micro_baseline.yaml"))
    whole = Trained(base)
    whole.fold(None, base / "folded")
    pruned = options(dump, run, base / "folded" / "hf", "micro.yaml", "--pruning", "target_sparsity=0.5")
    pruned += ["--distill", "weight=0.5", "--save_every_steps", "1"]
    asr_train.main(pruned)
    assert ", dev error rate " in capsys.readouterr().out
    epochs = history.read(run)
    assert {"loss_label", "loss_distill", "penalty", "sparsity"} <= epochs["2"]["train"].keys()
    assert epochs["2"]["valid"]["error_on_target"] == epochs["2"]["valid"]["error"] <= 1
    with pytest.raises(UserError, match="trained with other settings or data: grad_clip: 5.0 -> 4.0"):
        asr_train.main([*pruned, "--grad_clip", "4"])
    counts = Trained(run).fold(0.5, run / "folded")
    assert 0.5 <= counts.sparsity < 0.51
    model = espnet_pinch.load(run)
    assert model.task == CLASSIFY and model.token_list == LABELS
    for folder in (base, run):
        decode_data_dir(espnet_pinch.load(folder), dump / "dump" / "dev", folder / "d" / "dev")
        assert set(read_table(folder / "d" / "dev" / "text").values()) <= set(LABELS)
    systems = [Experiment(folder, "d", dump / "dump", ("dev",)) for folder in (run, base)]
    results = write_report(run, *systems, "micro")
    assert results.error_rate == json.loads((run / "results.json").read_text())["error_rate"] == "error"
    page = (run / "RESULTS.md").read_text()
    assert "| dev error % (errors/utterances) |" in page and "| dev accuracy % |" in page and "McNemar" in page
    assert "MAPSSWE" not in page and (run / "images" / "course.png").stat().st_size > 10_000
    wrong = results.figures.wer["dev"].errors
    assert f"({wrong}/6)" in "\n".join(table(results)) and len(significance_table(results)) == 3


def test_a_killed_training_goes_on_to_the_same_end(dump, tmp_path, monkeypatch):
    save, left = PruningTrainer._save.__func__, [(2, 1)]

    def save_and_die(cls, model, optimizers, schedulers, scaler, reporter, batches):
        save(cls, model, optimizers, schedulers, scaler, reporter, batches)
        if (reporter.get_epoch(), batches) in left and "cut" in cls.options.output_dir:
            left.clear()
            raise KeyboardInterrupt

    monkeypatch.setattr(PruningTrainer, "_save", classmethod(save_and_die))
    for name in ("whole", "cut", "cut"):
        more = ("--pruning", "target_sparsity=0.5", "--save_every_steps", "1")
        with contextlib.suppress(KeyboardInterrupt):
            asr_train.main(options(dump, tmp_path / name, dump / "upstream", "micro.yaml", *more))
    assert not left
    whole, cut = (torch.load(tmp_path / name / "2epoch.pth", weights_only=True) for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


@pytest.mark.parametrize("config", sorted(p.name for p in (ROOT / "conf" / "classify").glob("*.yaml")))
def test_every_configuration_builds(config, dump, tmp_path):
    asr_train.main(options(dump, tmp_path / "exp", dump / "upstream", config, "--dry_run", "true"))
    written = yaml.safe_load((tmp_path / "exp" / "config.yaml").read_text())
    assert (written["task"], written["token_list"]) == (CLASSIFY, LABELS)
    assert written["pruning"]["method"] == ("dense" if "baseline" in config else "pinch")


@pytest.mark.parametrize("method", ["nas_cp", "l0", "ump", "mixed_sparsity"])
def test_every_method_gates_the_upstream_of_a_classifier(method, dump, tmp_path):
    assert method in all_methods()
    block = {"method": method, "target_sparsity": 0.5}
    if method == "mixed_sparsity":
        names = [f"encoder.layers.{i}.feed_forward.intermediate_dense" for i in range(2)]
        block |= {"layers": "intermediate_dense", method: {"layer_sparsities": dict.fromkeys(names, 0.5)}}
    from espnet_pinch.asr.classifier import PruningClassifier

    frontend = UpstreamFrontend(str(dump / "upstream"), task=CLASSIFY)
    quantize = {"bits": 8} if method == "ump" else None
    model = PruningClassifier(block, LABELS, frontend, quantize=quantize).train()
    model.pruning.total_steps = 4
    optimizer = torch.optim.SGD(model.parameter_groups(0.01))
    speech, lengths = torch.nn.utils.rnn.pad_sequence(noise(2), batch_first=True), torch.tensor([16000, 32000])
    for _ in range(4):
        loss, stats, _ = model(speech, lengths, torch.tensor([[0], [2]]), torch.tensor([1, 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert stats["loss_label"] > 0
    model.land()
    model.eval().fold()
    assert logits_of(model, noise(2)).shape == (2, 3)
    zeros = [bool((p == 0).any()) for n, p in model.named_parameters() if "intermediate_dense.weight" in n]
    assert any(zeros) or method == "l0"


def test_the_heads_of_other_tasks_are_not_taken(model, tmp_path, ctc_folder):
    save(model, tmp_path / "classifier")
    assert not UpstreamFrontend(str(tmp_path / "classifier")).has_head
    folder = ctc_folder(tmp_path / "ctc", ["<pad>", "|", "<unk>", "A"])
    assert not UpstreamFrontend(str(folder), task=CLASSIFY).has_head
    assert UpstreamFrontend(str(tmp_path / "classifier"), task=CLASSIFY).tokens == LABELS
    config = json.loads((tmp_path / "classifier" / "config.json").read_text())
    config["id2label"]["1"] = config["id2label"]["0"]
    (tmp_path / "classifier" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="two alike"):
        UpstreamFrontend(str(tmp_path / "classifier"), task=CLASSIFY)
