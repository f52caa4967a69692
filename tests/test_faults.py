"""What a machine does to a training: a full disk, a read-only one, no memory, two at once."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import test_espnet
from test_espnet import options
from test_resume import RESUME, same_model

from espnet_pinch.asr.resume import owned
from espnet_pinch.asr.safe_load import load

data, upstream = test_espnet.data, test_espnet.upstream
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


def mounts(script: str, *arguments, **more) -> subprocess.CompletedProcess:
    """Run a shell script where it may mount what nobody else sees."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    command = ["unshare", "-m", "bash", "-euo", "pipefail", "-c", script, "bash", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **more)


def asr_train(data, upstream, out, *more) -> list[str]:
    return [
        sys.executable,
        "-m",
        "espnet_pinch.bin.asr_train",
        *options(data, upstream, out, "mini.yaml", *RESUME, *more),
    ]


def error_line(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 1, done.stdout + done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line == done.stderr.splitlines()[-1]
    return line


def test_a_full_disk_leaves_the_last_checkpoint_and_the_same_command_goes_on(data, upstream, tmp_path):
    subprocess.run(asr_train(data, upstream, tmp_path / "whole"), check=True, capture_output=True)
    size = (tmp_path / "whole" / "checkpoint.pth").stat().st_size
    # room for three checkpoints and a half: full within the first epoch's end, or within the second
    script = f"""
    mount -t tmpfs -o size={int(3.5 * size)} tmpfs "$1"
    "${{@:3}}" && exit 3 || status=$?
    cp -r "$1" "$2"
    exit $status"""
    exp = tmp_path / "exp"
    exp.mkdir()
    more = ("--save_every_steps", "4")
    done = mounts(script, exp, tmp_path / "left", *asr_train(data, upstream, exp, *more))
    line = error_line(done)
    assert "disk" in line and "full" in line and "run again" in line
    left = load(tmp_path / "left" / "checkpoint.pth")
    assert left["reporter"]["epoch"] <= 1
    assert not list((tmp_path / "left").glob(".*pth"))
    shutil.rmtree(exp)
    (tmp_path / "left").rename(exp)
    subprocess.run(asr_train(data, upstream, exp, *more), check=True, capture_output=True)
    same_model(tmp_path / "whole" / "2epoch.pth", exp / "2epoch.pth")


def test_a_read_only_folder_gets_one_line(data, upstream, tmp_path):
    script = 'mount -t tmpfs tmpfs "$1"; mount -o remount,ro "$1"; "${@:2}"'
    line = error_line(mounts(script, tmp_path, *asr_train(data, upstream, tmp_path / "exp")))
    assert "read-only" in line and str(tmp_path) in line


def test_no_shared_memory_for_workers_gets_one_line(data, upstream, tmp_path):
    script = 'mount -t tmpfs -o size=64k tmpfs /dev/shm; "${@:1}"'
    line = error_line(mounts(script, *asr_train(data, upstream, tmp_path / "exp", "--num_workers", "2")))
    assert "lower num_workers" in line


LITTLE = """
import re, resource
from espnet_pinch.bin import asr_train, run_main
used = int(re.search(r"VmData:\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10
resource.setrlimit(resource.RLIMIT_DATA, (used + (40 << 20), used + (40 << 20)))
run_main(asr_train.main)
"""


def test_no_memory_gets_one_line(data, upstream, tmp_path):
    command = asr_train(data, upstream, tmp_path / "exp", "--batch_size", "48")
    command[1:3] = ["-c", LITTLE]
    assert "the memory is full: lower batch_size" in error_line(subprocess.run(command, capture_output=True, text=True))


INTERRUPTED = (
    "import signal; from espnet_pinch.bin import run_main; run_main(lambda: signal.raise_signal(signal.SIGINT))"
)
STEP = 'cd "$1"; . utils/step.sh; step "$2/train.done" "training" -- bash -c "$3"'


def test_a_step_on_a_full_or_read_only_disk_says_so(tmp_path):
    full = 'mount -t tmpfs -o size=128k tmpfs "$2"; '
    for status in (0, 1):
        done = mounts(full + STEP, ROOT, tmp_path, f"cat /dev/zero >{tmp_path}/fill || exit {status}")
        assert error_line(done).startswith(f"error: cannot write in {tmp_path}: No space left on device; what is done")
    read_only = 'mount -t tmpfs tmpfs "$2"; mount -o remount,ro "$2"; '
    done = mounts(read_only + STEP, ROOT, tmp_path, "true")
    assert done.stderr.startswith(f"error: cannot write in {tmp_path}: Read-only file system")
    assert len(done.stderr.splitlines()) == 1


def test_a_step_that_was_killed_says_so(tmp_path):
    command = ["bash", "-euo", "pipefail", "-c", STEP, "bash", ROOT, tmp_path, "kill -9 $$"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "error: training was killed (signal 9)" in done.stderr and "the same command goes on" in done.stderr


def test_a_step_that_was_interrupted_says_so(tmp_path):
    command = ["bash", "-euo", "pipefail", "-c", STEP, "bash", ROOT, tmp_path, f"{sys.executable} -c '{INTERRUPTED}'"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr == "error: training was interrupted; the same command goes on with it\n"
    assert done.returncode == 130
    assert not (tmp_path / "train.done").exists()


def test_two_in_one_folder(data, upstream, tmp_path):
    exp = tmp_path / "exp"
    with owned(exp):
        done = subprocess.run(asr_train(data, upstream, exp), capture_output=True, text=True)
    assert f"{exp} is being trained by process {os.getpid()} on {os.uname().nodename}; wait" in error_line(done)
    # killed with workers that outlive it for a while: the next one need not wait for them
    command = asr_train(data, upstream, exp, "--num_workers", "2", "--save_every_steps", "1")
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (exp / "checkpoint.pth").exists():
        time.sleep(0.01)
    first.kill()
    first.wait()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
