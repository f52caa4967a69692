"""The ESPnet floor: task, model, trainer, resume, and ESPnet's own loading of the result."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from transformers import HubertConfig, HubertModel, Wav2Vec2Config, Wav2Vec2Model, WavLMConfig, WavLMModel

from espnet_pinch.asr import history
from espnet_pinch.asr.checkpoint import load_model, write_folded
from espnet_pinch.asr.decode import decode_data_dir, transcribe
from espnet_pinch.asr.scheduler import LinearWarmupDecay
from espnet_pinch.asr.task import PruningASRTask
from espnet_pinch.asr.upstream import load_upstream, save_ctc_model
from espnet_pinch.core.attach import find_linears
from espnet_pinch.data.audio import read_audio
from espnet_pinch.data.kaldi_dir import read_data_dir, write_data_dir
from espnet_pinch.data.librispeech import read_subset
from espnet_pinch.data.mini_corpus import make_mini_corpus
from espnet_pinch.data.tokens import tokens_of_texts, write_tokens
from espnet_pinch.errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Data directories and token list of a corpus of 40 utterances."""
    folder = tmp_path_factory.mktemp("data")
    root = make_mini_corpus(folder, scale=0.05)
    for name, subset in (("train", "train-clean-100"), ("valid", "dev-clean")):
        rows = read_subset(root, subset)
        write_data_dir(folder / name, rows)
    write_tokens(folder / "tokens.txt", tokens_of_texts(u.text for u in read_data_dir(folder / "train")))
    return folder


@pytest.fixture
def upstream(tmp_path, tiny_wav2vec2) -> Path:
    Wav2Vec2Model(tiny_wav2vec2).save_pretrained(tmp_path / "upstream")
    return tmp_path / "upstream"


def options(data: Path, upstream: Path, out: Path, config="mini.yaml", *more: str) -> list[str]:
    return [
        *("--config", str(ROOT / "conf" / config), "--token_list", str(data / "tokens.txt")),
        *("--output_dir", str(out), "--frontend_conf", f"upstream={upstream}"),
        *("--train_data_path_and_name_and_type", f"{data}/train/wav.scp,speech,sound"),
        *("--train_data_path_and_name_and_type", f"{data}/train/text,text,text"),
        *("--train_shape_file", f"{data}/train/utt2num_samples"),
        *("--valid_data_path_and_name_and_type", f"{data}/valid/wav.scp,speech,sound"),
        *("--valid_data_path_and_name_and_type", f"{data}/valid/text,text,text"),
        *("--valid_shape_file", f"{data}/valid/utt2num_samples"),
        *("--num_workers", "0", "--batch_size", "4", *more),
    ]


def build(data, upstream, out, *more):
    args = PruningASRTask.get_parser().parse_args(options(data, upstream, out, "mini.yaml", *more))
    return PruningASRTask.build_model(args), args


def test_training_adds_the_penalty_and_validation_does_not(data, upstream, tmp_path):
    model, _ = build(data, upstream, tmp_path, "--pruning", "pinch.eta=0.001")
    rows = read_data_dir(data / "train")[:2]
    audio = [torch.from_numpy(read_audio(u.audio)) for u in rows]
    batch = dict(
        speech=torch.nn.utils.rnn.pad_sequence(audio, batch_first=True),
        speech_lengths=torch.tensor([len(a) for a in audio]),
        text=torch.tensor([[5, 6], [7, -1]]),
        text_lengths=torch.tensor([2, 1]),
    )
    model.pruning.total_steps = 10
    model.train()
    loss, stats, weight = model(**batch)
    gated = sum(g.weight_orig.numel() for g in model.pruning.gates.values())
    assert weight == 2 and float(stats["penalty"]) == pytest.approx(0.001 * gated, rel=0.01)
    assert float(loss) == pytest.approx(float(stats["loss_ctc"]) + float(stats["penalty"]), rel=1e-5)
    assert {"sparsity", "tau", "eta", "penalty"} <= stats.keys()
    loss.backward()
    assert all(g.threshold.grad.abs() > 0 for g in model.pruning.gates.values())
    model.eval()
    loss, stats, _ = model(**batch)
    assert float(loss) == float(stats["loss_ctc"]) and "penalty" not in stats
    assert float(stats["words"]) == 1 and float(stats["word_errors"]) >= 1


def test_thresholds_are_a_group_without_weight_decay(data, upstream, tmp_path):
    model, args = build(data, upstream, tmp_path, "--pruning", "pinch.threshold_lr=0.01")
    [optimizer] = PruningASRTask.build_optimizers(args, model)
    weights, thresholds = optimizer.param_groups
    assert len(thresholds["params"]) == 12 and thresholds["lr"] == 0.01 and thresholds["weight_decay"] == 0
    assert weights["weight_decay"] == 0.01 and weights["lr"] == 5e-4
    frozen = {id(p) for p in model.frontend.upstream.feature_extractor.parameters()}
    assert not frozen & {id(p) for p in weights["params"]}


def test_the_learning_rate_warms_up_and_decays_to_nothing():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [parameter], "lr": 2.0}])
    scheduler = LinearWarmupDecay(optimizer, warmup_ratio=0.1)
    scheduler.set_total_steps(100)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[0] == pytest.approx(0.2) and rates[9] == pytest.approx(2.0) and rates[10] == 2.0
    assert rates[55] == pytest.approx(1.0) and rates[99] == pytest.approx(2 / 90)
    assert optimizer.param_groups[0]["lr"] == 0
    assert "total_steps" not in scheduler.state_dict()


@pytest.mark.parametrize("config", sorted(p.name for p in (ROOT / "conf").glob("*.yaml") if "decode" not in p.name))
def test_every_configuration_builds(config, data, tmp_path, tiny_config):
    kinds = {
        "hubert": (HubertConfig, HubertModel),
        "wavlm": (WavLMConfig, WavLMModel),
        "wav2vec2": (Wav2Vec2Config, Wav2Vec2Model),
        "mini": (Wav2Vec2Config, Wav2Vec2Model),
        "micro": (Wav2Vec2Config, Wav2Vec2Model),
    }
    config_class, model_class = kinds[config.replace(".", "_").split("_")[0]]
    model_class(config_class(**tiny_config)).save_pretrained(tmp_path / "upstream")
    command = options(data, tmp_path / "upstream", tmp_path / "exp", config, "--dry_run", "true")
    PruningASRTask.main(cmd=command)
    written = yaml.safe_load((tmp_path / "exp" / "config.yaml").read_text())
    assert written["pruning"]["method"] == ("dense" if "baseline" in config else "pinch")
    assert written["frontend_conf"]["built"]["config"]["hidden_size"] == tiny_config["hidden_size"]


WRONG = {
    "optim_conf: {lr: 1e-3}": "optim_conf.lr must be float .*, not '1e-3'; a YAML has it as 0.001, without quotes",
    "{optim: adamw, optim_conf: {betas: [0.9]}}": "optim_conf.betas must be tuple",
    "model_conf: {length_normalized_loss: 'no'}": "model_conf.length_normalized_loss must be bool, not 'no'",
    "model_conf: {nonsense: 1}": "model_conf has no setting 'nonsense': PruningASRModel takes .* ctc_weight",
    "ctc_conf: {reduce: 3}": "ctc_conf.reduce must be bool, not 3",
    "ctc_conf: [1]": "ctc_conf must be a block of settings",
    "{scheduler: linearwarmupdecay, scheduler_conf: {warmup_ratio: '0.1'}}": "warmup_ratio must be float, not '0.1'",
    "frontend_conf: {freeze_feature_encoder: 'false'}": "frontend_conf.freeze_feature_encoder must be bool",
    "accum_grad: 1.5": "accum_grad must be a whole number, not 1.5",
    "accum_grad: 0": "accum_grad must be at least 1, not 0",
    "batch_bins: null": "batch_bins must be a whole number, not None",
    "keep_nbest_models: [1, true]": "keep_nbest_models must be a whole number",
    "patience: [1]": "patience must be a whole number or null, not",
    "use_amp: 1": "use_amp must be true or false, not 1",
    "batch_type: fast": "batch_type must be one of unsorted, .*, not 'fast'",
    "best_model_criterion: [[1, 2, 3]]": "best_model_criterion must be a list of",
    "best_model_criterion: [[valid, acc, max]]": "best_model_criterion: 'valid' has no figure 'acc': train has loss",
    "early_stopping_criterion: [dev, wer, min]": "early_stopping_criterion: 'dev' has no figure 'wer'",
    "early_stopping_criterion: [valid, wer]": "early_stopping_criterion must be a list of 3, not",
    "freeze_param: ctc": "freeze_param must be a list, not 'ctc'",
    "init_param: [1]": "init_param must be a text, not",
    "non_linguistic_symbols: 5": "non_linguistic_symbols must be a text or null, not 5",
    "max_cache_size: much": "max_cache_size or valid_max_cache_size: Failed to parse size!",
    "train_dtype: float16": "train_dtype: float16 is not supported",
    "preprocessor_conf: {nonsense: 1}": "preprocessor_conf has no setting 'nonsense': CommonPreprocessor takes",
    "preprocessor_conf: {token_type: char}": "preprocessor_conf: .* multiple values for keyword argument 'token_type'",
}


@pytest.mark.parametrize("setting", WRONG)
def test_a_setting_of_a_wrong_type_gets_one_line_before_anything_is_written(setting, tmp_path):
    (tmp_path / "wrong.yaml").write_text(setting)
    out = ["--output_dir", str(tmp_path / "exp"), "--config", str(tmp_path / "wrong.yaml")]
    with pytest.raises(UserError, match=WRONG[setting]) as error:
        PruningASRTask.main(cmd=[*out, "--frontend_conf", "upstream=nowhere"])
    assert "\n" not in str(error.value) and not (tmp_path / "exp").exists()


def test_empty_blocks_are_the_defaults_and_fields_of_upstreams_are_checked(data, upstream, tmp_path):
    blocks = dict.fromkeys(("model_conf", "ctc_conf", "optim_conf", "pruning", "quantize", "distill"))
    (tmp_path / "empty.yaml").write_text(yaml.safe_dump(blocks))
    command = options(data, upstream, tmp_path / "exp", "mini.yaml", "--dry_run", "true")
    command[1] = str(tmp_path / "empty.yaml")
    PruningASRTask.main(cmd=command)
    assert yaml.safe_load((tmp_path / "exp" / "config.yaml").read_text())["pruning"]["method"] == "pinch"
    command += ["--frontend_conf", "upstream_conf={mask_time_length: 5.5}"]
    with pytest.raises(UserError, match=r"upstream_conf.mask_time_length cannot be 5.5: .* expected int"):
        PruningASRTask.main(cmd=command)


def test_what_a_setting_names_must_be_there(data, upstream, tmp_path):
    with pytest.raises(UserError, match="freeze_param: the model has no parameter 'frontend.up', and none that begins"):
        model, args = build(data, upstream, tmp_path, "--freeze_param", "frontend.upstream.encoder", "frontend.up")
        PruningASRTask.build_optimizers(args, model)
    with pytest.raises(UserError, match="model_conf.ctc_weight must be 1, not 0.3: there is no decoder"):
        build(data, upstream, tmp_path, "--model_conf", "ctc_weight=0.3")


def train(command, kill_after=None):
    """Train in a process of its own; kill it once the file ``kill_after`` is there."""
    command = [sys.executable, "-m", "espnet_pinch.bin.asr_train", *command]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # on which the last bits depend
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    process = subprocess.Popen(command, env={**os.environ, **threads}, **pipes)
    if kill_after is not None:
        while not kill_after.exists() and process.poll() is None:
            time.sleep(0.02)
        time.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        return
    output, _ = process.communicate()
    assert process.returncode == 0, output


def test_a_killed_run_ends_like_one_that_was_not(data, upstream, tmp_path, capsys):
    more = ["--max_epoch", "3", "--pruning", "target_sparsity=0.7"]
    PruningASRTask.main(cmd=options(data, upstream, tmp_path / "whole", "mini.yaml", *more))
    assert "epoch 3 of 3: loss" in capsys.readouterr().out
    train(
        options(data, upstream, tmp_path / "cut", "mini.yaml", *more, "--resume", "true"), tmp_path / "cut/1epoch.pth"
    )
    assert not (tmp_path / "cut" / "3epoch.pth").exists()
    train(options(data, upstream, tmp_path / "cut", "mini.yaml", *more, "--resume", "true"))
    whole, cut = (torch.load(tmp_path / n / "3epoch.pth", weights_only=True) for n in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    for name in whole:
        torch.testing.assert_close(whole[name], cut[name], rtol=0, atol=0, msg=name)
    courses = [history.read(tmp_path / n) for n in ("whole", "cut")]
    assert [c["3"]["valid"]["wer"] for c in courses][0] == courses[1]["3"]["valid"]["wer"]
    assert list(courses[1]) == ["1", "2", "3"]

    # killed between checkpoint.pth and what follows it: the best epoch's file and links are made again
    best = os.readlink(tmp_path / "cut" / "valid.wer_on_target.best.pth")
    for name in ("3epoch.pth", "latest.pth", "valid.wer_on_target.best.pth"):
        (tmp_path / "cut" / name).unlink()
    PruningASRTask.main(cmd=options(data, upstream, tmp_path / "cut", "mini.yaml", *more, "--resume", "true"))
    again = torch.load(tmp_path / "cut" / "3epoch.pth", weights_only=True)
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    assert os.readlink(tmp_path / "cut" / "valid.wer_on_target.best.pth") == best

    # what training leaves: on the target, chosen by dev WER among epochs that are
    exp = tmp_path / "whole"
    model, args = load_model(exp / "config.yaml", exp / "valid.wer_on_target.best.pth")
    assert 0.7 <= model.pruning.sparsity() <= 0.701
    points = courses[0]["3"]["train"]["points"]
    assert 0.7 <= points[-1]["sparsity"] <= 0.701 and points[-1]["eta"] == 0
    assert list((exp / "tensorboard" / "train").iterdir())

    # folded: the zeros in the file are the sparsity that is reported; transformers and ESPnet read it
    audio = [torch.from_numpy(read_audio(u.audio)) for u in read_data_dir(data / "valid")[:3]]
    texts = transcribe(model, audio)
    gates = {name: gate.fold().weight.clone() for name, gate in model.pruning.gates.items()}
    counts = write_folded(model, args, exp / "folded")
    state = torch.load(exp / "folded" / "model.pth", weights_only=True)
    zeros = sum(int((state[f"frontend.upstream.{name}.weight"] == 0).sum()) for name in gates)
    gated = sum(weight.numel() for weight in gates.values())
    assert counts.sparsity == zeros / gated and 0.7 <= counts.sparsity <= 0.701
    assert counts.extra_trained_parameters == 12
    assert not any("threshold" in name for name in state)
    folded, _ = load_model(exp / "folded" / "config.yaml", exp / "folded" / "model.pth")
    assert transcribe(folded, audio) == texts
    again = load_upstream(str(exp / "folded" / "hf"))
    assert again.tokens == folded.token_list
    for name, weight in gates.items():
        assert torch.equal(again.model.get_submodule(name).weight, weight)

    from espnet2.bin.asr_inference import Speech2Text

    (tmp_path / "upstream").rename(tmp_path / "gone")  # nothing is read from the upstream any more
    speech2text = Speech2Text(
        exp / "folded" / "config.yaml", exp / "folded" / "model.pth", beam_size=2, ctc_weight=1.0, lm_weight=0.0
    )
    hidden, _ = folded.encode(audio[0][None], torch.tensor([len(audio[0])]))
    theirs, _ = speech2text.asr_model.encode(audio[0][None], torch.tensor([len(audio[0])]))
    assert torch.equal(hidden, theirs)
    assert isinstance(speech2text(audio[0].numpy())[0][0], str)


@pytest.mark.parametrize("method, extra", [("dense", 0), ("ump", 0), ("mixed_sparsity", 0), ("nas_cp", 84)])
def test_the_other_methods_train_fold_and_load(method, extra, data, upstream, tmp_path):
    more = ["--max_epoch", "2", "--pruning", f"method={method}", "--pruning", "target_sparsity=0.7"]
    if method == "mixed_sparsity":
        model, _ = build(data, upstream, tmp_path)
        layers = {name: {"weights": 100, "pruned": 70} for name in model.pruning.gates}
        (tmp_path / "layers.json").write_text(json.dumps({"layers": layers}))
        more += ["--pruning", f"mixed_sparsity.layer_sparsities={tmp_path / 'layers.json'}"]
    exp = tmp_path / "exp"
    PruningASRTask.main(cmd=options(data, upstream, exp, "mini.yaml", *more))
    (tmp_path / "layers.json").unlink(missing_ok=True)  # the run's own configuration has what was read from it
    model, args = load_model(exp / "config.yaml", exp / "valid.wer_on_target.ave.pth")
    target = 0.0 if method == "dense" else 0.7
    audio = torch.from_numpy(read_audio(read_data_dir(data / "valid")[0].audio))[None]
    counts = write_folded(model, args, exp / "folded")
    assert target <= counts.sparsity <= target + 0.02 and counts.extra_trained_parameters == extra
    hidden, _ = model.encode(audio, torch.tensor([audio.size(1)]))
    folded, _ = load_model(exp / "folded" / "config.yaml", exp / "folded" / "model.pth")
    again, _ = folded.encode(audio, torch.tensor([audio.size(1)]))
    torch.testing.assert_close(again, hidden, rtol=0, atol=1e-5)
    stored = sum(p.numel() for p in folded.parameters())
    assert stored == counts.params_stored and (stored < counts.params_kept or method != "nas_cp")
    zeros = load_upstream(str(exp / "folded" / "hf")).model
    assert sum(int((m.weight == 0).sum()) for m in find_linears(zeros).values()) == counts.pruned


def test_decoding_writes_a_text_for_every_utterance(data, upstream, tmp_path):
    model, _ = build(data, upstream, tmp_path)
    figures = decode_data_dir(model.eval(), data / "valid", tmp_path / "out", batch_size=3)
    ids = [line.split(" ")[0] for line in (tmp_path / "out" / "text").read_text().splitlines()]
    assert ids == [u.id for u in read_data_dir(data / "valid")]
    assert figures["audio_seconds"] > 1


def test_a_head_is_taken_over_and_its_vocabulary_checked(data, upstream, tmp_path):
    model, _ = build(data, upstream, tmp_path)
    frontend, head = model.frontend, model.ctc.ctc_lo
    model.fold()
    save_ctc_model(tmp_path / "ctc", frontend.upstream, head, model.token_list, frontend.processing)
    second, _ = build(data, tmp_path / "ctc", tmp_path)
    assert torch.equal(second.ctc.ctc_lo.weight, head.weight)
    write_tokens(tmp_path / "tokens.txt", ["<blank>", "<unk>", "<space>", "A", "<sos/eos>"])
    with pytest.raises(ValueError, match="the token list differs from the vocabulary"):
        build(data, tmp_path / "ctc", tmp_path, "--token_list", str(tmp_path / "tokens.txt"))


def test_a_checkpoint_that_does_not_fit_is_refused(data, upstream, tmp_path):
    model, args = build(data, upstream, tmp_path)
    write_folded(model, args, tmp_path / "folded")
    state = torch.load(tmp_path / "folded" / "model.pth", weights_only=True)
    state.pop("ctc.ctc_lo.bias")
    torch.save(state, tmp_path / "broken.pth")
    with pytest.raises(ValueError, match="broken.pth does not fit .*ctc_lo.bias"):
        load_model(tmp_path / "folded" / "config.yaml", tmp_path / "broken.pth")
