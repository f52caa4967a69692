"""results.json and parameters.json: what is written is read again, and what is missing is named."""

import json
import subprocess
import sys

import pytest
from conftest import write_results

from espnet_pinch.core.parameters import Parameters
from espnet_pinch.files import write_json
from espnet_pinch.results.records import Results


@pytest.fixture
def path(tmp_path):
    write_results(tmp_path / "asr_run", "pinch", 0.5, {"test": 60}, settings={"eta": 1.0})
    return tmp_path / "asr_run" / "results.json"


def test_results_that_are_read_and_written_again_are_the_same_file(path, tmp_path):
    results = Results.read(path)
    assert results.figures.wer["test"].errors == results.significance["test"].errors == 60
    assert results.baseline.wer["test"].errors == 50 and results.settings == {"eta": 1.0}
    results.write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_the_figures_of_the_run_stand_among_the_other_keys(path):
    keys = list(json.loads(path.read_text()))
    assert keys[:5] == ["upstream", "corpus", "method", "target_sparsity", "target_macs"]
    assert keys[5:9] == ["seed", "settings", "experiment", "upstream_source"]
    assert keys[-9:-5] == ["decoded", "references", "baseline", "significance"]
    assert keys[-5:] == ["unknown_characters", "text_steps", "error_rate", "error_rate_why", "command"]


def test_results_of_other_releases_may_lack_some_keys_and_have_others(path):
    values = json.loads(path.read_text())
    for key in ("upstream_source", "settings", "unknown_characters"):
        del values[key]
    values["wer"]["test"]["of_tomorrow"] = values["of_tomorrow"] = 1
    write_json(path, values)
    results = Results.read(path)
    assert (results.figures.upstream_source, results.settings, results.unknown_characters) == (None, {}, {})


@pytest.mark.parametrize("place", ["seed", "params_kept", "baseline", "baseline.seconds", "wer.test.cer"])
def test_a_key_that_is_missing_is_named(path, place):
    values = json.loads(path.read_text())
    *parents, key = place.split(".")
    where = values
    for parent in parents:
        where = where[parent]
    del where[key]
    write_json(path, values)
    with pytest.raises(ValueError, match=f"^{path} has no {key}; score it again with stage 6$"):
        Results.read(path)


@pytest.mark.parametrize("text", ["", '{"upstream": "mi', "3", '{"wer": 3, "significance": 3}', "\udcff"])
def test_what_are_no_results_gets_one_line(path, text):
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=f"^{path} is not JSON, or not of stage 6; score it again with stage 6$"):
        Results.read(path)


def test_parameters_without_a_count_are_named(tmp_path):
    write_json(tmp_path / "parameters.json", {"layers": {"a": {"weights": 4, "pruned": 1}}, "sparsity": 0.25})
    with pytest.raises(ValueError, match="parameters.json has no gated; fold the model again with stage 4"):
        Parameters.read(tmp_path / "parameters.json")


def test_reading_results_takes_no_torch():
    code = "import espnet_pinch.results.records, sys; print({'torch', 'espnet2', 'matplotlib'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_a_report_takes_no_espnet():
    code = "import espnet_pinch.bin.report, sys; print({'espnet2', 'transformers'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
