"""Progress: lines in a file, a bar on a terminal."""

import os
import pty
import re
import subprocess
import sys
import termios
import time

import pytest

from espnet_pinch import progress

LINE = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "
PROGRAM = f"""
import runpy, time
module = runpy.run_path({progress.__file__!r})
module["progress_bar"].__globals__["INTERVAL"] = 0.4
for _ in module["progress_bar"](range(10), desc="decoding dev", unit="utts"):
    time.sleep(0.1)
"""


def read(terminal: int) -> str:
    """What has been written to a terminal."""
    os.set_blocking(terminal, False)
    text = b""
    for _ in range(20):
        try:
            text += os.read(terminal, 1 << 16)
        except (BlockingIOError, OSError):
            time.sleep(0.01)
    return text.decode()


@pytest.fixture
def terminal():
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 100))
    yield master, slave
    os.close(master)
    os.close(slave)


def test_a_file_gets_lines_with_the_time_left():
    text = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout
    first, *_, last = lines = text.splitlines()
    assert "\r" not in text and 3 <= len(lines) <= 4
    assert re.fullmatch(LINE + r"decoding dev: \d/10 utts \(\d0 %\), \d+\.\d utts/s, [01] s left", first)
    assert re.fullmatch(LINE + r"decoding dev: 10/10 utts \(100 %\), \d+\.\d utts/s, took [12] s", last)
    assert sum("10/10" in line for line in lines) == 1


def test_a_terminal_gets_a_bar(terminal):
    master, slave = terminal
    subprocess.run([sys.executable, "-c", PROGRAM], stdout=slave, check=True)
    text = read(master)
    assert "100%" in text and "\r" in text and not re.search(LINE, text)


def test_a_step_whose_output_goes_through_a_pipe_still_gets_its_bar(terminal):
    master, slave = terminal
    environment = {**os.environ, progress.TERMINAL: str(slave)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, pass_fds=[slave], env=environment)
    text = read(master)
    assert "decoding dev:" in text and "%|" in text
    assert b"\r" not in done.stdout and b"10/10 utts (100 %)" in done.stdout


@pytest.mark.parametrize("value", ["", "x", "99"])
def test_a_terminal_that_is_none_is_done_without(monkeypatch, capsys, value):
    monkeypatch.setenv(progress.TERMINAL, value)
    assert list(progress.progress_bar([1, 2], desc="x", unit="utts")) == [1, 2]
    assert "x: 2/2 utts (100 %)" in capsys.readouterr().out


def test_work_that_fails_does_not_say_that_it_ended(capsys):
    with pytest.raises(ValueError):
        for _ in progress.progress_bar(range(3), desc="x", unit="utts"):
            raise ValueError
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "state, line",
    [
        ({"n": 120, "total": 500, "elapsed": 38.7}, "x: 120/500 utts (24 %), 3.1 utts/s, 2 min left"),
        ({"n": 1, "total": 10_000, "elapsed": 1.0}, "x: 1/10000 utts (0 %), 1.0 utts/s, 2 h 47 min left"),
        ({"n": 0, "total": 0, "elapsed": 0.0}, "x: 0/0 utts (100 %), 0.0 utts/s, took 0 s"),
        ({"n": 60, "total": 100, "initial": 50, "elapsed": 10.0}, "x: 60/100 utts (60 %), 1.0 utts/s, 40 s left"),
        (
            {"n": 5e6, "total": 5e8, "elapsed": 2.0, "unit": " B", "unit_scale": True},
            "x: 5.00M/500M B (1 %), 2.50M B/s, 3 min left",
        ),
        ({"n": 7, "total": None, "elapsed": 2.0}, "x: 7 utts, 3.5 utts/s, after 2 s"),
    ],
)
def test_a_line_says_what_is_done_and_what_is_left(state, line):
    common = {"prefix": "x", "unit": " utts", "unit_scale": False, "initial": 0}
    assert progress.describe({**common, **state}) == line
