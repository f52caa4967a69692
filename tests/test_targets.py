"""Several targets in one run: thresholds of their own, landed exactly, nested; what comes out; bad lists."""

import copy
import json
import sys

import pytest
import test_espnet
import torch
from test_espnet import options
from torch import nn

import espnet_pinch
from espnet_pinch import Pinch, cli
from espnet_pinch.asr.distill import densest_logits
from espnet_pinch.asr.task import PruningASRTask
from espnet_pinch.bin import export, fold
from espnet_pinch.core.parameters import Parameters
from espnet_pinch.core.registry import build_method
from espnet_pinch.errors import UserError

data, upstream = test_espnet.data, test_espnet.upstream

TARGETS = [0.5, 0.65, 0.75, 0.9]
UNIT = dict(unit="structured", multiple=2)


class Net(nn.Module):
    """Two feed-forward networks, named as a Transformer's."""

    def __init__(self):
        super().__init__()
        widths = (48, 32)
        self.nets = nn.ModuleList(
            nn.ModuleDict({"intermediate_dense": nn.Linear(16, width), "output_dense": nn.Linear(width, 16)})
            for width in widths
        )

    def forward(self, x):
        for net in self.nets:
            x = x + net["output_dense"](net["intermediate_dense"](x).relu())
        return x


def loss_of(net, step):
    x = torch.randn(16, 16, generator=torch.Generator().manual_seed(step))
    return (net(x) - x.flip(1)).square().mean()


def one_step(net, optimizer, step, *penalised):
    """A step of a training; the loss of ``net`` has the penalties of ``penalised``."""
    loss = loss_of(net, step)
    for method in penalised:
        loss = loss + method.penalty()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def train(pinch, net, optimizer, steps, start=0):
    course = []
    for step in range(start, start + steps):
        course.append(pinch._turn())
        one_step(net, optimizer, step, pinch)
    return course


def begin(targets, steps=60, **more):
    torch.manual_seed(0)
    net = Net()
    pinch = Pinch(target_sparsity=targets, layers="dense$", threshold_lr=2e-2, **{"eta": 1e-4, **more})
    pinch.attach(net, total_steps=steps)
    return pinch, net, torch.optim.AdamW(pinch.parameter_groups(lr=2e-3))


def kept(pinch, target):
    pinch.use(target)
    if pinch.settings.unit == "structured":
        return [gate.hard() for gate in pinch.gates.values()]
    return [gate.weight != 0 for gate in pinch.gates.values()]


@pytest.mark.parametrize("more", [{}, UNIT], ids=["weight", "structured"])
def test_every_target_is_landed_exactly_and_lower_ones_keep_more(more):
    pinch, net, optimizer = begin(TARGETS, **more)
    course = train(pinch, net, optimizer, 60)
    first = course.index(0)  # once all have been reached: the highest, the lowest and one between, in turn
    assert set(course[:first]) <= {3} and set(course[first:]) == {0, 1, 2, 3}
    assert all({3, 0} < set(course[i : i + 3]) for i in range(first, 57))
    masks = [kept(pinch, target) for target in TARGETS]
    for target in TARGETS:
        pinch.use(target)
        assert pinch.on_target() and not pinch.pinched.overshoots(target)
        assert pinch.sparsity() == pytest.approx(target, abs=0.03 if more else 5e-4)
    for more_kept, fewer_kept in zip(masks, masks[1:]):
        assert all((fewer <= more).all() for more, fewer in zip(more_kept, fewer_kept))
    assert len(pinch.new_parameters()) == (2 if more else 4) and all(p.shape == (4,) for p in pinch.new_parameters())


@pytest.mark.parametrize("more", [{}, UNIT], ids=["weight", "structured"])
def test_a_list_of_one_is_that_target_bitwise(more):
    states = []
    for target in (0.75, [0.75]):
        pinch, net, optimizer = begin(target, **more)
        train(pinch, net, optimizer, 30)
        states.append({**net.state_dict(), "method": pinch.state_dict()["_extra_state"]})
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("more", [{}, UNIT], ids=["weight", "structured"])
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(more):
    pinch, net, optimizer = begin(TARGETS, **more)
    train(pinch, net, optimizer, 25)
    saved = copy.deepcopy([net.state_dict(), pinch.state_dict(), optimizer.state_dict()])
    train(pinch, net, optimizer, 20, start=25)
    want = net.state_dict()
    pinch, net, optimizer = begin(TARGETS, **more)
    for part, state in zip((net, pinch, optimizer), saved):
        part.load_state_dict(state)
    train(pinch, net, optimizer, 20, start=25)
    assert all(torch.equal(value, want[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("more", [{}, UNIT], ids=["weight", "structured"])
def test_folding_is_of_the_target_in_use(more):
    pinch, net, optimizer = begin(TARGETS, **more)
    train(pinch, net, optimizer, 60)
    x = torch.randn(8, 16)
    for target in TARGETS:
        other = copy.deepcopy(nn.ModuleList([net, pinch]))
        own_net, own = other
        own.use(target)
        own_net.eval()
        with torch.no_grad():
            want, sparsity = own_net(x), own.sparsity()
            own.fold()
            torch.testing.assert_close(own_net(x), want, rtol=1e-5, atol=1e-6)
        left = sum(int((m.weight != 0).sum()) for m in own_net.modules() if isinstance(m, nn.Linear))
        assert left == round((1 - sparsity) * 2 * 16 * (48 + 32))


def test_units_are_frozen_once_the_target_is_met_and_the_search_is_over():
    pinch, net, optimizer = begin(0.5, **UNIT, eta=1e-2)
    train(pinch, net, optimizer, 28)
    assert pinch.landed == [True] and not pinch.on_target()  # its units may still change places
    train(pinch, net, optimizer, 2, start=28)
    assert pinch.on_target()
    before = kept(pinch, 0.5)
    with torch.no_grad():
        for gate in pinch.gates.values():
            for weight in gate.weights[0]:
                weight.copy_(torch.randn_like(weight))
    train(pinch, net, optimizer, 10, start=30)
    assert all(torch.equal(now, then) for now, then in zip(kept(pinch, 0.5), before))
    assert pinch.on_target() and pinch.penalty() == 0.0


def test_the_highest_target_does_not_fall_under_one_that_has_been_reached():
    pinch, net, optimizer = begin(TARGETS)
    lowest, step = [], 0
    while not all(pinch.landed):
        train(pinch, net, optimizer, 1, start=step)
        if any(pinch.landed) and not pinch.landed[-1]:
            with torch.no_grad():  # what a noisy gradient does
                for threshold in pinch.new_parameters():
                    threshold[-1] *= 0.3
        step += 1
        lowest.append(max((t for t, landed in zip(TARGETS, pinch.landed) if landed), default=0.0))
        assert step < 100
    for target in TARGETS:
        pinch.use(target)
        assert target <= pinch.reached() <= target + 0.01
    assert len(set(lowest)) > 2


def test_a_training_is_validated_and_folded_at_every_target(data, upstream, tmp_path, monkeypatch):
    exp = tmp_path / "exp"
    targets = (
        "--pruning",
        "method=pinch",
        "--pruning",
        "target_sparsity=[0.4,0.6,0.8]",
        "--pruning",
        "pinch.reach_by=0.3",
    )
    PruningASRTask.main(cmd=options(data, upstream, exp, "mini.yaml", *targets, "--max_epoch", "3"))
    other = [text.replace("0.6", "0.7") for text in targets]
    with pytest.raises(ValueError, match=r"pruning.target_sparsity: \[0.4, 0.6, 0.8\] -> \[0.4, 0.7, 0.8\]"):
        again = options(data, upstream, exp, "mini.yaml", *other, "--max_epoch", "3", "--resume", "true")
        PruningASRTask.main(cmd=again)
    last = json.loads((exp / "history.json").read_text())["3"]["valid"]
    own = [last[f"wer_{target}"] for target in (0.4, 0.6, 0.8)]
    assert last["wer"] == last["wer_on_target"] == pytest.approx(sum(own) / 3)
    assert last["sparsity"] == pytest.approx(0.8, abs=5e-4)
    monkeypatch.setattr(sys, "argv", ["fold", "--exp", str(exp)])
    fold.main()
    with pytest.raises(FileNotFoundError, match=r"has several targets: give .*folded/0.4, "):
        espnet_pinch.load(exp)
    zeros = []
    for target in (0.4, 0.6, 0.8):
        folder = exp / "folded" / str(target)
        found = Parameters.read(folder / "parameters.json")
        assert target <= found.sparsity <= target + 5e-4
        upstream_left = espnet_pinch.load(folder).frontend.upstream
        zeros.append({name: upstream_left.get_submodule(name).weight == 0 for name in found.layers})
    for fewer, more in zip(zeros, zeros[1:]):
        assert all((fewer[name] <= more[name]).all() for name in fewer)
    rounded = tmp_path / "rounded"
    asked = ["espnet-pinch", "fold", str(exp), "--sparsity", "0.7", "--bits"]
    monkeypatch.setattr(sys, "argv", [*asked, "2", "--out", str(rounded)])
    cli.main()
    model, found = espnet_pinch.load(rounded), Parameters.read(rounded / "parameters.json")
    assert found.sparsity == pytest.approx(0.7, abs=5e-4)
    for name in found.layers:
        name = f"frontend.upstream.{name}.weight"
        scales = model.scales[name][:, None]
        codes = (model.state_dict()[name] / torch.where(scales > 0, scales, 1)).round()
        assert len(codes.abs().unique()) <= 3  # none, and two levels
    monkeypatch.setattr(sys, "argv", [*asked, "mixed"])
    with pytest.raises(UserError, match="bits: mixed are learnt in a training"):
        cli.main()


def test_a_run_that_prunes_nothing_has_no_target_to_fold_at(data, upstream, tmp_path, monkeypatch, capsys):
    exp = tmp_path / "exp"
    dense = ("--pruning", "method=dense", "--pruning", "target_sparsity=0.65", "--max_epoch", "1")
    PruningASRTask.main(cmd=options(data, upstream, exp, "mini.yaml", *dense))
    monkeypatch.setattr(sys, "argv", ["espnet-pinch", "fold", str(exp), "--sparsity", "0.65"])
    with pytest.raises(UserError, match="is a run of dense; only the thresholds of pinch give other targets"):
        cli.main()
    monkeypatch.setattr(sys, "argv", ["espnet-pinch", "fold", str(exp), "--bits", "4"])
    cli.main()
    assert (exp / "folds" / "4_bit" / "model.pth").is_file() and "0.00 % pruned" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["espnet-pinch", "fold", str(exp / "folds" / "4_bit"), "--bits", "3"])
    with pytest.raises(UserError, match="4_bit is a folded model: give the folder of its run"):
        cli.main()
    assert not (exp / "folds" / "4_bit" / "lock").exists()
    for wrong in (["--bits", "{"], ["--bits", "8", "--others", "0"]):
        monkeypatch.setattr(sys, "argv", ["espnet-pinch", "fold", str(exp), *wrong])
        with pytest.raises(UserError, match=r"quantize.(bits|others) must be one of .*, not ('{'|0)"):
            cli.main()
    monkeypatch.setattr(sys, "argv", ["export", "--exp", str(exp / "folds" / "4_bit"), "--formats", "sparse"])
    export.main()
    made = exp / "folds" / "4_bit" / "export" / "sparse_quantized.safetensors"
    assert espnet_pinch.load(made).scales


DENSEST = ("--distill", "weight=0.5", "--distill", "teacher=densest")


def test_the_densest_target_teaches_the_others(data, upstream, tmp_path):
    several = ("--pruning", "method=pinch", "--pruning", "target_sparsity=[0.3,0.9]")
    args = PruningASRTask.get_parser().parse_args(options(data, upstream, tmp_path, "mini.yaml", *several, *DENSEST))
    model = PruningASRTask.build_model(args).train()
    for gate in model.pruning.gates.values():
        gate.threshold.data.copy_(gate.weight_orig.abs().flatten().quantile(torch.tensor([0.3, 0.9])))
    speech, lengths = torch.randn(2, 8000), torch.tensor([8000, 6000])
    text, text_lengths = torch.tensor([[5, 6], [7, -1]]), torch.tensor([2, 1])
    model.pruning.total_steps = 10
    model.pruning.landed = [True, True]
    taught = []
    for step in range(2):  # the highest, then the lowest target
        model.pruning.step = step
        _, stats, _ = model(speech, lengths, text, text_lengths)
        taught.append(model.pruning.target_in_use)
        assert ("loss_distill" in stats) == (taught[-1] == 0.9)
    assert taught == [0.9, 0.3]
    head, own = model.ctc.ctc_lo, []
    for target in (0.3, 0.9):
        model.pruning.use(target)
        with torch.no_grad():
            own.append(head(model.eval().frontend(speech, lengths)[0]))
        wanted = densest_logits(model.train().frontend, head, model.pruning, speech, lengths)
        assert (wanted is None) == (target == 0.3)
        assert model.frontend.training and model.pruning.target_in_use == target
    assert torch.equal(wanted, own[0]) and not torch.equal(wanted, own[1]) and not wanted.requires_grad


def test_the_densest_target_needs_others(data, upstream, tmp_path):
    args = PruningASRTask.get_parser().parse_args(options(data, upstream, tmp_path, "mini.yaml", *DENSEST))
    with pytest.raises(ValueError, match="distill.teacher: densest needs several targets"):
        PruningASRTask.build_model(args)


def test_units_of_any_target_lie_between_those_of_trained_ones_though_scores_changed_since():
    pinch, net, optimizer = begin(TARGETS, **UNIT)
    train(pinch, net, optimizer, 60)
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(0.5 + torch.rand(len(weight), *[1] * (weight.dim() - 1)))
    trained = {target: kept(pinch, target) for target in TARGETS}
    for target in (0.5 + 1e-9, 0.55, 0.7, 0.8):
        _, own = copy.deepcopy(nn.ModuleList([net, pinch]))
        own.aim(target)
        low, high = [t for t in TARGETS if t < target][-1], [t for t in TARGETS if t > target][0]
        masks = zip(kept(own, target), trained[high], trained[low])
        outside = sum(int((fewer & ~mask).sum() + (mask & ~more).sum()) for mask, fewer, more in masks)
        assert outside == 0
    for target, place in ((0.4, 0), (0.93, -1)):  # below the lowest, above the highest
        _, own = copy.deepcopy(nn.ModuleList([net, pinch]))
        own.aim(target)
        for mask, trained_mask in zip(kept(own, target), trained[TARGETS[place]]):
            fewer, more = (trained_mask, mask) if place == 0 else (mask, trained_mask)
            assert (fewer <= more).all()


@pytest.mark.parametrize("target, message", [(0.0, "the target must be over 0"), (1.0, "at least 0 and under 1")])
def test_a_target_that_is_none_is_refused_after_the_training_too(target, message):
    pinch, net, optimizer = begin(TARGETS)
    train(pinch, net, optimizer, 60)
    with pytest.raises(ValueError, match=message):
        pinch.aim(target)
    assert list(pinch.targets) == TARGETS


@pytest.mark.parametrize(
    "block, message",
    [
        ({"target_sparsity": []}, "target_sparsity is an empty list"),
        ({"target_sparsity": [0.65, 0.5]}, r"must rise, each over 0: \[0.5, 0.65\], not \[0.65, 0.5\]"),
        ({"target_sparsity": [0.5, 0.5]}, r"must rise, each over 0: \[0.5\], not"),
        ({"target_sparsity": [0, 0.5]}, r"must rise, each over 0: \[0.5\], not"),
        ({"target_sparsity": [0.5, 1.5]}, "each target_sparsity must be a number of at least 0 and under 1"),
        ({"target_sparsity": [0.5, "x"]}, "each target_sparsity must be a number"),
        ({"method": "ump", "target_sparsity": [0.5, 0.6]}, "target_sparsity has 2 targets, which needs method: pinch"),
        ({"target_sparsity": [0.5, 0.6], "pinch": {"landing": "paper"}}, "several targets need landing: hold"),
    ],
)
def test_lists_that_do_not_fit_get_one_line(block, message):
    with pytest.raises(ValueError, match=message) as caught:
        build_method(block)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("more", [{}, UNIT], ids=["weight", "structured"])
def test_any_target_can_be_had_after_the_training(more):
    pinch, net, optimizer = begin(TARGETS, **more)
    train(pinch, net, optimizer, 60)
    trained = {target: kept(pinch, target) for target in TARGETS}
    for target in (0.3, 0.55, 0.7, 0.8, 0.95):
        _, own = copy.deepcopy(nn.ModuleList([net, pinch]))
        own.aim(target)
        assert own.targets == (target,) and own.on_target() and not own.pinched.overshoots(target)
        thresholds = [float(gate.threshold) for gate in own.gates.values()]
        around = [t for t in TARGETS if t < target][-1:] + [t for t in TARGETS if t > target][:1]
        if len(around) == 2 and not more:  # interpolated: between the masks of its neighbours, but for a few
            for mask, fewer, more_kept in zip(kept(own, target), trained[around[1]], trained[around[0]]):
                assert float((fewer & ~mask).sum() + (mask & ~more_kept).sum()) <= 0.02 * mask.numel()
        assert all(0 < t < 1e3 for t in thresholds)
