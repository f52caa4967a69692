"""A training is not lost: kills within an epoch, damaged files, other settings, divergence."""

import os
import subprocess
import sys

import pytest
import test_espnet
import torch
from espnet2.train.reporter import Reporter
from test_espnet import options

from espnet_pinch.asr import history, resume, settings_record
from espnet_pinch.asr.model import PruningASRModel
from espnet_pinch.asr.safe_load import load
from espnet_pinch.asr.task import PruningASRTask
from espnet_pinch.asr.trainer import PruningTrainer
from espnet_pinch.bin import fold
from espnet_pinch.explain import explain
from espnet_pinch.files import whole_file

data, upstream = test_espnet.data, test_espnet.upstream
RESUME = ("--resume", "true", "--max_epoch", "2")


def train(data, upstream, out, *more):
    PruningASRTask.main(cmd=options(data, upstream, out, "mini.yaml", *RESUME, *more))


def same_model(*files):
    first, *others = (torch.load(file, weights_only=True) for file in files)
    for other in others:
        assert first.keys() == other.keys()
        for name in first:
            torch.testing.assert_close(first[name], other[name], rtol=0, atol=0, msg=name)


def course(folder):
    """History without what the clock and the machine put into it."""
    timed = ("time", "seconds", "memory", "device", "_mem_")
    return {
        (epoch, phase, key): value
        for epoch, phases in history.read(folder).items()
        for phase, figures in phases.items()
        for key, value in figures.items()
        if not any(word in key for word in timed)
    }


class Killed(BaseException):
    pass


def test_a_run_cut_within_an_epoch_ends_like_one_that_was_not(data, upstream, tmp_path, monkeypatch):
    more = ("--accum_grad", "2", "--pruning", "target_sparsity=0.7")
    train(data, upstream, tmp_path / "whole", *more)
    save, places, deaths = PruningTrainer._save.__func__, [], [(1, 2), (1, 4), (2, 4)]

    def save_and_die(cls, model, optimizers, schedulers, scaler, reporter, batches):
        save(cls, model, optimizers, schedulers, scaler, reporter, batches)
        places.append((reporter.get_epoch(), batches))
        if places[-1] in deaths:
            deaths.remove(places[-1])
            raise Killed

    monkeypatch.setattr(PruningTrainer, "_save", classmethod(save_and_die))
    for _ in range(3):
        with pytest.raises(Killed):
            train(data, upstream, tmp_path / "cut", *more, "--save_every_steps", "1")
    # the newest within an epoch is damaged as well: one step more is done again
    zero(tmp_path / "cut" / "checkpoint.pth")
    train(data, upstream, tmp_path / "cut", *more, "--save_every_steps", "1")
    assert places[:2] == [(1, 2), (1, 4)] and places.count((2, 4)) == 2 and len(set(places)) == len(places) - 1
    same_model(tmp_path / "whole" / "2epoch.pth", tmp_path / "cut" / "2epoch.pth")
    same_model(*(tmp_path / name / "valid.wer_on_target.ave.pth" for name in ("whole", "cut")))
    assert course(tmp_path / "whole") == course(tmp_path / "cut")
    assert {key for _, _, key in course(tmp_path / "cut")} >= {"loss_ctc", "wer", "points"}


def test_a_run_that_stopped_early_is_not_trained_on(data, upstream, tmp_path):
    early = ("--max_epoch", "4", "--patience", "0", "--early_stopping_criterion", "valid", "loss", "max")
    for _ in range(2):
        train(data, upstream, tmp_path / "exp", *early)
        assert list(history.read(tmp_path / "exp")) == ["1", "2"]
        assert not (tmp_path / "exp" / "3epoch.pth").exists()


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def zero(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 200] = bytes(200)
    path.write_bytes(content)


def checkpoints(folder, newest=2):
    """Two checkpoints, each with the model's file, as ESPnet leaves them."""
    folder.mkdir()
    reporter = Reporter()
    with resume.whole_saves():
        for epoch in range(1, newest + 1):
            wers = {"wer_on_target": 1 / epoch}
            reporter.stats[epoch] = {"valid": wers}
            reporter.set_epoch(epoch)
            model = {"weight": torch.full((1000,), float(epoch))}
            states = {"model": model, "reporter": {"epoch": epoch, "stats": dict(reporter.stats)}}
            torch.save(states, folder / resume.NEWEST)
            torch.save(model, folder / f"{epoch}epoch.pth")
    return folder, reporter


@pytest.mark.parametrize("harm", [truncate, empty, zero, os.remove])
def test_the_checkpoint_before_takes_the_place_of_a_damaged_one(harm, tmp_path, capsys):
    folder, _ = checkpoints(tmp_path / "exp")
    (folder / ".2epoch.pth.abc.pth").write_text("left by a kill")
    harm(folder / resume.NEWEST)
    resume.recover(folder)
    assert load(folder / resume.NEWEST)["reporter"]["epoch"] == 1
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("warning: ") and "checkpoint.pth: it is " in line or "checksum" in line
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("harm", [truncate, empty, zero])
def test_nothing_starts_from_scratch_where_both_are_damaged(harm, tmp_path):
    folder, _ = checkpoints(tmp_path / "exp")
    for name in (resume.NEWEST, resume.PREVIOUS):
        harm(folder / name)
    with pytest.raises(ValueError, match="no checkpoint to resume from: .*put a copy of one of them back"):
        resume.recover(folder)
    for name in (resume.NEWEST, resume.PREVIOUS):
        (folder / name).unlink()
    with pytest.raises(ValueError, match="no checkpoint.pth to resume from"):
        resume.recover(folder)


def test_a_kill_between_any_two_renames_leaves_a_whole_checkpoint(tmp_path, monkeypatch):
    replace = os.replace
    for count in range(1, 3):
        folder, _ = checkpoints(tmp_path / str(count))
        calls = []

        def replace_or_die(source, target, calls=calls, count=count):
            calls.append(target)
            if len(calls) == count:
                raise Killed
            replace(source, target)

        monkeypatch.setattr(os, "replace", replace_or_die)
        with resume.whole_saves(), pytest.raises(Killed):
            torch.save({"reporter": {"epoch": 3}}, folder / resume.NEWEST)
        monkeypatch.undo()
        resume.recover(folder)
        assert load(folder / resume.NEWEST)["reporter"]["epoch"] == 2
        assert len(calls) == count


def test_a_failed_save_leaves_what_was_there(tmp_path):
    folder, _ = checkpoints(tmp_path / "exp")
    with resume.whole_saves(), pytest.raises(Exception, match="pickle"):
        torch.save({"model": lambda: 0}, folder / resume.NEWEST)
    assert load(folder / resume.NEWEST)["reporter"]["epoch"] == 2
    assert load(folder / resume.PREVIOUS)["reporter"]["epoch"] == 1
    assert not list(folder.glob(".*"))


CRITERIA = [["valid", "wer_on_target", "min"]]


def test_an_epochs_damaged_file_is_written_again_from_a_checkpoint_of_that_epoch(tmp_path):
    folder, reporter = checkpoints(tmp_path / "exp", newest=3)
    for epoch in (2, 3):
        zero(folder / f"{epoch}epoch.pth")
    resume.mend(folder, reporter, CRITERIA, keep=3)
    for epoch in (1, 2, 3):
        assert load(folder / f"{epoch}epoch.pth")["weight"][0] == epoch
    assert os.readlink(folder / "latest.pth") == os.readlink(folder / "valid.wer_on_target.best.pth") == "3epoch.pth"


def test_a_best_epochs_file_that_is_lost_is_an_error_until_it_is_removed(tmp_path, capsys):
    folder, reporter = checkpoints(tmp_path / "exp", newest=3)
    truncate(folder / "1epoch.pth")
    resume.mend(folder, reporter, CRITERIA, keep=2)  # not one of the best two: nobody needs it
    with pytest.raises(ValueError, match="1epoch.pth: it is cut short.*; it is one of the best epochs. Put a copy"):
        resume.mend(folder, reporter, CRITERIA, keep=3)
    (folder / "1epoch.pth").unlink()
    resume.average_again(folder, CRITERIA, keep=[2, 3])
    assert "epoch 1 can no longer be one of the best" in capsys.readouterr().out
    assert load(folder / "valid.wer_on_target.ave.pth")["weight"][0] == 2.5


@pytest.mark.parametrize(
    "rates, mean, said",
    [((100.1, 0.3, 0.2), 2.5, True), ((0.1, 0.3, 0.2), 2.0, False), ((100.2, 100.3, 100.1), 2.0, False)],
)
def test_epochs_below_the_target_are_left_out_of_the_mean(rates, mean, said, tmp_path, capsys):
    folder, reporter = checkpoints(tmp_path / "exp", newest=3)
    for epoch, rate in enumerate(rates, 1):
        reporter.stats[epoch]["valid"]["wer_on_target"] = rate
    resume.average_best(folder, reporter, CRITERIA, 3)
    assert load(folder / "valid.wer_on_target.ave.pth")["weight"][0] == mean
    assert ("averaged: 2 of the 3 best epochs" in capsys.readouterr().out) == said


def test_a_damaged_history_is_made_again_from_the_reporter(data, upstream, tmp_path, monkeypatch, capsys):
    train(data, upstream, tmp_path / "exp")
    before = history.read(tmp_path / "exp")
    truncate(tmp_path / "exp" / "history.json")
    with pytest.raises(ValueError, match="history.json is damaged; remove it and train.done"):
        history.read(tmp_path / "exp")
    train(data, upstream, tmp_path / "exp")
    assert "history.json was damaged" in capsys.readouterr().out
    after = history.read(tmp_path / "exp")
    assert after.keys() == before.keys()
    assert after["2"]["valid"]["wer"] == before["2"]["valid"]["wer"]
    assert after["2"]["train"]["points"][-1]["iteration"] == before["2"]["train"]["points"][-1]["iteration"]
    # so is a damaged mean of the best epochs, when it is folded
    average = tmp_path / "exp" / "valid.wer_on_target.ave.pth"
    whole = load(average)
    truncate(average)
    monkeypatch.setattr("sys.argv", ["fold", "--exp", str(tmp_path / "exp")])
    fold.main()
    assert "ave.pth is missing or damaged: written again" in capsys.readouterr().out
    assert all(torch.equal(whole[name], value) for name, value in load(average).items())
    # what else there is to notice in this folder
    with pytest.raises(ValueError, match="holds a training: --resume true continues it"):
        train(data, upstream, tmp_path / "exp", "--resume", "false")
    with pytest.raises(ValueError, match=r"max_epoch: 2 -> 3 \(its schedule depends.*at the beginning\); give"):
        train(data, upstream, tmp_path / "exp", "--max_epoch", "3")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "exp" / "checkpoint.pth")
    with pytest.raises(ValueError, match="is not a checkpoint of a training: it has no 'model'"):
        train(data, upstream, tmp_path / "exp")


def args_of(data, upstream, out, *more):
    return PruningASRTask.get_parser().parse_args(options(data, upstream, out, "mini.yaml", *more))


def test_what_has_changed_is_named(data, upstream, tmp_path):
    folder, _ = checkpoints(tmp_path / "exp")
    first = args_of(data, upstream, folder)
    settings_record.check_unchanged(first)
    neutral = ("--num_workers", "3", "--log_interval", "7", "--save_every_steps", "5")
    settings_record.check_unchanged(args_of(data, upstream, folder, *neutral))
    settings_record.check_unchanged(args_of(data, upstream, folder, "--pruning", "nas_cp.eta=1.0"))  # not its method's
    tokens = tmp_path / "tokens.txt"
    tokens.write_text((data / "tokens.txt").read_text())
    settings_record.check_unchanged(args_of(data, upstream, folder, "--token_list", str(tokens)))  # same content
    tokens.write_text("<blank>\nA\n")
    others = ("--optim_conf", "lr=0.1", "--pruning", "pinch.eta=1.0", "--token_list", str(tokens))
    with pytest.raises(ValueError) as raised:
        settings_record.check_unchanged(args_of(data, upstream, folder, *others))
    message = str(raised.value)
    assert "optim_conf.lr: 0.0005 -> 0.1;" in message and "pruning.pinch.eta: not set -> 1.0" in message
    assert f"token_list: the content of {tokens} has changed" in message
    assert "max_epoch" not in message and len(message.splitlines()) == 1
    for block, setting in (("quantize", "bits"), ("distill", "weight")):
        with pytest.raises(ValueError, match=f"{block}.{setting}: not set -> 4"):
            settings_record.check_unchanged(args_of(data, upstream, folder, f"--{block}", f"{setting}=4"))
    settings_record.check_unchanged(first)
    tokens.write_text((data / "tokens.txt").read_text())
    shapes = tmp_path / "shapes"
    shapes.write_text("")
    args = args_of(data, upstream, folder)
    args.valid_shape_file = [str(shapes)]
    with pytest.raises(ValueError, match=f"valid_shape_file: {data}/.*utt2num_samples -> {shapes}, with other content"):
        settings_record.check_unchanged(args)
    config = upstream / "config.json"
    config.write_text(config.read_text() + "\n")
    with pytest.raises(ValueError, match="upstream config.json: the content of .*config.json has changed"):
        settings_record.check_unchanged(first)


def test_a_run_that_does_not_anneal_may_be_made_longer(data, upstream, tmp_path):
    folder, _ = checkpoints(tmp_path / "exp")
    constant = ("--scheduler", "none", "--pruning", "method=dense", "--max_epoch")
    settings_record.check_unchanged(args_of(data, upstream, folder, *constant, "2"))
    settings_record.check_unchanged(args_of(data, upstream, folder, *constant, "5"))


def broken_steps(monkeypatch, which):
    """From now on the loss of the training's forward passes numbered in ``which`` is not a number."""
    plain, calls, states = PruningASRModel.forward, [], []

    def forward(self, **batch):
        loss, stats, weight = plain(self, **batch)
        if self.training:
            states.append({name: p.detach().clone() for name, p in self.named_parameters()})
            calls.append(batch["utt_id"])
            if len(calls) in which:
                loss = loss * float("nan")
        return loss, stats, weight

    monkeypatch.setattr(PruningASRModel, "forward", forward)
    return calls, states


def test_a_step_without_a_finite_gradient_is_skipped_and_counted(data, upstream, tmp_path, monkeypatch, capsys):
    calls, states = broken_steps(monkeypatch, {3, 4})
    train(data, upstream, tmp_path / "exp", "--max_skipped_steps", "3")
    assert all(torch.equal(states[2][name], states[4][name]) for name in states[2])  # before the 3rd and the 5th
    assert any(not torch.equal(states[4][name], states[5][name]) for name in states[4])
    assert history.read(tmp_path / "exp")["1"]["train"]["skipped_steps"] == 2
    assert "2 steps skipped" in capsys.readouterr().out


@pytest.mark.parametrize("method", [("l0.landing=free", "l0.gate_lr=1.0"), ("pinch.reach_by=1.0",)])
def test_a_skipped_step_keeps_no_run_from_its_end(data, upstream, tmp_path, monkeypatch, capsys, method):
    broken_steps(monkeypatch, {3})
    name = method[0].partition(".")[0]
    more = [part for option in (f"method={name}", "target_sparsity=0.4", *method) for part in ("--pruning", option)]
    train(data, upstream, tmp_path / "exp", *more)
    assert "before it had come to rest" not in capsys.readouterr().out
    best = os.path.realpath(tmp_path / "exp" / "valid.wer_on_target.best.pth")
    assert best == str(tmp_path / "exp" / "2epoch.pth")  # no other epoch has what comes out


def test_a_run_that_has_diverged_is_stopped_with_its_checkpoint_whole(data, upstream, tmp_path, monkeypatch):
    train(data, upstream, tmp_path / "whole")
    calls, states = broken_steps(monkeypatch, set(range(8, 100)))
    with pytest.raises(FloatingPointError) as raised:
        train(data, upstream, tmp_path / "exp", "--max_skipped_steps", "2", "--save_every_steps", "1")
    message = explain(raised.value)
    assert "diverged: 2 steps in a row" in message and "lower optim_conf.lr" in message
    assert all(utterance in message for utterance in calls[8]) and "at batch 9 of epoch 1" in message
    assert load(tmp_path / "exp" / "checkpoint.pth")["middle"]["batches"] == 7  # the last step that was good
    monkeypatch.undo()
    train(data, upstream, tmp_path / "exp")
    same_model(tmp_path / "whole" / "2epoch.pth", tmp_path / "exp" / "2epoch.pth")


def test_an_epoch_without_a_good_step_is_no_success(data, upstream, tmp_path, monkeypatch):
    broken_steps(monkeypatch, set(range(1, 100)))
    with pytest.raises(FloatingPointError, match="the whole of epoch 1"):
        train(data, upstream, tmp_path / "exp")
    assert not (tmp_path / "exp" / "checkpoint.pth").exists()


def test_a_target_that_is_missed_and_an_empty_layer_are_said(data, upstream, tmp_path, monkeypatch, capsys):
    counts = {"layers.0.fc": (4, 4), "b": (2, 4)}
    monkeypatch.setattr("espnet_pinch.core.methods.pinch.Pinch.layer_counts", lambda self: counts)
    train(data, upstream, tmp_path / "exp", "--pruning", "pinch.landing=paper", "--pruning", "pinch.eta=0.0")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert len(lines) == 2
    assert lines[0] == "warning: layers.0.fc: all of its weights are pruned, it outputs only its bias"
    assert "below its target of 65 %" in lines[1]


HOLD = """
import os, sys, time
from espnet_pinch.asr.resume import owned
with owned(sys.argv[1]):
    if os.fork() == 0:
        time.sleep(600)
    print(os.getpid(), flush=True)
    time.sleep(600)
"""


def test_a_folder_is_free_as_soon_as_its_owner_is_dead(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, start_new_session=True)
    pid = int(holder.stdout.readline())
    with pytest.raises(BlockingIOError, match=f"is being trained by process {pid} on "), resume.owned(tmp_path):
        pass
    holder.kill()
    holder.wait()
    with resume.owned(tmp_path):  # although a child, as one that loads batches, lives on
        pass
    os.killpg(pid, 9)


def test_errors_of_a_disk_say_what_to_do(tmp_path):
    with pytest.raises(OSError) as raised, whole_file(tmp_path / "text"):
        raise OSError(28, "No space left on device")
    assert "the disk is full" in explain(raised.value) and f"{tmp_path}/text" in explain(raised.value)
    assert "read-only" in explain(OSError(30, "Read-only file system", "exp/lock"))
    assert "disk" in explain(RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"))
    assert "memory is full" in explain(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))
    assert explain(RuntimeError("a fault of ours")) is None
