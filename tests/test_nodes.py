"""ESPnet's own training over two CPU processes, started by its options and by its launcher under Slurm."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from espnet_pinch.asr.processes import is_first
from espnet_pinch.asr.task import PruningASRTask
from espnet_pinch.data.kaldi_dir import read_data_dir, write_data_dir
from espnet_pinch.data.librispeech import read_subset
from espnet_pinch.data.mini_corpus import make_mini_corpus
from espnet_pinch.data.tokens import tokens_of_texts, write_tokens

ROOT = Path(__file__).parents[1]


def parse(*options: str):
    return PruningASRTask.get_parser().parse_args(["--output_dir", "exp", *options])


def test_the_folder_is_held_by_the_first_process_alone(monkeypatch):
    assert is_first(parse())
    nodes = ("--dist_world_size", "2", "--dist_backend", "gloo", "--multiprocessing_distributed", "true")
    assert is_first(parse(*nodes, "--dist_rank", "0")) and not is_first(parse(*nodes, "--dist_rank", "1"))
    for rank in (0, 1):
        step = dict(SLURM_PROCID=rank, SLURM_NODEID=rank, SLURM_NTASKS=2, SLURM_STEP_NUM_NODES=2, SLURM_LOCALID=0)
        for name, value in {**step, "SLURM_STEP_NODELIST": "node[1-2]"}.items():
            monkeypatch.setenv(name, str(value))
        slurm = parse("--multiprocessing_distributed", "true", "--dist_launcher", "slurm")
        assert is_first(slurm) == (rank == 0)
        assert slurm.ngpu == 0 and not hasattr(slurm, "distributed")  # left as it was
    monkeypatch.setenv("RANK", "3")  # of some other job: one process is one process
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert is_first(parse("--multiprocessing_distributed", "true"))


def test_processes_that_cannot_be_started_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="--ngpu 1000: this machine has .* GPUs"):
        is_first(parse("--ngpu", "1000"))
    with pytest.raises(ValueError, match="launched by 'srun'"):
        is_first(parse("--multiprocessing_distributed", "true", "--dist_launcher", "slurm"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="give --multiprocessing_distributed true"):
        is_first(parse("--ngpu", "2"))
    assert is_first(parse("--ngpu", "2", "--multiprocessing_distributed", "true"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    make_mini_corpus(folder, scale=0.05)
    return folder


@pytest.fixture
def command(corpus, tiny_config, tmp_path) -> list[str]:
    """Training without anything random, on batches of 7 utterances: 4 for one of two processes, 3 for the other."""
    for name, subset in (("train", "train-clean-100"), ("valid", "dev-clean")):
        rows = read_subset(corpus / "LibriSpeech", subset)
        write_data_dir(tmp_path / name, rows)
    write_tokens(tmp_path / "tokens.txt", tokens_of_texts(u.text for u in read_data_dir(tmp_path / "train")))
    tiny_config.update(feat_extract_norm="layer", conv_bias=True)  # an utterance's output does not depend on the batch
    Wav2Vec2Model(Wav2Vec2Config(**tiny_config)).save_pretrained(tmp_path / "upstream")
    processor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    processor.save_pretrained(tmp_path / "upstream")
    dropouts = ("hidden", "attention", "activation", "feat_proj", "final")
    still = {**{f"{name}_dropout": 0.0 for name in dropouts}, "mask_time_prob": 0.0, "mask_feature_prob": 0.0}
    data = []
    for name in ("train", "valid"):
        data += [f"--{name}_data_path_and_name_and_type", f"{tmp_path}/{name}/wav.scp,speech,sound"]
        data += [f"--{name}_data_path_and_name_and_type", f"{tmp_path}/{name}/text,text,text"]
        data += [f"--{name}_shape_file", f"{tmp_path}/{name}/utt2num_samples"]
    return [
        *(sys.executable, "-m", "espnet_pinch.bin.asr_train", "--config", str(ROOT / "conf" / "mini.yaml"), *data),
        *("--frontend_conf", f"upstream={tmp_path}/upstream", "--frontend_conf", f"upstream_conf={json.dumps(still)}"),
        *("--token_list", f"{tmp_path}/tokens.txt", "--batch_size", "7", "--valid_batch_size", "5", "--resume", "true"),
        *("--optim", "sgd", "--optim_conf", "lr=0.001", "--optim_conf", "weight_decay=0.0", "--grad_clip", "30"),
        *("--pruning", "target_sparsity=0.6"),
    ]


def start(command: list[str], out: Path, *more: str) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen([*command, "--output_dir", str(out), *more], env=environment, **pipes)


def outputs(*processes: subprocess.Popen) -> list[str]:
    printed = [process.communicate()[0] for process in processes]
    assert not any(process.returncode for process in processes), "\n".join(printed)
    return printed


def start_two(command: list[str], out: Path, *more: str) -> list[subprocess.Popen]:
    meet = f"file://{out}.{len(list(out.parent.iterdir()))}"
    two = ("--dist_world_size", "2", "--dist_backend", "gloo", "--dist_init_method", meet)
    return [start(command, out, *two, "--dist_rank", str(rank), *more) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["pinch", "nas_cp", "ump"])
def test_two_processes_end_where_one_does_and_one_of_them_writes(method, command, tmp_path):
    more = ("--pruning", f"method={method}")
    outputs(start(command, tmp_path / "one", *more, "--max_epoch", "2"))
    first, second = outputs(*start_two(command, tmp_path / "two", *more, "--max_epoch", "2"))
    assert "epoch 2 of 2: loss" in first and "epoch 2 of" not in second
    one, two = (torch.load(tmp_path / name / "2epoch.pth", weights_only=True) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-5, msg=name)
    histories = [json.loads((tmp_path / name / "history.json").read_text()) for name in ("one", "two")]
    for epoch in ("1", "2"):
        for phase, key in (("train", "loss_ctc"), ("valid", "loss"), ("valid", "wer"), ("valid", "sparsity")):
            alone, joined = (history[epoch][phase][key] for history in histories)
            assert joined == pytest.approx(alone, rel=1e-4), (epoch, phase, key)


@pytest.mark.slow
def test_two_processes_resume_together(command, tmp_path):
    outputs(*start_two(command, tmp_path / "whole", "--max_epoch", "3"))
    processes = start_two(command, tmp_path / "cut", "--max_epoch", "3")
    while not (tmp_path / "cut" / "1epoch.pth").exists():
        assert all(process.poll() is None for process in processes), processes[0].communicate()
    for process in processes:
        process.kill()
        process.communicate()
    assert not (tmp_path / "cut" / "3epoch.pth").exists()
    outputs(*start_two(command, tmp_path / "cut", "--max_epoch", "3"))
    whole, cut = (torch.load(tmp_path / name / "3epoch.pth", weights_only=True) for name in ("whole", "cut"))
    for name in whole:
        torch.testing.assert_close(cut[name], whole[name], rtol=0, atol=0, msg=name)


SRUN = """#!/usr/bin/env bash
# Stands for Slurm's: a task on each of two nodes, here two processes.
set -eu
[ "$1" = --export=ALL ] && shift
export SLURM_NTASKS=2 SLURM_STEP_NUM_NODES=2 SLURM_STEP_NODELIST=node[1-2] SLURM_LOCALID=0
SLURM_PROCID=0 SLURM_NODEID=0 "$@" &
SLURM_PROCID=1 SLURM_NODEID=1 "$@"
wait $!
"""


@pytest.mark.slow
def test_the_recipe_trains_on_two_nodes_of_a_slurm_allocation(corpus, tmp_path):
    root = tmp_path / "recipe dir"  # a space in the path, as users have
    for name in ("conf", "local", "utils", "egs"):
        skip = shutil.ignore_patterns("downloads", "data", "dump", "exp")
        shutil.copytree(ROOT / name, root / name, symlinks=True, ignore=skip)
    recipe = root / "egs" / "librispeech_100"
    run = ["./run.sh", "--upstream", "mini", "--librispeech", str(corpus), "--python", sys.executable]
    run += ["--stop_stage", "4", "--asr_args", "--max_epoch 2", "--baseline_args", "--max_epoch 1", "--asr_tag", "two"]
    run += ["--num_nodes", "2"]
    here = {**os.environ, "OMP_NUM_THREADS": "1"}
    refused = subprocess.run(run, cwd=recipe, env=here, capture_output=True, text=True)
    assert refused.returncode == 1 and len(refused.stderr.splitlines()) == 1
    assert "takes a Slurm allocation of 2 nodes" in refused.stderr and "and here are none" in refused.stderr
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "srun").write_text(SRUN)
    (tmp_path / "bin" / "srun").chmod(0o755)
    slurm = {**here, "PATH": f"{tmp_path}/bin:{here['PATH']}", "SLURM_JOB_NUM_NODES": "2"}
    done = subprocess.run(run, cwd=recipe, env=slurm, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("epoch 2 of 2: loss") == 1
    [exp] = (recipe / "exp").glob("corpus*/asr_two")
    assert "2nodes and 0gpu-per-node using srun" in (exp / "train.log").read_text()
    assert 0.65 <= json.loads((exp / "folded" / "parameters.json").read_text())["sparsity"] <= 0.651
    assert not [path for path in recipe.rglob(".*") if path.is_file()]  # nor where the processes have met
