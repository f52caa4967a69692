"""Random and hostile YAML: either it is read as YAML has it, or one line says what is wrong."""

import re
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import strategies as st
from test_hostile import folder, one_line, properties

from espnet_pinch.bin import check_config
from espnet_pinch.config import read_yaml


def check(path: Path, *options: str) -> str | None:
    """What check_config says is wrong; None where it accepts the file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["x", "--config", str(path), *options])
        try:
            check_config.main()
        except (ValueError, OSError) as error:
            one_line(error, str(path), *("--target",) if options else ())
            assert len(str(error)) < 1000
            return str(error)
    return None


HEAD = "frontend_conf: {upstream: mini}\n"


@pytest.mark.parametrize("given, targets", [("0.00005 0.5", [5e-05, 0.5]), ("0.00005", 5e-05), ("0.65", 0.65)])
def test_small_targets_reach_the_training_as_numbers(given, targets, tmp_path, capsys):
    (tmp_path / "conf.yaml").write_text(HEAD)
    assert check(tmp_path / "conf.yaml", "--target_sparsity", given) is None
    out = dict(line.partition("=")[::2] for line in capsys.readouterr().out.splitlines())
    option = next(o for o in out["pruning_options"].split() if o.startswith("target_sparsity="))
    assert yaml.safe_load(option.partition("=")[2]) == targets  # as ESPnet reads it


def test_bits_of_a_yaml_are_replaced_or_switched_off(tmp_path, capsys):
    (tmp_path / "conf.yaml").write_text(HEAD + "quantize: {bits: mixed, average_bits: 3}\n")
    for asked, wanted, name in ((None, "mixed", "mixed_3_bit"), ("4", 4, "4_bit"), ("none", None, "")):
        assert check(tmp_path / "conf.yaml", *([] if asked is None else ["--bits", asked])) is None
        out = dict(line.partition("=")[::2] for line in capsys.readouterr().out.splitlines())
        given_on = [o for o in out["pruning_options"].split("--quantize ")[1:]]
        block = yaml.safe_load("\n".join(option.strip().replace("=", ": ") for option in given_on))
        assert block == {"bits": wanted, "average_bits": 3 if wanted == "mixed" else None} and out["bits"] == name
    (tmp_path / "four.yaml").write_text(HEAD + "quantize: 4\n")
    assert "four.yaml: quantize must be a block" in (check(tmp_path / "four.yaml", "--bits", "3") or "")


def test_an_option_that_is_no_yaml_is_named(tmp_path, monkeypatch):
    (tmp_path / "conf.yaml").write_text(HEAD)
    monkeypatch.setattr(sys, "argv", ["x", "--config", str(tmp_path / "conf.yaml"), "--unit", "[1"])
    with pytest.raises(ValueError, match=r"^--unit: '\[1' is no value$"):
        check_config.main()


@pytest.mark.parametrize(
    "text, message",
    [
        ("pruning: {target_sparsity: .nan}", "target_sparsity must be .* not nan"),
        ("pruning: {target_sparsity: .inf}", "not inf"),
        ("pruning: {target_sparsity: 0.5, pinch: {eta: .inf}}", "eta must be finite"),
        ("pruning: {pinch: {eta: .nan}}", "eta must be finite"),
        ("pruning: {pinch: {eta: {.nan: 1.0e-5, 0.0: 1.0}}}", "eta's key must be finite"),
        ("pruning: {pinch: {tau_start: 1" + "0" * 4000 + "}}", "tau_start must be from 1e-18 .* more than 40 digits"),
        ("pruning: {pinch: {tau_start: 1" + "0" * 5000 + "}}", "is not YAML"),
        ("pruning: {pinch: {eta: -1}}", "eta must be finite and at least 0"),
        ("pruning: {pinch: {threshold_lr: true}}", "threshold_lr must be a number"),
        ("pruning: {layers: '('}", "layers is not a regular expression"),
        ("pruning: {layers: [a]}", "layers must be a regular expression"),
        ("pruning: {method: [pinch]}", "unknown pruning method"),
        ("pruning: {method: {a: b}}", "unknown pruning method"),
        ("pruning: {pinch: {eta: {}}}", "eta has no entry"),
        ("pruning: [1, 2]", "pruning must be a block"),
        ("pruning: {pinch: 3}", "must be a mapping"),
        ("pruning: {1: 2}", "unknown setting '1'"),
        ("pruning: {target_sparsity: 0.5, target_sparsity: 0.6}", "'target_sparsity' is there twice.*line 2"),
        ("max_epoch: 1\nmax_epoch: 2", "'max_epoch' is there twice.*line 3"),
        ("a: &x [1]\nb: *x", "aliases .* not allowed.*line 3"),
        ("a: &x [*x]", "aliases"),
        ("\tpruning: {}", "is not YAML"),
        ("a: \x00", "is not YAML"),
        ("a: 2024-13-45", "is not YAML"),
        ("a: " + "[" * 1500, "nested too deeply"),
        ("a: !!python/object:os.system {}", "is not YAML"),
        ("pruning: {method: mixed_sparsity, mixed_sparsity: {layer_sparsities: [1]}}", "layer_sparsities"),
        ("pruning: {method: mixed_sparsity, mixed_sparsity: {layer_sparsities: {a: .nan}}}", "sparsity of a"),
        ("quantize: false", "quantize must be a block of settings, not False"),
        ("quantize: 4", "quantize must be a block of settings, not 4"),
        ("quantize: {bits: 4.0}", "quantize.bits must be one of .* not 4.0"),
        ("quantize: {bits: null, average_bits: 3}", "quantize.average_bits goes with bits: mixed"),
    ],
)
def test_a_hostile_yaml_gets_one_line(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(HEAD + text + "\n")
    found = check(tmp_path / "c.yaml")
    assert found and re.search(message, found), found


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"frontend_conf: upstream",
        b"frontend_conf: {upstream: 3}",
        b'frontend_conf: {upstream: "a\\nb"}',
        b"frontend_conf: {upstream: \xff}",
        b"\xff\xfe\x00",
    ],
)
def test_a_yaml_without_an_upstream_is_named(tmp_path, text):
    (tmp_path / "c.yaml").write_bytes(text)
    assert check(tmp_path / "c.yaml")


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(scalars, v, max_size=3), max_leaves=6
)
names = st.sampled_from(["eta", "tau_start", "tau_end", "landing", "reach_by", "threshold_init", "threshold_lr", "x"])
blocks = st.fixed_dictionaries(
    {},
    optional={
        "method": st.sampled_from(["pinch", "ump", "dense", "nas_cp", "mixed_sparsity"]) | values,
        "target_sparsity": st.floats() | values,
        "layers": values,
        "pinch": st.dictionaries(names, values, max_size=3) | values,
        "nas_cp": st.dictionaries(names, values, max_size=3) | values,
        "mixed_sparsity": st.fixed_dictionaries({"layer_sparsities": values}) | values,
    },
)


@properties(blocks)
def test_any_pruning_block_is_taken_or_refused_in_a_line(block):
    with folder() as root:
        (root / "c.yaml").write_text(yaml.safe_dump({"frontend_conf": {"upstream": "mini"}, "pruning": block}))
        check(root / "c.yaml")


@properties(st.binary(max_size=60) | st.text("ab:{}[]&*!|>-#'\"%@`,? \n\t<0.", max_size=30).map(str.encode))
def test_any_bytes_are_yaml_or_refused_in_a_line(data):
    with folder() as root:
        (root / "c.yaml").write_bytes(HEAD.encode() + data)
        check(root / "c.yaml")


def test_the_recipes_own_files_are_read_as_yaml_reads_them():
    for path in (Path(__file__).parents[1] / "conf").glob("*.yaml"):
        assert read_yaml(path) == yaml.safe_load(path.read_text())
