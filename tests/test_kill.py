"""A whole run of the recipe, killed again and again, leaves what an undisturbed one leaves."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import test_espnet
import torch
from test_espnet import options
from test_resume import course, same_model

data, upstream = test_espnet.data, test_espnet.upstream
ROOT = Path(__file__).parents[1]
KILLS, SEED = 30, 20260
EVERY = 2  # optimizer steps between checkpoints
COMMAND = ["./run.sh", "--target_sparsity", "0.7", "--asr_tag", "short"]
COMMAND += ["--baseline_args", f"--max_epoch 2 --log_interval 1 --save_every_steps {EVERY}", "--nj", "1"]
COMMAND += ["--asr_args", f"--max_epoch 3 --log_interval 1 --save_every_steps {EVERY}", "--python", sys.executable]

# A twentieth of the mini corpus, in every Python that the recipe starts.
SITE = """
from espnet_pinch.data import mini_corpus
mini_corpus.SUBSETS = {name: (max(n // 20, 3), voices) for name, (n, voices) in mini_corpus.SUBSETS.items()}
"""


class Run:
    """The recipe in a session of its own; notes when each line of its output came."""

    def __init__(self, recipe: Path, site: Path):
        path = os.pathsep.join([str(site), str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        self.lines: list[tuple[float, str]] = []
        self.process = subprocess.Popen(
            COMMAND, cwd=recipe, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line.rstrip()))

    def wait(self) -> str:
        self.process.wait()
        self.reader.join()
        return "\n".join(line for _, line in self.lines)

    def kill(self, step: str, seconds: float) -> bool:
        """Kill it ``seconds`` after ``step`` has begun, or is found done before; False where it has ended by then."""
        while (begun := next((t for t, line in self.lines if step in line), None)) is None:
            if self.process.poll() is not None:
                return False
            time.sleep(0.02)
        while time.monotonic() < begun + seconds:
            if self.process.poll() is not None:
                return False
            time.sleep(0.005)
        os.killpg(self.process.pid, signal.SIGKILL)
        self.wait()
        return True


def fresh(root: Path) -> Path:
    for name in ("conf", "local", "utils", "egs"):
        skip = shutil.ignore_patterns("downloads", "data", "dump", "exp")
        shutil.copytree(ROOT / name, root / name, symlinks=True, ignore=skip)
    return root / "egs" / "mini"


def step_of(line: str) -> str | None:
    """The title of a step or stage that a line of the output begins."""
    found = re.match(r"\S+ \S+ (.+?) \(log: ", line) or re.match(r"\S+ \S+ (stage 6: scoring)", line)
    return found and found[1]


def lost_steps(log: Path, steps: int) -> list[int]:
    """Optimizer steps that each start of a training did again, out of its log; ``steps`` to an epoch."""
    done, lost = 0, []
    for line in log.read_text().splitlines():
        if found := re.search(r" (\d+)epoch:train:(\d+)-\d+batch", line):
            done = (int(found[1]) - 1) * steps + int(found[2])
        elif found := re.search(r"resuming after batch (\d+) of epoch (\d+)", line):
            lost[-1] = done - (int(found[2]) - 1) * steps - int(found[1])
        elif found := re.search(r" (\d+)/\d+epoch started$", line):
            lost.append(done - (int(found[1]) - 1) * steps)
    return lost


def contents(folder: Path) -> dict:
    """What a stage has left, but logs and marks, which have times in them."""
    paths = [p for p in folder.rglob("*") if p.is_file() and p.suffix not in (".log", ".done", ".files")]
    return {p.relative_to(folder): p.read_bytes() for p in paths if not any(n.startswith(".") for n in p.parts[-3:])}


def names(exp: Path) -> set:
    """The files of a training, but TensorBoard's: each start has one, named after its process."""
    return {path for path in contents(exp) if path.parts[0] != "tensorboard"}


def figures(path: Path) -> dict:
    results = json.loads(path.read_text())
    for system in (results, results["baseline"]):
        for name in ("seconds", "peak_memory_bytes", "device", "forward_seconds"):
            system.pop(name)
    return results


@pytest.mark.slow
def test_a_recipe_killed_at_thirty_moments_leaves_what_an_undisturbed_one_leaves(tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITE)
    recipe = fresh(tmp_path / "recipe")
    start = time.monotonic()
    run = Run(recipe, site)
    output = run.wait()
    assert run.process.returncode == 0, output
    end = time.monotonic()
    (tmp_path / "recipe").rename(tmp_path / "undisturbed")
    begun = [(t, step) for t, line in run.lines if (step := step_of(line))]
    assert len({step for _, step in begun}) == 12, begun

    # moments of the undisturbed run, as time since the step under way began
    draw = random.Random(SEED)
    moments = [start + (end - start) * (k + draw.random()) / KILLS for k in range(KILLS)]
    recipe = fresh(tmp_path / "recipe")
    for moment in moments:
        before, step = max(((t, s) for t, s in begun if t <= moment), default=(start, "stage 0"))
        run = Run(recipe, site)
        killed = run.kill(step, moment - before)
        shown = next((line for _, line in reversed(run.lines) if step_of(line)), "")
        where = f"{moment - start:5.1f} of {end - start:.1f} s, {moment - before:4.1f} s into {step}"
        print(f"{where}: {'killed' if killed else 'had ended'} in {step_of(shown) or step}", flush=True)
        assert killed or run.process.returncode == 0, "\n".join(line for _, line in run.lines)
    run = Run(recipe, site)
    output = run.wait()
    assert run.process.returncode == 0, output

    first, second = (tmp_path / name / "egs" / "mini" for name in ("undisturbed", "recipe"))
    for name in ("downloads", "data", "dump"):
        assert contents(first / name) == contents(second / name)
        assert contents(first / name)
    for name in ("asr_short", "asr_mini_baseline"):
        one, two = (folder / "exp" / "mini" / name for folder in (first, second))
        assert course(one) == course(two)
        same_model(*(exp / "valid.wer_on_target.ave.pth" for exp in (one, two)))
        same_model(*(exp / "folded" / "model.pth" for exp in (one, two)))
        assert contents(one / "folded" / "hf") == contents(two / "folded" / "hf")
        assert names(one) == names(two)
        for text in one.glob("decode_ctc_greedy/*/text"):
            assert text.read_bytes() == (two / text.relative_to(one)).read_bytes()
        steps = torch.load(one / "checkpoint.pth", weights_only=False)["reporter"]["stats"][1]["train"]["total_count"]
        lost = lost_steps(two / "train.log", steps)
        print(f"{name}: {len(lost)} starts, optimizer steps done again: {lost}", flush=True)
        # one more may be under way, or not yet in the checkpoint
        assert max(lost) <= EVERY + 1
    assert figures(first / "exp/mini/asr_short/results.json") == figures(second / "exp/mini/asr_short/results.json")


@pytest.mark.slow
def test_a_training_killed_while_it_steps_loses_no_more_than_it_may(data, upstream, tmp_path):
    """Of the recipe's moments most are start-up: here each kill falls some milliseconds after a step."""
    more = ("--max_epoch", "3", "--resume", "true", "--log_interval", "1", "--save_every_steps", str(EVERY))

    def start(exp, log):
        command = options(data, upstream, exp, "mini.yaml", *more)
        return subprocess.Popen(
            [sys.executable, "-m", "espnet_pinch.bin.asr_train", *command], stdout=subprocess.DEVNULL, stderr=log
        )

    with open(tmp_path / "whole.log", "w") as log:
        assert start(tmp_path / "whole", log).wait() == 0
    steps = torch.load(tmp_path / "whole/checkpoint.pth", weights_only=False)["reporter"]["stats"][1]["train"][
        "total_count"
    ]
    draw, cut = random.Random(SEED), tmp_path / "cut.log"
    for place in sorted(draw.sample(range(1, 3 * steps), 6)):
        epoch, batch = (place - 1) // steps + 1, (place - 1) % steps + 1
        with open(cut, "a") as log:
            process = start(tmp_path / "cut", log)
            while f" {epoch}epoch:train:{batch}-{batch}batch" not in cut.read_text() and process.poll() is None:
                time.sleep(0.002)
            time.sleep(0.03 * draw.random())
            process.kill()
            process.wait()
    with open(cut, "a") as log:
        assert start(tmp_path / "cut", log).wait() == 0
    lost = lost_steps(cut, steps)
    print(f"{len(lost)} starts, {steps} steps to an epoch, optimizer steps done again: {lost}")
    assert len(lost) == 7 and 0 < max(lost) <= EVERY + 1
    same_model(tmp_path / "whole" / "3epoch.pth", tmp_path / "cut" / "3epoch.pth")
    assert course(tmp_path / "whole") == course(tmp_path / "cut")
