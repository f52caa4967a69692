"""What a name of an upstream means, which of its files are wanted, and what is known of where a folder comes from."""

import json
import re

import pytest

from espnet_pinch.data.source import Source, is_there, parse_source, read_record
from espnet_pinch.data.upstream_files import PROCESSOR, check_folder, choose

# ---- Which files


@pytest.mark.parametrize(
    "there, chosen",
    [
        ("config.json model.safetensors pytorch_model.bin", "config.json model.safetensors"),
        ("config.json pytorch_model.bin model.fp16.safetensors", "config.json pytorch_model.bin"),
        ("config.json pytorch_model.bin checkpoint-500/model.safetensors", "config.json pytorch_model.bin"),
        ("config.json model.safetensors adapter.eng.safetensors", "config.json model.safetensors"),
        (
            "config.json model.safetensors trainer_state.json all_results.json vocab.txt",
            "config.json model.safetensors",
        ),
        (
            "config.json pytorch_model.bin model.safetensors.index.json one.safetensors two.safetensors x.safetensors",
            "config.json model.safetensors.index.json one.safetensors two.safetensors",
        ),
        (
            "config.json pytorch_model.bin.index.json one.bin two.bin",
            "config.json pytorch_model.bin.index.json one.bin two.bin",
        ),
        (
            f"config.json model.safetensors {' '.join(PROCESSOR)}",
            f"config.json {' '.join(PROCESSOR)} model.safetensors",
        ),
    ],
)
def test_only_what_transformers_reads_is_chosen(there, chosen):
    def index(name):
        end = name.removesuffix(".index.json").rpartition(".")[2]
        return json.dumps({"weight_map": {"a": f"two.{end}", "b": f"one.{end}", "c": f"two.{end}"}})

    assert choose(there.split(), index) == chosen.split()


@pytest.mark.parametrize(
    "there, index, message",
    [
        ("model.safetensors", "", "no config.json"),
        ("config.json", "", "no weights"),
        ("config.json tf_model.h5 sub/model.safetensors model.fp16.safetensors", "", "no weights"),
        (
            "config.json model.safetensors.index.json",
            '{"weight_map": {"a": "one"}}',
            "no one, which .*index.json lists",
        ),
        ("config.json model.safetensors.index.json", "{}", "is not a list of the shards"),
        ("config.json model.safetensors.index.json", "[", "is not a list of the shards"),
        (
            "config.json model.safetensors.index.json ../x",
            '{"weight_map": {"a": "../x"}}',
            "is not a list of the shards",
        ),
        ("config.json model.safetensors.index.json", '{"weight_map": {"a": 3}}', "is not a list of the shards"),
    ],
)
def test_a_model_that_lacks_files_is_named(there, index, message):
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        choose(there.split(), lambda name: index)


def test_a_folder_whose_shards_are_not_all_there_is_not_whole(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}'
    )
    (tmp_path / "1.safetensors").write_text("")
    with pytest.raises(FileNotFoundError, match="has no 2.safetensors, which model.safetensors.index.json lists"):
        check_folder(tmp_path)
    assert not is_there(Source("a/b", repo="a/b"), tmp_path)


# ---- What a name means


def test_a_mistyped_path_is_not_asked_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "file").write_text("")
    for wrong in ("./models/x", "/abs/x", "~/x", "a/b/c", "models/x", "models/x@v1", "../x", "a/b/", "a/b/c@v1"):
        with pytest.raises(FileNotFoundError, match=f"the upstream folder {re.escape(wrong)} does not exist"):
            parse_source(wrong)
    for wrong in ("word", "a/b@", "a/b@../x", "a/b@x y", "a--b/c", "a b/c", "file", "@v1", "", "a/é"):
        with pytest.raises(ValueError) as caught:
            parse_source(wrong)
        assert "\n" not in str(caught.value) and "upstream" in str(caught.value)


def test_what_a_name_means(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own" / "model").mkdir(parents=True)
    assert parse_source("own/model").folder == "own/model" and parse_source("own/model").repo is None
    found = [parse_source(n) for n in ("a/b", "a/b@v1", "a/b@refs/pr/1", "a/b-c", "mini", "micro")]
    assert [(s.repo, s.revision) for s in found[:3]] == [("a/b", None), ("a/b", "v1"), ("a/b", "refs/pr/1")]
    folders = [s.folder_name for s in found]
    assert folders == ["a--b", "a--b@v1", "a--b@refs--pr--1", "a--b-c", "mini", "micro"]


def test_a_folder_of_ones_own_has_the_licence_of_its_card(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    assert read_record(tmp_path)["licence"] == "apache-2.0" and read_record(tmp_path)["repo"] is None
    (tmp_path / "README.md").write_text("---\nlicense: [\n")
    assert read_record(tmp_path)["licence"] is None


def test_an_address_is_no_name_of_a_model():
    with pytest.raises(ValueError, match="is an address: give the model's name alone, owner/name"):
        parse_source("https://huggingface.co/facebook/wav2vec2-base-100h")
