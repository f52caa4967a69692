"""L0: hard-concrete gates on whole units, their search, and what is left of it."""

import functools

import pytest
import test_targets
import torch
from test_units import groups_of, upstream

from espnet_pinch.core.group_gates import GatedLayerNorm
from espnet_pinch.core.group_gates import gate_groups as put_gates
from espnet_pinch.core.methods.l0 import HardConcreteGate
from espnet_pinch.core.registry import build_method


def test_hard_concrete_gates_open_as_often_as_they_say():
    model, family = upstream("wav2vec2")
    [[group]] = [[group] for [group] in groups_of(model, family) if group.name == "encoder.layers.1.feed_forward"]
    [gate] = put_gates(model, [[group]], functools.partial(HardConcreteGate, drop_init=0.4))
    closed, values = torch.zeros(group.units), []
    generator = torch.Generator().manual_seed(0)
    for _ in range(2000):
        gate.noise = torch.rand(group.units, generator=generator).clamp(1e-6, 1 - 1e-6)
        closed += gate.sample == 0
        values.append(gate.sample.detach())
    torch.testing.assert_close(1 - closed / 2000, gate.open().detach(), atol=0.04, rtol=0)
    assert 0 <= torch.stack(values).min() and torch.stack(values).max() <= 1
    gate.sample.sum().backward()
    inside = (gate.sample > 0) & (gate.sample < 1)
    assert inside.any() and torch.equal(gate.log_alpha.grad != 0, inside)
    gate.zero_grad()
    gate.kept().backward()  # the expected number pulls on all of them
    assert (gate.log_alpha.grad > 0).all()
    model.eval()
    with torch.no_grad():
        gate.log_alpha[::3] = -9.0
        speech = torch.randn(2, 3200)
        before = model(speech).last_hidden_state
        gate.end(gate.expected())
        torch.testing.assert_close(model(speech).last_hidden_state, before, rtol=1e-5, atol=1e-5)
    assert 0 < gate.hard().sum() < group.units


def test_l0_counts_no_rows_of_units_that_are_gone():
    torch.manual_seed(0)
    model, family = upstream("wav2vec2")
    method = build_method({"method": "l0", "target_sparsity": 0.6, "layers": family.layers, "l0": {"multiple": 4}})
    method.attach(model, total_steps=10, structure=family.structure(model))
    method.land()
    rows = ("attention.q_proj", "feed_forward.intermediate_dense")
    names = [f"encoder.layers.{i}.{name}" for i in (0, 1) for name in rows]
    before = {name: int(model.get_submodule(name).weight.count_nonzero()) for name in names}
    method.fold()
    assert before == {name: model.get_submodule(name).weight.numel() for name in names}


def searched(gate_lr, target=0.6, landing="hold", steps=600):
    torch.manual_seed(0)
    net = test_targets.Net()
    own = {"multiple": 1, "gate_lr": gate_lr, "landing": landing}
    method = build_method({"method": "l0", "layers": "dense$", "target_sparsity": target, "l0": own})
    method.attach(net, total_steps=steps)
    optimizer = torch.optim.AdamW(method.parameter_groups(lr=2e-3))
    for step in range(steps // 2):
        test_targets.one_step(net, optimizer, step, method)
    return method, float(test_targets.loss_of(net, steps // 2 - 1))


def test_l0_searches_its_target_and_says_where_it_has_not():
    method, loss = searched(0.5)
    assert method.chosen and abs(method.found - 0.6) < 0.05 and not method.collapsed() and method.reached() >= 0.6
    slow, one_shot = searched(2e-4)
    assert "the search has ended at 0.2 % of its 60 %" in slow.collapsed()["l0"]
    assert slow.reached() >= 0.6 and loss < one_shot / 2  # what is searched is better than what is cut at once


def test_l0_that_ends_where_it_ends_is_on_target_at_its_end_alone():
    method, _ = searched(0.5, landing="free")
    assert method.reached() > 0.5 and not method.on_target()
    method.step = method.total_steps
    assert method.on_target() and method.fell_short() == (method.reached() < 0.6)


def test_l0_that_ends_where_it_ends_is_folded_to_what_it_computes():
    method, _ = searched(0.5, landing="free")
    net = method._model[0].eval()
    x = torch.randn(4, 16)
    with torch.no_grad():
        before = net(x)
        widths = method.fold()
        torch.testing.assert_close(net(x), before, rtol=1e-5, atol=1e-6)
    assert widths


def test_the_multipliers_are_cleared_by_a_loop_that_clears_the_model_alone():
    found = []
    for clears_all in (True, False):
        torch.manual_seed(0)
        net = test_targets.Net()
        method = build_method({"method": "l0", "layers": "dense$", "target_sparsity": 0.6, "l0": {"gate_lr": 0.5}})
        method.attach(net, total_steps=60)
        optimizer = torch.optim.AdamW(method.parameter_groups(lr=2e-3))
        for step in range(20):
            (optimizer if clears_all else net).zero_grad()
            (test_targets.loss_of(net, step) + method.penalty()).backward()
            optimizer.step()
        found.append(method.multipliers.detach())
    assert torch.equal(*found) and found[0].count_nonzero() == 2


def test_a_mean_of_checkpoints_of_which_some_still_search_is_refused():
    method, _ = searched(0.5, steps=20)
    with pytest.raises(ValueError, match="before and after the end of the search.*keep_nbest_models: 1"):
        method.set_extra_state(torch.tensor([10.0, 2 / 3]))


def test_gates_that_are_all_closed_are_refused():
    with pytest.raises(ValueError, match="l0.drop_init must be under 1"):
        build_method({"method": "l0", "l0": {"drop_init": 1.0}})


def test_a_sample_that_closes_all_filters_is_finite():
    model, family = upstream("hubert")
    block = {"method": "l0", "target_sparsity": 0.3, "layers": family.layers, "l0": {"conv": True}}
    method = build_method(block)
    method.attach(model, total_steps=100, structure=family.structure(model))
    with torch.no_grad():
        for gate in method.gated.gates.values():
            gate.log_alpha.fill_(-9.0)
    assert sum(isinstance(module, GatedLayerNorm) for module in model.modules()) > 1
    for mode in (True, False):
        assert model.train(mode)(torch.randn(2, 3200)).last_hidden_state.isfinite().all()
