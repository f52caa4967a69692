"""Programs whose output nobody reads end as a program in a pipe does: no traceback, and an error is still said."""

import os
import subprocess
import sys
from pathlib import Path

from test_recipe import recipe  # noqa: F401  (a fixture)

ROOT = Path(__file__).parents[1]


def unread(command: list, **more) -> subprocess.CompletedProcess:
    """Run a program whose stdout nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return subprocess.run([*map(str, command)], stdout=writer, stderr=subprocess.PIPE, text=True, **more)
    finally:
        os.close(writer)


def test_programs_whose_reader_has_gone_end_without_a_word(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for command in (["espnet_pinch.bin.report", "--exp", tmp_path], ["espnet_pinch", "--help"]):
        done = unread([sys.executable, "-m", *command], env=environment)
        assert (done.returncode, done.stderr) == (141, "")


def test_an_error_is_said_even_where_nobody_reads_the_output(tmp_path):
    done = unread(
        [sys.executable, "-m", "espnet_pinch.bin.check_config", "--config", tmp_path / "none"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stderr) == (1, f"error: {tmp_path}/none: no such file or directory\n")


def test_a_program_without_any_output_streams_works(tmp_path):
    command = f'"{sys.executable}" -m espnet_pinch.bin.report --exp "{tmp_path}" --upstream mini >&- 2>&-'
    done = subprocess.run(["bash", "-c", command], env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0 and (tmp_path / "report" / "RESULTS.md").exists()


def test_a_recipe_whose_reader_has_gone_ends_without_a_word(recipe, tmp_path):  # noqa: F811
    done = unread(["bash", recipe / "run.sh", "--help"])
    assert (done.returncode, done.stderr) == (-13, "")
    # a step: its program writes more than a pipe holds, and the reader of it all takes one line
    program = "from espnet_pinch.bin import run_main; run_main(lambda: [print(i) for i in range(100000)] and None)"
    step = 'set -euo pipefail; cd "$1"; . utils/step.sh; step "$2/x.done" "work" -- "$3" -c "$4"'
    script = '(bash -c "$@"; echo $? >"$4/status") | head -n 1'
    done = subprocess.run(
        ["bash", "-c", script, "bash", step, "bash", ROOT, tmp_path, sys.executable, program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (tmp_path / "status").read_text() == "141\n" and done.stderr == ""
    assert not (tmp_path / "x.done").exists() and "Traceback" not in (tmp_path / "x.log").read_text()
