"""Structured pinching in a training: budgets, distillation, what is folded and loaded, a kill, two processes."""

import json
import re

import pytest
import test_espnet
import test_nodes
import torch
from test_espnet import options, train
from test_nodes import outputs, start, start_two
from transformers import AutoModelForCTC

import espnet_pinch
from espnet_pinch.asr.checkpoint import load_model, write_folded
from espnet_pinch.asr.distill import Teacher, divergence
from espnet_pinch.asr.frontend import UpstreamFrontend
from espnet_pinch.asr.macs import count_macs
from espnet_pinch.asr.task import PruningASRTask, _check_own
from espnet_pinch.asr.upstream import load_upstream
from espnet_pinch.core.group_gates import counts as units_left
from espnet_pinch.core.registry import build_method, find_method
from espnet_pinch.data.audio import read_audio
from espnet_pinch.data.kaldi_dir import read_data_dir
from espnet_pinch.export.write import export

data, upstream, corpus, command = test_espnet.data, test_espnet.upstream, test_nodes.corpus, test_nodes.command
UNITS = ("--pruning", "method=pinch", "--pruning", "pinch.unit=structured", "--pruning", "pinch.multiple=4")
CONV = ("--pruning", "pinch.conv=true")
PINCH = (*UNITS, *CONV)
L0 = ("--pruning", "method=l0", "--pruning", "l0.multiple=4", "--pruning", "l0.conv=true")
HALF = ("--pruning", "target_sparsity=0.5")
MACS = ("--pruning", "target_sparsity=null", "--pruning", "target_macs=0.4")


@pytest.fixture
def batch(data):
    rows = read_data_dir(data / "valid")[:3]
    audio = [torch.from_numpy(read_audio(u.audio)) for u in rows]
    return torch.nn.utils.rnn.pad_sequence(audio, batch_first=True), torch.tensor([len(a) for a in audio])


@torch.no_grad()
def logits(model, batch):
    return model.ctc.ctc_lo(model.encode(*batch)[0])


@pytest.mark.parametrize(
    "method, target",
    [
        pytest.param(PINCH, MACS, id="macs"),
        pytest.param(PINCH, ("--pruning", "target_sparsity=0.5"), id="sparsity", marks=pytest.mark.slow),
        pytest.param(L0, ("--pruning", "target_sparsity=0.5"), id="l0 sparsity"),
        pytest.param(L0, MACS, id="l0 macs", marks=pytest.mark.slow),
    ],
)
def test_a_run_ends_on_its_budget_with_a_smaller_model_that_everything_loads(
    method, target, data, upstream, batch, tmp_path
):
    exp = tmp_path / "exp"
    PruningASRTask.main(cmd=options(data, upstream, exp, "mini.yaml", *method, *target, "--max_epoch", "2"))
    model, args = load_model(exp / "config.yaml", exp / "valid.wer_on_target.ave.pth")
    model.pruning.land()
    if method is PINCH:
        assert model.pruning.on_target() and not model.pruning.pinched.overshoots(model.pruning.settings.target)
        # a threshold for each attention, network and convolution
        assert [p.numel() for p in model.pruning.new_parameters()] == [1] * (2 * 2 + 2)
    else:
        gated = model.pruning.gated
        kept = units_left(gated.gates.values())
        assert model.pruning.on_target() and not gated.budget.room(kept, model.pruning.settings.target)
        # a gate for each head, channel and filter, and two multipliers
        assert sum(p.numel() for p in model.pruning.new_parameters()) == 2 * (2 + 24) + 2 * 8 + 2
    extra = sum(p.numel() for p in model.pruning.new_parameters())
    want = logits(model, batch)
    counts = write_folded(model, args, exp / "folded")
    if target is MACS:
        assert counts.macs / counts.macs_total == pytest.approx(1 - model_reached(exp), abs=1e-6)
    assert counts.params_kept == counts.params_stored < counts.params_total
    assert counts.extra_trained_parameters == extra
    for found in (exp / "folded", exp / "folded" / "hf"):
        again = espnet_pinch.load(found)
        torch.testing.assert_close(logits(again, batch), want, rtol=0, atol=1e-5)
        assert sum(p.numel() for p in again.parameters()) == counts.params_kept
        kept = sum(again.frontend.upstream.get_submodule(name).weight.numel() for name in counts.layers)
        assert kept == counts.gated - counts.pruned
        assert count_macs(again.frontend.upstream)[""] == counts.macs
    with pytest.raises(RuntimeError):  # never a model of partly random weights
        AutoModelForCTC.from_pretrained(exp / "folded" / "hf")
    [entry] = export(exp, tmp_path / "export", ["hf"])["files"].values()
    card = (tmp_path / "export" / "README.md").read_text()
    assert entry["loader"] == "espnet_pinch.load" and 'espnet_pinch.load("path/to/this/folder")' in card
    assert not any(word in card for word in ("pipeline(", "AutoModelForCTC", "library_name", "weights are zero"))

    # it is an upstream like any other: pruned again, by single weights and by units
    for name, more in {"pinch": (), "units": (*UNITS, *CONV), "nas_cp": ("--pruning", "method=nas_cp")}.items():
        out = tmp_path / name
        again = options(data, exp / "folded" / "hf", out, "mini.yaml", *more, "--pruning", "target_sparsity=0.2")
        PruningASRTask.main(cmd=[*again, "--max_epoch", "1"])
        second, args = load_model(out / "config.yaml", out / "valid.wer_on_target.ave.pth")
        before = sum(p.numel() for p in second.parameters()) - sum(p.numel() for p in second.pruning.new_parameters())
        assert before == counts.params_kept
        second.pruning.land()
        want = logits(second, batch)
        write_folded(second, args, out / "folded")
        torch.testing.assert_close(logits(espnet_pinch.load(out / "folded"), batch), want, rtol=0, atol=1e-5)


def test_a_uniform_run_leaves_what_transformers_loads_as_it_is(data, upstream, batch, tmp_path):
    exp = tmp_path / "exp"
    more = (*UNITS, *CONV, "--pruning", "pinch.uniform=true", "--pruning", "target_sparsity=0.3", "--max_epoch", "2")
    PruningASRTask.main(cmd=options(data, upstream, exp, "mini.yaml", *more))
    model, args = load_model(exp / "config.yaml", exp / "valid.wer_on_target.ave.pth")
    model.pruning.land()
    assert len(model.pruning.new_parameters()) == 1 + 2  # one for all feed-forward networks
    assert model.pruning.on_target() and not model.pruning.pinched.overshoots(0.3)
    want = logits(model, batch)
    counts = write_folded(model, args, exp / "folded")
    stock, info = AutoModelForCTC.from_pretrained(exp / "folded" / "hf", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert stock.config.intermediate_size < 24 and "espnet_pinch_widths" not in stock.config.to_dict()
    assert sum(p.numel() for p in stock.parameters()) == counts.params_kept
    for found in (exp / "folded", exp / "folded" / "hf"):
        torch.testing.assert_close(logits(espnet_pinch.load(found), batch), want, rtol=0, atol=1e-5)


def model_reached(exp):
    model, _ = load_model(exp / "config.yaml", exp / "valid.wer_on_target.ave.pth")
    model.pruning.land()
    return model.pruning.reached()


@pytest.mark.parametrize(
    "more",
    [
        pytest.param((*PINCH, *MACS), id="macs", marks=pytest.mark.slow),
        pytest.param(PINCH, id="conv", marks=pytest.mark.slow),
        pytest.param((*UNITS, "--distill", "weight=0.5"), id="distilled", marks=pytest.mark.slow),
        pytest.param(L0, id="l0", marks=pytest.mark.slow),
        pytest.param(("--pruning", "target_sparsity=[0.3,0.5,0.7]"), id="targets", marks=pytest.mark.slow),
        pytest.param(("--quantize", "bits=mixed", "--quantize", "average_bits=3"), id="bits", marks=pytest.mark.slow),
    ],
)
def test_a_killed_structured_run_ends_like_one_that_was_not(more, data, upstream, tmp_path):
    if "--distill" in more:  # learns from a head
        PruningASRTask.main(
            cmd=options(data, upstream, tmp_path / "base", "mini.yaml", "--pruning", "method=dense", "--max_epoch", "1")
        )
        model, args = load_model(tmp_path / "base" / "config.yaml", tmp_path / "base" / "valid.wer_on_target.ave.pth")
        write_folded(model, args, tmp_path / "base" / "folded")
        upstream = tmp_path / "base" / "folded" / "hf"
    more = ("--pruning", "target_sparsity=0.5", *more, "--max_epoch", "3", "--resume", "true")
    PruningASRTask.main(cmd=options(data, upstream, tmp_path / "whole", "mini.yaml", *more))
    cut = options(data, upstream, tmp_path / "cut", "mini.yaml", *more)
    train(cut, tmp_path / "cut" / "1epoch.pth")
    assert not (tmp_path / "cut" / "3epoch.pth").exists()
    train(cut)
    whole, cut = (torch.load(tmp_path / n / "3epoch.pth", weights_only=True) for n in ("whole", "cut"))
    assert whole.keys() == cut.keys() and all(torch.equal(whole[name], cut[name]) for name in whole)
    assert not any("teacher" in name for name in whole)


@pytest.mark.slow
@pytest.mark.parametrize("more", [UNITS, (*PINCH, *MACS), L0], ids=["sparsity", "macs", "l0"])
def test_two_processes_end_where_one_does(more, command, tmp_path):
    more = (*more, "--max_epoch", "2")
    outputs(start(command, tmp_path / "one", *more))
    outputs(*start_two(command, tmp_path / "two", *more))
    one, two = (torch.load(tmp_path / name / "2epoch.pth", weights_only=True) for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-5, msg=name)


def test_the_distance_from_the_teacher_is_the_divergence_of_the_posteriors(data, upstream, batch, tmp_path):
    torch.manual_seed(1)
    frontend = UpstreamFrontend(str(upstream))
    with pytest.raises(ValueError, match="has no CTC head to learn from"):
        Teacher(frontend).take_head(torch.nn.Linear(1, 1))
    head = torch.nn.Linear(16, 5)
    frontend._head = [head]
    teacher = Teacher(frontend)
    teacher.take_head(head)
    speech, lengths = batch
    hidden, frames = frontend.eval()(speech, lengths)
    own = torch.randn(*hidden.shape[:2], 5, requires_grad=True)
    loss = divergence(own, teacher.logits(speech, lengths), frames, temperature=2.0)
    p, q = ((x / 2.0).softmax(-1) for x in (head(hidden), own))
    want = sum((p * (p / q).log())[i, : frames[i]].sum() for i in range(3)) / 3 * 4
    torch.testing.assert_close(loss, want, rtol=1e-4, atol=1e-4)
    loss.backward()
    assert own.grad is not None and all(p.grad is None for p in (*frontend.parameters(), *head.parameters()))
    again = divergence(head(hidden), teacher.logits(speech, lengths), frames, temperature=2.0)
    assert again.item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(
    "block, message",
    [
        ({"target_sparsity": 0.5, "target_macs": 0.5}, r"give target_sparsity or target_macs, not both \(0.5, 0.5\)"),
        ({"target_sparsity": None}, "give target_sparsity or target_macs, one of them"),
        ({"target_macs": 0.5}, "target_macs needs pinch.unit: structured"),
        ({"target_macs": 1.5, "pinch": {"unit": "structured"}}, "target_macs must be a number .* not 1.5"),
        ({"method": "nas_cp", "target_macs": 0.5}, "target_macs needs a method that prunes whole units"),
        ({"method": "ump", "target_macs": 0.5}, "target_macs needs a method that prunes whole units"),
        ({"pinch": {"unit": "rows"}}, "pinch.unit must be one of weight, structured, not 'rows'"),
        ({"pinch": {"conv": True}}, "conv needs pinch.unit: structured"),
        ({"pinch": {"multiple": 16}}, "multiple needs pinch.unit: structured"),
        ({"pinch": {"unit": "structured", "conv": "yes"}}, "pinch.conv must be true or false"),
        ({"method": "l0", "l0": {"multiple": 0.5}}, "l0.multiple must be a whole number from 1"),
        ({"pinch": {"unit": "structured", "multiple": 10**20}}, "pinch.multiple must be a whole number from 1 to"),
        ({"pinch": {"threshold_init": 1e39}}, "threshold_init must be from 1e-18 to 1e.18, not 1e.39"),
        ({"pinch": {"threshold_lr": 1e100}}, "threshold_lr must be from"),
        ({"pinch": {"reach_by": 5e-324}}, "reach_by must be from"),
        ({"method": "l0", "l0": {"gate_lr": 1e38}}, "gate_lr must be from"),
        ({"method": "l0", "l0": {"landing": "paper"}}, "l0.landing must be 'hold' or 'free'"),
        ({"method": "l0", "l0": {"reach_by": 2}}, "l0.reach_by must be at most 1"),
        ({"pinch": {"unit": "structured", "multiple": 0}}, "pinch.multiple must be a whole number from 1"),
    ],
)
def test_settings_that_do_not_fit_get_one_line(block, message):
    with pytest.raises(ValueError, match=message) as caught:
        build_method(block)
    assert "\n" not in str(caught.value)


def test_a_budget_that_the_floors_do_not_allow_and_a_split_group_get_one_line(data, upstream, tmp_path):
    def refused(*more):
        with pytest.raises(ValueError) as caught:
            PruningASRTask.main(cmd=options(data, upstream, tmp_path / "exp", "mini.yaml", *UNITS, *more))
        return str(caught.value)

    line = refused("--pruning", "target_sparsity=0.99", "--max_epoch", "1")
    assert re.search(r"cannot save 99.00 % .* at most [\d.]+ %", line), line
    line = refused("--pruning", "target_sparsity=null", "--pruning", "target_macs=0.9", "--max_epoch", "1")
    assert re.search(r"cannot save 90.00 % .* at most [\d.]+ %", line), line
    line = refused("--pruning", "target_sparsity=0.5", "--pruning", r"layers=(q_proj|fc)$", "--max_epoch", "1")
    assert "must be gated together" in line
    line = refused("--pruning", "method=l0", "--pruning", "l0.conv=true")
    assert line == "--pruning pinch.unit: the method is l0, which does not read it"
    line = refused("--pruning", "pinch=3")
    assert line.startswith("the pruning block's pinch must be a mapping of settings, not 3")
    assert not (tmp_path / "exp" / "checkpoint.pth").exists()


def test_settings_on_the_command_line_are_those_of_the_method_or_of_the_run_that_it_reads():
    _check_own(["--pruning", "pinch.reach_by=0.4", "--pruning", "method=mixed_sparsity"], find_method("mixed_sparsity"))
    for given in (["--pruning", "{'pinch': {'reach_by': 0.4}}"], ["--prun", "pinch.reach_by=0.4"]):
        with pytest.raises(ValueError, match="--pruning pinch.reach_by: the method is ump, which does not read it"):
            _check_own(given, find_method("ump"))


def test_a_teacher_that_is_still_to_be_trained_is_asked_for_when_the_training_begins(data, upstream, tmp_path):
    """run.sh tries the settings out before it trains the baseline, which is the teacher."""
    more = (*UNITS, "--pruning", "target_sparsity=0.5", "--distill", "weight=0.5")
    command = options(data, upstream, tmp_path / "exp", "mini.yaml", *more)
    PruningASRTask.main(cmd=[*command, "--dry_run", "true"])
    with pytest.raises(ValueError, match="distill: the upstream has no CTC head to learn from; train its baseline fi"):
        PruningASRTask.main(cmd=command)


@pytest.mark.parametrize(
    "widths, message",
    [
        ({"encoder.layers.0.feed_forward": 0}, "cannot have 0 units"),
        ({"encoder.layers.0.feed_forward": 10**9}, "cannot have 1000000000 units"),
        ({"encoder.layers.9.attention": 1}, "'encoder.layers.9.attention'"),
        ({"encoder.layers.0.attention": True}, "cannot have True units"),
        ([1], "espnet_pinch_widths"),
    ],
)
def test_widths_that_a_model_cannot_have_are_refused(widths, message, upstream):
    config = json.loads((upstream / "config.json").read_text())
    (upstream / "config.json").write_text(json.dumps({**config, "espnet_pinch_widths": widths}))
    with pytest.raises(ValueError, match=message):
        load_upstream(str(upstream))
