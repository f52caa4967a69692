"""The training interface: any order of terms, nothing to forget in silence; transformers' Trainer as the plain loop."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import TrainingArguments

from espnet_pinch import Pinch
from espnet_pinch.core.registry import all_methods, build_method, register
from espnet_pinch.core.settings import MethodSettings
from espnet_pinch.trainer import PruningMixin, PruningTrainer

BLOCKS = {
    "pinch": {"target_sparsity": 0.6, "pinch": {"eta": 1e-3, "threshold_init": 0.02}},
    "nas_cp": {"method": "nas_cp", "target_sparsity": 0.6, "nas_cp": {"eta": 1e-3, "architecture_lr": 0.05}},
    "ump": {"method": "ump", "target_sparsity": 0.6},
    "dense": {"method": "dense"},
}
STEPS = 12


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleDict({"intermediate_dense": nn.Linear(12, 32), "output_dense": nn.Linear(32, 12)})

    def forward(self, x):  # (B, 12) -> (B, 12)
        return self.layers["output_dense"](self.layers["intermediate_dense"](x).relu())


def attached(name, total_steps=STEPS):
    net = Net()
    method = build_method({"layers": "dense$", **BLOCKS[name]})
    method.attach(net, total_steps)
    return net, method


def run(name, loss_of, accum=1):
    """Weights after a run; ``loss_of(net, method, x)`` makes a loss and its backward pass."""
    net, method = attached(name)
    optimizer = torch.optim.SGD(method.parameter_groups(lr=0.02), lr=0.02)
    for batch in torch.randn(STEPS, 4 * accum, 12, generator=torch.Generator().manual_seed(1)):
        for piece in batch.chunk(accum):
            loss_of(net, method, piece, accum)
        optimizer.step()
        optimizer.zero_grad()
    assert method.step == STEPS
    return {key: value.detach().clone() for key, value in net.state_dict().items()}


def task(net, x):
    return (net(x) - x.flip(1)).square().mean()


def before(net, method, x, accum):
    ((method.penalty() + task(net, x)) / accum).backward()


def behind(net, method, x, accum):
    ((task(net, x) + method.penalty()) / accum).backward()


def apart(net, method, x, accum):
    (task(net, x) / accum).backward()
    (method.penalty() / accum).backward() if method.needs_penalty else method.penalty()


def twice(net, method, x, accum):
    method.penalty()
    net(x), net(x)
    with torch.no_grad():
        net(x), method.penalty()
    net.eval()(x)
    net.train()
    behind(net, method, x, accum)


@pytest.mark.parametrize("accum", [1, 2])
@pytest.mark.parametrize("name", BLOCKS)
def test_the_order_of_the_terms_changes_nothing(name, accum):
    wanted = run(name, before, accum)
    for way in (behind, apart, twice):
        got = run(name, way, accum)
        for key in wanted:
            torch.testing.assert_close(got[key], wanted[key], rtol=1e-5, atol=1e-6, msg=lambda m, k=key: f"{k}: {m}")


def test_a_penalty_is_pure():
    net, method = attached("pinch")
    values = {float(method.penalty()) for _ in range(3)}
    state = copy.deepcopy(method.state_dict()["_extra_state"])
    assert len(values) == 1 and torch.equal(method.state_dict()["_extra_state"], state) and method.step == 0


@pytest.mark.parametrize("name", ["pinch", "nas_cp"])
def test_what_was_forgotten_is_an_error(name):
    net, method = attached(name, total_steps=None)
    with pytest.raises(RuntimeError, match=r"needs the length of the run: call attach\(model, total_steps\)"):
        net(torch.randn(2, 12))
    net, method = attached(name)
    optimizer = torch.optim.AdamW(method.parameter_groups(lr=0.02))
    task(net, torch.randn(2, 12)).backward()
    with pytest.raises(RuntimeError, match=r"without the penalty of \w+: add penalty\(\) to the loss"):
        optimizer.step()
    net, method = attached(name)
    optimizer = torch.optim.AdamW(method.parameter_groups(lr=0.02))
    with pytest.raises(RuntimeError, match="without a forward pass in training mode"):
        optimizer.step()
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters())  # before the gates are there
    method = build_method({"layers": "dense$", **BLOCKS[name]})
    method.attach(net, STEPS)
    with pytest.raises(RuntimeError, match="does not train the new parameters .* make it after attach"):
        for _ in range(3):
            before(net, method, torch.randn(2, 12), 1)
            optimizer.step()


def test_thresholds_may_have_an_optimizer_of_their_own():
    net, method = attached("pinch")
    new = method.new_parameters()
    own = {id(p) for p in new}
    optimizers = [torch.optim.AdamW([p for p in net.parameters() if id(p) not in own]), torch.optim.SGD(new, lr=0.01)]
    for _ in range(4):
        before(net, method, torch.randn(2, 12), 1)
        for optimizer in optimizers:
            optimizer.step()
    assert method.step == 4


def test_other_models_and_their_optimizers_do_not_count():
    net, method = attached("pinch")
    other, second = attached("pinch")
    strange = torch.nn.Linear(3, 3)
    optimizers = [torch.optim.AdamW(m.parameter_groups(lr=0.02)) for m in (method, second)]
    for _ in range(3):
        before(net, method, torch.randn(2, 12), 1)
        optimizers[0].step()
        strange(torch.randn(1, 3)).sum().backward()
        torch.optim.SGD(strange.parameters(), lr=0.1).step()
    assert (method.step, second.step) == (3, 0)
    before(other, second, torch.randn(2, 12), 1)
    optimizers[1].step()
    method.fold()
    assert second.step == 1 and all(type(m) is nn.Linear for m in net.layers.values())
    net.train()(torch.randn(2, 12))  # no hook is left


def test_a_new_method_is_one_class():
    @register("half", title="Half", label="half", colour="tab:pink", marker="x")
    class Half(type(build_method(BLOCKS["ump"]))):
        """Prunes half of every layer, whatever is asked for."""

        def wanted(self, names):
            return dict.fromkeys(names, 0.5)

    try:
        assert list(all_methods())[:3] == ["dense", "pinch", "half"]
        method = build_method({"method": "half", "target_sparsity": 0.5, "layers": "dense$"})
        method.attach(Net())
        assert method.sparsity() == 0.5 and method.on_target() and isinstance(method.settings, MethodSettings)
        with pytest.raises(ValueError, match="unknown setting 'eta' in the pruning block's half"):
            build_method({"method": "half", "half": {"eta": 1}})
    finally:
        from espnet_pinch.core import registry

        del registry._found["half"]


# ---- transformers' Trainer


class Batches(Dataset):
    def __init__(self, count):
        self.x = torch.randn(count, 12, generator=torch.Generator().manual_seed(1))

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"x": self.x[i]}


class WithLoss(Net):
    """As a model of transformers: keyword arguments in, a dictionary with the loss out."""

    def forward(self, x):
        y = super().forward(x)
        return {"loss": (y - x.flip(1)).square().mean(), "y": y}


class InOrder:
    def _get_train_sampler(self, *_):
        return SequentialSampler(self.train_dataset)


class OrderedTrainer(InOrder, PruningTrainer):
    """Batches in the order of the data, for a plain loop to follow."""


def trainer(folder, accum, model=None, method=None, **more):
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=accum,
        max_steps=STEPS,
        learning_rate=0.02,
        weight_decay=0.1,
        max_grad_norm=1.0,
        lr_scheduler_type="linear",
        save_steps=5,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=3,
        **more,
    )
    model = model or WithLoss()
    method = method or Pinch(target_sparsity=0.6, layers="dense$", eta=1e-3, threshold_init=0.02, threshold_lr=0.05)
    return OrderedTrainer(
        pruning=method, model=model, args=arguments, train_dataset=Batches(4 * accum * STEPS), eval_dataset=Batches(8)
    )


def plain_loop(accum):
    model = WithLoss()
    method = Pinch(target_sparsity=0.6, layers="dense$", eta=1e-3, threshold_init=0.02, threshold_lr=0.05)
    method.attach(model, STEPS)
    optimizer = torch.optim.AdamW(method.parameter_groups(lr=0.02, weight_decay=0.1), lr=0.02)
    optimizer.param_groups[0]["params"] = [p for n, p in model.named_parameters() if n.endswith("weight_orig")]
    optimizer.add_param_group({"params": [m.bias for m in model.layers.values()], "weight_decay": 0.0})
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
    for batch in Batches(4 * accum * STEPS).x.view(STEPS, accum, 4, 12):
        for piece in batch:
            ((model(x=piece)["loss"] + method.penalty()) / accum).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model, method


@pytest.mark.parametrize("accum", [1, 3])
def test_transformers_trainer_does_what_the_plain_loop_does(accum, tmp_path):
    model, method = plain_loop(accum)
    ours = trainer(tmp_path, accum)
    ours.train()
    assert ours.pruning.step == STEPS and ours.pruning.landed
    for name, value in model.state_dict().items():
        torch.testing.assert_close(ours.model.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    assert ours.pruning.sparsity() == method.sparsity() and method.on_target()
    loss = ours.compute_loss(ours.model.eval(), {"x": Batches(8).x})  # without the penalty
    torch.testing.assert_close(loss, model.eval()(Batches(8).x)["loss"], rtol=1e-4, atol=0)
    ours.pruning.fold()
    assert {type(m) for m in ours.model.layers.values()} == {nn.Linear}


@pytest.mark.parametrize("accum", [1, 3])
def test_transformers_trainer_resumes_where_it_was(accum, tmp_path):
    whole = trainer(tmp_path / "a", accum)
    whole.train()
    resumed = trainer(tmp_path / "a", accum)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-5"))
    assert resumed.pruning.step == STEPS
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
    again = trainer(tmp_path / "a", accum)
    again.train(resume_from_checkpoint=True)
    (tmp_path / "a" / "checkpoint-5" / "pruning.pth").unlink()
    with pytest.raises(FileNotFoundError, match="pruning.pth is missing: the checkpoint was made without a pruning"):
        trainer(tmp_path / "a", accum).train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-5"))


@pytest.mark.parametrize("block", ["pinch", "nas_cp", "ump"])
def test_steps_that_the_optimizer_leaves_out_count(block):
    """Also the last one, and whatever the method does at the end of a run."""
    net, method = attached(block)
    optimizer = torch.optim.SGD(method.parameter_groups(lr=0.02), lr=0.02)
    for step in range(STEPS):
        (task(net, torch.randn(4, 12)) + method.penalty()).backward()
        if step in (3, STEPS - 1):
            before = {name: p.clone() for name, p in net.named_parameters() if "threshold" not in name}
            method.skip_step()
            assert all(torch.equal(p, before[name]) for name, p in net.named_parameters() if name in before)
        else:
            optimizer.step()
        optimizer.zero_grad()
    assert method.progress == 1 and method.on_target()


def test_transformers_trainer_counts_steps_that_are_left_out(tmp_path):
    ours = trainer(tmp_path, 1)
    step, calls = ours.create_optimizer().step, []

    def scaled(*args, **kwargs):  # as behind a GradScaler that has found an infinity
        calls.append(0)
        if len(calls) != 4:
            step(*args, **kwargs)

    ours.optimizer.step = scaled
    ours.train()
    assert len(calls) == STEPS == ours.pruning.step and ours.pruning.on_target()


def test_a_trainer_of_ones_own_takes_the_mixin(tmp_path):
    from transformers import Trainer

    class Doubled(InOrder, Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
            return (2 * loss, outputs) if return_outputs else 2 * loss

    class Own(PruningMixin, Doubled):
        pass

    arguments = TrainingArguments(str(tmp_path), max_steps=4, report_to=[], use_cpu=True, disable_tqdm=True)
    method = Pinch(target_sparsity=0.6, layers="dense$")
    own = Own(pruning=method, model=WithLoss(), args=arguments, train_dataset=Batches(32))
    own.train()
    assert method.step == 4 and method.total_steps == 4
