"""transformers' models in loops of one's own and in its Trainer: what is found, cut, saved and loaded of them."""

import copy
import json
import logging

import pytest
import torch
from torch import nn
from transformers import TrainingArguments, WavLMConfig, WavLMForCTC

import espnet_pinch
from espnet_pinch.core.registry import build_method
from espnet_pinch.trainer import PruningTrainer

STEPS = 20
UNITS = {"unit": "structured", "threshold_lr": 0.05, "multiple": 4}
TINY = dict(conv_dim=(16, 16), conv_kernel=(10, 8), conv_stride=(10, 32), num_feat_extract_layers=2, hidden_size=32)
TINY.update(num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=5, layerdrop=0.0)
TINY.update(num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, apply_spec_augment=False)


def model_and_data() -> tuple[nn.Module, list[dict]]:
    torch.manual_seed(0)
    model = WavLMForCTC(WavLMConfig(**TINY))
    data = [{"input_values": torch.randn(3200), "labels": torch.randint(1, 5, (2,))} for _ in range(16)]
    return model, data


def trainer(folder, block, kind=PruningTrainer, **more):
    model, data = model_and_data()
    arguments = TrainingArguments(
        str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        save_steps=8,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **more,
    )
    return kind(pruning=build_method(block), model=model, args=arguments, train_dataset=data, eval_dataset=data[:4])


@torch.no_grad()
def outputs(model):
    return model.eval()(torch.randn(2, 3200, generator=torch.Generator().manual_seed(1))).logits


@pytest.mark.parametrize(
    "block",
    [
        pytest.param({"target_sparsity": 0.5, "pinch": UNITS}, id="weights"),
        pytest.param({"target_macs": 0.4, "pinch": {**UNITS, "conv": True}}, id="macs"),
        pytest.param({"method": "l0", "target_macs": 0.4, "l0": {"conv": True, "gate_lr": 0.2}}, id="l0"),
    ],
)
def test_a_model_cut_by_the_trainer_is_saved_and_loaded(block, tmp_path):
    """WavLM with its head: the attention has a bias with a row for every head."""
    ours = trainer(tmp_path / "run", block)
    ours.train()
    before = outputs(ours.model)
    widths = ours.pruning.fold()
    assert any(name.endswith("attention") for name in widths)
    torch.testing.assert_close(outputs(ours.model), before, rtol=1e-5, atol=1e-5)
    ours.model.save_pretrained(tmp_path / "saved")
    recorded = json.loads((tmp_path / "saved" / "config.json").read_text())["espnet_pinch_widths"]
    assert recorded == {name.removeprefix("wavlm."): width for name, width in widths.items()}
    tokens = ["<pad>", "<unk>", "|", "A", "B"]
    (tmp_path / "saved" / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    loaded = espnet_pinch.load(tmp_path / "saved")
    for name, weight in ours.model.wavlm.state_dict().items():
        assert torch.equal(loaded.frontend.upstream.state_dict()[name], weight), name


def test_a_budget_of_the_upstream_is_the_same_with_a_head_and_within_another_module():
    class Around(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.inner = model

    def attached(model):
        method = build_method({"target_macs": 0.4, "pinch": {**UNITS, "conv": True}})
        method.attach(model, total_steps=STEPS)
        method.land()
        return method.reached(), list(method.group_widths().values())

    assert attached(model_and_data()[0].wavlm) == attached(model_and_data()[0]) == attached(Around(model_and_data()[0]))


def test_a_copy_of_a_model_under_pruning_is_cut_and_the_original_is_not():
    model, _ = model_and_data()
    both = nn.ModuleDict({"model": model, "method": build_method({"target_sparsity": 0.5, "pinch": UNITS})})
    both["method"].attach(model, total_steps=STEPS)
    both["method"].land()
    copied = copy.deepcopy(both)
    wanted = outputs(copied["model"])
    widths = copied["method"].fold()
    torch.testing.assert_close(outputs(copied["model"]), wanted, rtol=1e-5, atol=1e-5)
    assert widths and len(copied["model"].config.espnet_pinch_widths) == len(widths)
    assert not hasattr(model.config, "espnet_pinch_widths")
    torch.testing.assert_close(outputs(model), wanted, rtol=1e-5, atol=1e-5)


def test_the_upstream_is_the_one_that_the_layers_are_of():
    def attached(**more):
        both = nn.ModuleDict({"teacher": model_and_data()[0], "student": model_and_data()[0]})
        method = build_method({"target_macs": 0.4, "pinch": {**UNITS, "conv": True}, **more})
        method.attach(both.requires_grad_(False), total_steps=STEPS)
        return both, method

    with pytest.raises(ValueError, match="several models match, teacher.wavlm and student.wavlm: whole units are pru"):
        attached()
    both, method = attached(layers=r"^student\..*(attention\.(q|k|v|out)_proj|dense)$")
    method.land()
    wanted = outputs(both["student"])
    widths = method.fold()
    assert widths and all(name.startswith("student.") for name in widths)
    torch.testing.assert_close(outputs(both["student"]), wanted, rtol=1e-5, atol=1e-5)
    assert len(both["student"].config.espnet_pinch_widths) == len(widths)
    assert not any(p.requires_grad for p in both["teacher"].parameters())
    single = build_method({"target_sparsity": 0.5})  # single weights may be those of several
    single.attach(nn.ModuleList([model_and_data()[0], model_and_data()[0]]))


def test_a_copy_in_the_middle_of_a_run_goes_on():
    model, data = model_and_data()
    method = build_method({"target_sparsity": 0.5, "pinch": UNITS})
    method.attach(model, total_steps=4)
    batch = {key: torch.stack([row[key] for row in data[:4]]) for key in data[0]}
    for step in range(4):
        if step == 2:
            model, method = copy.deepcopy((model, method))
        if step in (0, 2):
            optimizer = torch.optim.SGD(method.parameter_groups(lr=1e-3))
        (model.train()(**batch).loss + method.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert method.step == 4 and method.on_target() and method.fold()


def test_weights_that_are_replaced_are_landed_and_folded_as_they_are():
    """As an exponential mean of the weights is."""
    model, _ = model_and_data()
    method = build_method({"target_sparsity": 0.5})
    method.attach(model, total_steps=STEPS)
    method.land()
    for parameter in model.parameters():
        parameter.data.mul_(0.5)
    method.land()
    counts = method.layer_counts().values()
    assert 0.5 <= sum(pruned for pruned, _ in counts) / sum(total for _, total in counts) < 0.501


@pytest.mark.parametrize("fused", [True, False])
def test_scores_follow_the_weights_whatever_the_optimizer(fused):
    """A fused optimizer does not raise the version of a tensor that it has changed."""
    model, data = model_and_data()
    method = build_method({"target_sparsity": 0.5, "pinch": UNITS})
    method.attach(model, total_steps=STEPS)
    optimizer = torch.optim.AdamW(method.parameter_groups(lr=1e-3), fused=fused)
    gates = list(method.gates.values())
    for _ in range(2):
        before = [gate.units()[0].scores.detach().clone() for gate in gates]
        batch = {key: torch.stack([row[key] for row in data[:4]]) for key in data[0]}
        (model.train()(**batch).loss + method.penalty()).backward()
        optimizer.step()
        for gate, old in zip(gates, before):
            [units] = gate.units()
            fresh = sum(of.gather(w.detach().square()) for of, w in zip(gate.slices[0], gate.weights[0]))
            fresh = fresh / (sum(w.numel() for w in gate.weights[0]) // len(fresh) * gate.scale)
            torch.testing.assert_close(units.scores.detach(), fresh)
            assert not torch.equal(units.scores, old)


@pytest.mark.parametrize(
    "block, best, on_target",
    [
        pytest.param({"target_sparsity": 0.5}, 1, False, id="pinch, early"),
        pytest.param({"target_sparsity": 0.5}, 2, True, id="pinch, late"),
        pytest.param({"target_sparsity": [0.01, 0.5]}, 1, False, id="of several targets, early"),
        pytest.param({"method": "l0", "target_sparsity": 0.5, "l0": {"gate_lr": 0.2}}, 1, False, id="l0, early"),
        pytest.param({"method": "nas_cp", "target_sparsity": 0.5}, 2, True, id="nas_cp, late"),
    ],
)
def test_the_best_checkpoint_brings_its_own_progress(block, best, on_target, tmp_path, caplog):
    losses = iter([3.0, 1.0, 2.0] if best == 2 else [1.0, 2.0, 3.0])

    class Chosen(PruningTrainer):
        def _determine_best_metric(self, metrics, trial):
            return super()._determine_best_metric({**metrics, "eval_loss": next(losses)}, trial)

    more = dict(load_best_model_at_end=True, eval_strategy="steps", eval_steps=8, metric_for_best_model="loss")
    ours = trainer(tmp_path, block, Chosen, **more)
    with caplog.at_level(logging.WARNING):
        ours.train()
    assert ours.pruning.step == 8 * best and ours.pruning.on_target() == on_target
    said = [r.getMessage() for r in caplog.records if "is not on the pruning's target" in r.getMessage()]
    assert len(said) == (not on_target) and all(f"checkpoint-{8 * best}, the best checkpoint" in line for line in said)
    ours.pruning.land()
    assert ours.pruning.on_target() and ours.pruning.reached() >= 0.5
    claimed, before = ours.pruning.sparsity(), outputs(ours.model)
    pruned = ours.pruning.layer_counts()
    ours.pruning.fold()
    torch.testing.assert_close(outputs(ours.model), before, rtol=1e-5, atol=1e-5)
    total = sum(weights for _, weights in pruned.values())
    linears = (ours.model.get_submodule(name) for name in pruned)
    assert sum(int(layer.weight.count_nonzero()) for layer in linears) == round(total * (1 - claimed))
