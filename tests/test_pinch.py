"""Pinch on whole models: what it gates, its schedule, the landing, resuming."""

import math

import pytest
import torch
from torch import nn
from transformers import (
    Data2VecAudioConfig,
    Data2VecAudioModel,
    HubertConfig,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
)

from espnet_pinch import Pinch
from espnet_pinch.core import budget
from espnet_pinch.core.gate import GatedLinear
from espnet_pinch.core.registry import build_method

UPSTREAMS = [
    (Wav2Vec2Config, Wav2Vec2Model),
    (HubertConfig, HubertModel),
    (WavLMConfig, WavLMModel),
    (Data2VecAudioConfig, Data2VecAudioModel),
]


def small_model(width=40):
    return nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))


def train(model, pinch, steps, lr=0.01, total=None, threshold_lr=None):
    pinch.total_steps = total or steps
    optimizer = torch.optim.AdamW(pinch.parameter_groups(lr, new_lr=threshold_lr), lr=lr)
    course = []
    for _ in range(steps):
        x = torch.randn(16, model[0].in_features if hasattr(model[0], "in_features") else 40)
        loss = (model(x) - torch.tanh(x.flip(-1))).square().mean() + pinch.penalty()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        course.append(pinch.sparsity())
    return course


@pytest.mark.parametrize("config_class, model_class", UPSTREAMS)
def test_the_six_linears_of_every_block_are_gated(config_class, model_class, tiny_config):
    model = model_class(config_class(**tiny_config))
    pinch = Pinch()
    pinch.attach(model)
    assert len(pinch.gates) == len(pinch.new_parameters()) == 6 * 2
    assert not any("conv" in name or "pos" in name or "projection" in name for name in pinch.gates)


@pytest.mark.parametrize("config_class, model_class", UPSTREAMS)
def test_gates_act_in_the_model_and_folding_changes_nothing(config_class, model_class, tiny_config):
    model = model_class(config_class(**tiny_config)).eval()
    audio = torch.randn(2, 3200)
    dense = model(audio).last_hidden_state
    pinch = Pinch()
    pinch.attach(model)
    torch.testing.assert_close(model(audio).last_hidden_state, dense)  # at 1e-5 hardly anything is pruned
    budget.land(list(pinch.gates.values()), 0.6, 1e-3)
    gated = model(audio).last_hidden_state
    assert not torch.allclose(gated, dense, atol=1e-3)
    gated.sum().backward()
    assert all(gate.threshold.grad is not None for gate in pinch.gates.values())
    pinch.fold()
    assert not any(isinstance(m, GatedLinear) for m in model.modules())
    torch.testing.assert_close(model(audio).last_hidden_state, gated, rtol=0, atol=0)


def test_real_architectures_get_72_and_144_thresholds():
    with torch.device("meta"):
        for config, count in (
            (Wav2Vec2Config(), 72),
            (HubertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096), 144),
        ):
            model = (Wav2Vec2Model if count == 72 else HubertModel)(config)
            pinch = Pinch()
            pinch.attach(model)
            assert len(pinch.new_parameters()) == count


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(ValueError, match="no linear layer"):
        Pinch(layers="nothing").attach(small_model())
    with pytest.raises(ValueError, match="not a regular expression"):
        Pinch(layers="(").attach(small_model())


@pytest.mark.parametrize("target", [0.5, 0.65, 0.8, 0.85, 0.9, 0.95])
def test_every_run_lands_exactly_and_stays(target):
    model = small_model(80)
    pinch = Pinch(target_sparsity=target, layers=r"\d", eta=1e-4)
    pinch.attach(model)
    course = train(model, pinch, 200)
    first = next(i for i, s in enumerate(course) if s >= target)
    assert first <= 0.5 * 200
    assert all(target <= s <= target + 0.001 for s in course[first:])
    zeros = sum(int((gate.fold().weight == 0).sum()) for gate in pinch.gates.values())
    assert zeros == round(pinch.sparsity() * budget.count_weights(list(pinch.gates.values())))


def test_without_any_penalty_the_target_is_reached_along_a_line():
    model = small_model(80)
    pinch = Pinch(target_sparsity=0.8, layers=r"\d", eta=0.0, reach_by=0.5)
    pinch.attach(model)
    course = train(model, pinch, 100, threshold_lr=0.0)
    assert course[20] < 0.05
    assert max(b - a for a, b in zip(course, course[1:])) < 0.1  # no jump
    assert 0.8 <= course[50] <= 0.801


def test_paper_landing_only_switches_eta():
    model = small_model(80)
    pinch = Pinch(target_sparsity=0.5, layers=r"\d", eta=1e-3, landing="paper")
    pinch.attach(model, total_steps=10)
    thresholds = [gate.threshold for gate in pinch.gates.values()]
    assert pinch.eta == 1e-3
    budget.land(list(pinch.gates.values()), 0.7, 1e-3)
    before = [float(t) for t in thresholds]
    pinch.after_step()
    assert [float(t) for t in thresholds] == before  # over the target, and left there
    assert pinch.eta == 0 and pinch.penalty() == 0


def test_landing_keeps_the_ratios_of_the_thresholds():
    model = small_model()
    pinch = Pinch(layers=r"\d")
    pinch.attach(model)
    gates = list(pinch.gates.values())
    with torch.no_grad():
        gates[0].threshold.fill_(0.02)
        gates[1].threshold.fill_(-0.05)
    for target in (0.3, 0.9, 0.5, 0.999):
        budget.land(gates, target, 1e-3)
        assert target <= budget.sparsity(gates) <= target + 1e-3
        assert float(gates[1].threshold / gates[0].threshold) == pytest.approx(-2.5, rel=1e-5)


def test_after_the_landing_thresholds_stay_as_they_stand_to_each_other():
    model = small_model(60)
    pinch = Pinch(target_sparsity=0.7, layers=r"\d", eta=1e-2, reach_by=0.3)
    pinch.attach(model)
    course = train(model, pinch, 31, total=200, threshold_lr=0.01)
    first, second = [float(gate.threshold) for gate in pinch.gates.values()]
    course = train(model, pinch, 100, total=200, threshold_lr=0.01)
    now = [float(gate.threshold) for gate in pinch.gates.values()]
    assert pinch.landed and now[1] / now[0] == pytest.approx(second / first, rel=1e-4)
    assert now[0] != first and all(0.7 <= s <= 0.7006 for s in course)  # the weights move, the factor follows


def test_landing_takes_the_next_sparsity_when_weights_are_equal():
    linear = nn.Linear(10, 10)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([0.1, 0.2]).repeat(50).view(10, 10))
    gate = GatedLinear(linear, threshold=1e-5)
    budget.land([gate], 0.3, 1e-3)
    assert budget.sparsity([gate]) == 0.5


def test_the_mean_of_two_checkpoints_is_put_back_on_the_target():
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = small_model(80)
        pinch = Pinch(target_sparsity=0.8, layers=r"\d", eta=1e-4)
        pinch.attach(model)
        train(model, pinch, 60)
        states.append(model.state_dict())
    model.load_state_dict({k: (states[0][k] + states[1][k]) / 2 for k in states[0]})
    pinch.set_extra_state(pinch.get_extra_state())
    assert not 0.8 <= pinch.sparsity() <= 0.801
    pinch.land()
    assert 0.8 <= pinch.sparsity() <= 0.801
    paper = Pinch(target_sparsity=0.8, layers=r"\d", landing="paper")
    paper.attach(small_model())
    paper.land()
    assert paper.sparsity() < 0.1


def test_landing_with_dead_thresholds_says_so():
    gate = GatedLinear(nn.Linear(4, 4), threshold=0.0)
    with pytest.raises(ValueError, match="no scale of the thresholds"):
        budget.land([gate], 0.5, 1e-3)


def test_schedule_is_counted_in_optimizer_steps():
    model = small_model()
    pinch = Pinch(layers=r"\d", tau_start=0.5, tau_end=0.01)
    pinch.attach(model)
    pinch.total_steps = 10
    assert pinch.tau == pytest.approx(0.5)
    for _ in range(3):  # accumulation: forward passes alone do not count
        pinch.penalty()
    assert pinch.step == 0
    for _ in range(5):
        pinch.after_step()
    assert pinch.tau == pytest.approx(0.01 + 0.49 * (1 + math.cos(math.pi / 2)) / 2)
    pinch.penalty()
    assert all(gate.tau == pinch.tau for gate in pinch.gates.values())
    for _ in range(20):
        pinch.after_step()
    assert pinch.tau == pytest.approx(0.01)


def test_eta_follows_the_target():
    assert Pinch(target_sparsity=0.6).settings.eta_for_target == 2e-5
    assert Pinch(target_sparsity=0.65).settings.eta_for_target == 3e-5
    assert Pinch(target_sparsity=0.9, eta=7e-6).settings.eta_for_target == 7e-6


def test_resume_continues_thresholds_schedule_and_switch():
    torch.manual_seed(1)
    model = small_model(60)
    pinch = Pinch(target_sparsity=0.7, layers=r"\d", eta=1e-4)
    pinch.attach(model)
    model.add_module("pinch", pinch)
    layers = nn.Sequential(*list(model.children())[:3])
    train(layers, pinch, 60, total=100)
    saved = {k: v.clone() for k, v in model.state_dict().items()}
    assert all(v.is_floating_point() for v in saved.values())

    other_model = small_model(60)
    other = Pinch(target_sparsity=0.7, layers=r"\d", eta=1e-4)
    other.attach(other_model)
    other_model.add_module("pinch", other)
    other_model.load_state_dict(saved)
    other.total_steps = 100
    for name in ("step", "landed", "tau", "eta"):
        assert getattr(other, name) == getattr(pinch, name)
    assert other.sparsity() == pinch.sparsity()


def test_thresholds_have_a_group_without_weight_decay():
    model = small_model()
    pinch = Pinch(layers=r"\d")
    pinch.attach(model)
    weights, thresholds = pinch.parameter_groups(1e-3, new_lr=5e-3, weight_decay=0.1)
    assert len(thresholds["params"]) == 2 and thresholds["weight_decay"] == 0 and thresholds["lr"] == 5e-3
    assert len(weights["params"]) == 4 and weights["weight_decay"] == 0.1
    rates = {"weight": 1e-3, "structured": 2e-2}  # the scores of units are larger than weights
    for unit, rate in rates.items():
        assert Pinch(unit=unit).new_lr(1e-3) == rate and Pinch(unit=unit, threshold_lr=5e-3).new_lr(1e-3) == 5e-3


@pytest.mark.parametrize(
    "block, message",
    [
        ({"target_sparsity": 1.2}, "target_sparsity must be .* not 1.2"),
        ({"target_sparsity": 65.0}, "target_sparsity must be .* not 65.0"),
        ({"target_sparsity": -0.1}, "target_sparsity"),
        ({"target_sparsity": "65"}, "not '65'"),
        ({"target_sparsity": float("nan")}, "target_sparsity"),
        ({"target_sparsity": True}, "target_sparsity"),
        ({"method": "magic"}, "unknown pruning method 'magic'"),
        ({"targt": 0.5}, "unknown setting 'targt'"),
        ({"eta": 2e-5}, "unknown setting 'eta' in the pruning block"),
        ({"pinch": {"targt": 0.5}}, "unknown setting 'targt' in the pruning block's pinch"),
        ({"nas_cp": {"targt": 0.5}}, "unknown setting 'targt' in the pruning block's nas_cp"),
        ({"pinch": 3}, "must be a mapping"),
        ({"pinch": {"eta": "2e-5"}}, "write 2.0e-5"),
        ({"pinch": {"eta": {0.7: 1e-5}}, "target_sparsity": 0.5}, "eta has no entry"),
        ({"pinch": {"tau_end": 0}}, "tau_end must be finite and over 0"),
        ({"pinch": {"landing": "soft"}}, "landing"),
        ({"pinch": {"reach_by": 1.5}}, "reach_by"),
        ({"method": "nas_cp", "target_sparsity": 0.95}, "nas_cp cannot reach .* at most 92.5 %"),
        ({"method": "mixed_sparsity"}, "takes its layers' sparsities from a finished pinch run"),
    ],
)
def test_settings_out_of_range_are_named(block, message):
    with pytest.raises(ValueError, match=message):
        build_method(block)


def test_dense_does_nothing():
    model = small_model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    dense = build_method({"method": "dense"})
    dense.attach(model)
    assert dense.penalty() == 0 and dense.new_parameters() == [] and dense.on_target()
    assert model.state_dict().keys() == before.keys()
