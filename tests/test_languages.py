"""Models with adapters for many languages, such as MMS: one language merged in, and what is refused."""

import json
import re
import shutil
import sys

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCTC, AutoProcessor, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor

from espnet_pinch.asr.decode import transcribe
from espnet_pinch.bin import fetch_upstream
from espnet_pinch.data.source import parse_source, read_record
from espnet_pinch.export.load import load

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
NAMES = {
    "eng": [*SPECIAL, "|", *"etaoinhs"],
    "hin": [*SPECIAL, "|", *"करानतहसब"],
    "azj-script_cyrillic": [*SPECIAL, "|", *"аәбв"],
}
SETTINGS = {"tokenizer_class": "Wav2Vec2CTCTokenizer", "target_lang": "eng", "word_delimiter_token": "|"}
SETTINGS |= {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


@pytest.fixture
def mms(tmp_path, ctc_folder):
    """A folder in the layout of facebook/mms-1b-all; Azerbaijani's weights are in torch's own format."""
    folder = tmp_path / "all of them"
    fields = {"adapter_attn_dim": 8, "do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
    ctc_folder(folder, NAMES["eng"], **fields)
    model = AutoModelForCTC.from_pretrained(folder)
    for number, (language, names) in enumerate(NAMES.items()):
        torch.manual_seed(number)
        model.lm_head = torch.nn.Linear(model.config.hidden_size, len(names))
        weights = {name: torch.randn_like(value) for name, value in model._get_adapters().items()}
        if language == "azj-script_cyrillic":
            torch.save(weights, folder / f"adapter.{language}.bin")
        else:
            save_file(weights, folder / f"adapter.{language}.safetensors", metadata={"format": "pt"})
    vocabulary = {language: {name: row for row, name in enumerate(names)} for language, names in NAMES.items()}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(SETTINGS))
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
    return folder


def fetch(monkeypatch, upstream, out):
    monkeypatch.setattr(sys, "argv", ["x", "--upstream", str(upstream), "--out", str(out)])
    fetch_upstream.main()


@pytest.mark.parametrize("language", ["hin", "azj-script_cyrillic"])
def test_a_language_is_merged_in(mms, tmp_path, monkeypatch, capsys, language):
    out = tmp_path / "merged"
    fetch(monkeypatch, f"{mms}:{language}", out)
    adapter = next(mms.glob(f"adapter.{language}.*"))
    more = load_file(adapter) if adapter.suffix == ".safetensors" else torch.load(adapter, weights_only=True)
    names = NAMES[language]
    assert f"merged {adapter.name} into the model: {sum(v.numel() for v in more.values()):,} weights" in (
        capsys.readouterr().out
    )
    # by hand: the model's tensors, with the language's in the place of its own
    before, merged = load_file(mms / "model.safetensors"), load_file(out / "model.safetensors")
    assert any("adapter_layer" in name for name in more) and before.keys() == merged.keys() >= more.keys()
    assert all(torch.equal(value, {**before, **more}[name]) for name, value in merged.items())
    # read and decoded as transformers does with the whole folder and the language
    speech = torch.randn(16000)
    processor = AutoProcessor.from_pretrained(out)
    values = torch.tensor(processor(speech.numpy(), sampling_rate=16000).input_values)
    logits = AutoModelForCTC.from_pretrained(out)(values).logits
    tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(mms, target_lang=language)
    expected = re.sub(r"<\w+>", "", tokenizer.decode(logits[0].argmax(-1)))
    assert transcribe(load(out), [speech]) == [expected] and set(expected) & set(names[5:])
    record = read_record(out)
    assert record["language"] == language and record["upstream"] is None  # the folder has no name of a model
    assert not list(out.glob("adapter.*")) and list(json.loads((out / "vocab.json").read_text())) == names


def test_of_a_model_of_the_hub_one_language_is_fetched(mms, tmp_path, monkeypatch, capsys):
    commit = "c" * 40
    snapshot = tmp_path / "cache" / "models--a--b" / "snapshots" / commit
    (snapshot.parents[1] / "refs").mkdir(parents=True)
    (snapshot.parents[1] / "refs" / "main").write_text(commit)
    shutil.copytree(mms, snapshot)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for number in range(2):
        fetch(monkeypatch, "a/b:hin", tmp_path / "up")
        said = capsys.readouterr().out
        assert ("a/b:hin is in" in said) == (number == 1) and "adapter.eng" not in said
    record = read_record(tmp_path / "up")
    assert (record["upstream"], record["repo"], record["commit"]) == ("a/b:hin", "a/b", commit)
    assert not (tmp_path / "up.whole").exists() and load(tmp_path / "up")
    with pytest.raises(ValueError, match="up holds the upstream a/b:hin, as its source.json says, not a/b:eng"):
        fetch(monkeypatch, "a/b:eng", tmp_path / "up")
    for wrong, message in (
        ("a/b:deu", "a/b:deu: it lacks the language deu; "),
        ("a/b", "a/b: it has a vocabulary for"),
    ):
        with pytest.raises(ValueError, match=message):
            fetch(monkeypatch, wrong, tmp_path / "other")


def spoil(name, text="x"):
    return lambda folder: (folder / name).write_text(text)


HAS = "it has azj-script_cyrillic, eng, hin"
REFUSED = {
    "absent": (":deu", None, f"it lacks the language deu; {HAS}$"),
    "misspelt": (":hind", None, rf"it lacks the language hind .did you mean hin\?.; {HAS}$"),
    "none": (":hin", lambda folder: [p.unlink() for p in folder.glob("adapter.*")], "no adapter.LANGUAGE.safetensors"),
    "damaged": (":hin", spoil("adapter.hin.safetensors"), "adapter.hin.safetensors (is|holds)"),
    "other model": (
        ":hin",
        lambda folder: save_file({"a": torch.zeros(1)}, folder / "adapter.hin.safetensors"),
        "adapter.hin.safetensors does not fit the model: .*unexpected keys: a",
    ),
    "no vocabulary": (":hin", spoil("vocab.json", '{"eng": {"a": 0}}'), "no vocabulary for the language hin"),
    "other vocabulary": (
        ":hin",
        spoil("vocab.json", json.dumps({"hin": {name: row for row, name in enumerate([*NAMES["hin"], "x"])}})),
        "the token 'x' in row 13, but the head has 13 rows",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_merged_is_one_line(mms, tmp_path, monkeypatch, name):
    language, change, message = REFUSED[name]
    if change:
        change(mms)
    with pytest.raises((OSError, ValueError), match=message) as error:
        fetch(monkeypatch, f"{mms}{language}", tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists() and not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_model_of_many_languages_needs_one_to_be_named(mms):
    with pytest.raises(ValueError, match=f"put one behind its name, NAME:azj-script_cyrillic; {HAS}$"):
        load(mms)


def test_a_language_in_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mms").mkdir()
    (tmp_path / "a:eng").mkdir()
    found = [parse_source(name) for name in ("mms:eng", "a/b:zlm", "a/b@v1:azj-script_latin", "a:eng")]
    assert [(s.folder, s.repo, s.language) for s in found] == [
        ("mms", None, "eng"),
        (None, "a/b", "zlm"),
        (None, "a/b", "azj-script_latin"),
        ("a:eng", None, None),
    ]
    assert [s.folder_name for s in found[1:]] == ["a--b~zlm", "a--b@v1~azj-script_latin", ""]
    assert found[0].folder_name.endswith("~eng") and found[0].place == f"{tmp_path}/mms:eng"
    for wrong in ("mini:eng", "no/such/folder:eng", "mms:", "mms:a b"):
        with pytest.raises((OSError, ValueError), match="upstream"):
            parse_source(wrong)
