"""A sweep over methods and ratios as a user runs it: killed, gone on with, and its tables."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from test_recipe import recipe  # noqa: F401  (a fixture)

SHORT = ("--asr_args", "--max_epoch 1 --batch_size 4", "--baseline_args", "--max_epoch 1")


def start(recipe, *options):  # noqa: F811
    command = ["local/sweep.sh", "--upstream", "mini", "--python", sys.executable, *options]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=recipe, stdout=pipe, stderr=pipe, text=True, env=environment, start_new_session=True
    )


@pytest.mark.parametrize(
    "options, message",
    [
        (["--methods", "magic"], "error: --methods: unknown method 'magic'"),
        (["--jobs", "0"], "error: --jobs must be a whole number over 0, not '0'"),
        (["--report", "yes"], "error: --report must be true or false, not 'yes'"),
        (
            ["--", "--librispeech", "/no/such/folder"],
            "error: dense run: error: --librispeech: /no/such/folder does not exist",
        ),
    ],
)
def test_a_wrong_option_gets_one_line(recipe, options, message):  # noqa: F811
    process = start(recipe, *options)
    _, errors = process.communicate()
    assert process.returncode != 0 and len(errors.splitlines()) == 1 and errors.startswith(message)


@pytest.mark.parametrize("script", ["run_table1.sh", "run_table2.sh", "run_comparison.sh", "sweep.sh"])
def test_help_starts_nothing(recipe, script):  # noqa: F811
    before = set(recipe.rglob("*"))
    done = subprocess.run([f"local/{script}", "--help"], cwd=recipe, capture_output=True, text=True)
    assert done.returncode == 0 and f"local/{script}" in done.stdout and not done.stderr
    assert set(recipe.rglob("*")) == before


def test_settings_of_one_method_go_to_its_runs_alone(recipe, tmp_path):  # noqa: F811
    root = shutil.copytree(recipe.parents[1], tmp_path / "copy", symlinks=True)
    recipe = root / "egs" / "librispeech_100"
    (recipe / "run.sh").unlink()
    (recipe / "run.sh").write_text('#!/bin/sh\necho "$*" >>ran\n')
    (recipe / "run.sh").chmod(0o755)
    shared = "--pruning eta=1 --pruning l0.conv=true"  # what no method here has is refused by all
    args = f"--max_epoch 1\n--pruning pinch.landing=paper --pruning nas_cp.landing=paper {shared}"
    done, errors = start(recipe, "--methods", "pinch nas_cp mixed_sparsity", "--asr_args", args).communicate()
    ran = [line for line in (recipe / "ran").read_text().splitlines() if "dense" not in line]
    found = {re.search("--method ([a-z_]+)", line)[1]: re.search("--asr_args (.*)", line)[1] for line in ran}
    assert found == {
        "pinch": f"--max_epoch 1 --pruning pinch.landing=paper {shared}",
        "nas_cp": f"--max_epoch 1 --pruning nas_cp.landing=paper {shared}",
        "mixed_sparsity": f"--max_epoch 1 --pruning pinch.landing=paper {shared}",  # reads that run of pinch
    }, done + errors


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_ends_in_tables(recipe):  # noqa: F811
    options = ["--methods", "pinch mixed_sparsity nas_cp ump", "--ratios", "0.6 0.95", "--jobs", "2"]
    options += ["--report", "true", "--", "--librispeech", "../../corpus", *SHORT]
    first = start(recipe, *options)
    while first.poll() is None and not list(recipe.glob("exp/corpus_*/asr_mini_pinch_*/train.done")):
        time.sleep(0.2)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert not list(recipe.glob("exp/corpus_*/report"))
    [trained] = list(recipe.glob("exp/corpus_*/asr_mini_pinch_*/train.done"))[:1]
    before = trained.stat().st_mtime_ns

    second = start(recipe, *options)
    output, errors = second.communicate()
    assert second.returncode == 0, output + errors
    assert "nas_cp at 0.95: not run" in output and "8 finished runs, 0 left out" in output
    assert trained.stat().st_mtime_ns == before
    [page] = recipe.glob("exp/corpus_*/report/RESULTS.md")
    rows = [line.split(" | ")[:2] for line in page.read_text().splitlines()]
    for system in ("pinch (self-pinching gates)", "Mixed-sparsity", "UMP"):
        assert [f"| {system}", "60"] in rows and [f"| {system}", "95"] in rows
    assert ["| NAS-CP", "60"] in rows and ["| NAS-CP", "95"] not in rows
