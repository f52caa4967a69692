"""Vocabularies as published checkpoints have them: every token keeps its row and its text, here and in an export."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCTC, AutoProcessor, AutoTokenizer, Wav2Vec2Model

from espnet_pinch.asr.greedy import ctc_greedy, to_text
from espnet_pinch.asr.upstream import load_upstream, read_config, require_head, save_ctc_model
from espnet_pinch.asr.weight_files import weight_names
from espnet_pinch.data.tokens import write_tokens
from espnet_pinch.export.load import load, weight_files_of

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
LETTERS = list("EATOIN")
BLOG = {"unk_token": "[UNK]", "pad_token": "[PAD]", "word_delimiter_token": "|"}
# name: tokens in the order of the head's rows, settings of the tokenizer, the blank's row, ESPnet's token list
VOCABULARIES = {
    "plain": ([*SPECIAL, "|", *LETTERS], {}, 0, ["<blank>", "<s>", "<sos/eos>", "<unk>", "<space>", *LETTERS]),
    "blank last": (["a", "b", "|", "[UNK]", "[PAD]"], BLOG, 4, ["<blank>", "a", "b", "<space>", "<unk>"]),
    "no blank in config.json": (["a", "|", "[UNK]", "[PAD]"], BLOG, None, ["<blank>", "a", "<space>", "<unk>"]),
    "space": ([*SPECIAL, " ", "A"], {"word_delimiter_token": " "}, 0, None),
    "space, not named": ([*SPECIAL, " ", "A"], {}, 0, ["<blank>", "<s>", "<sos/eos>", "<unk>", "<space>", "A"]),
    "space beside a bar": (
        [*SPECIAL, " ", "|", "A"],
        {"word_delimiter_token": " "},
        0,
        ["<blank>", "<s>", "<sos/eos>", "<unk>", "<space>", "|", "A"],
    ),
    "bar beside a space": ([*SPECIAL, " ", "|", "A"], {}, 0, [*"~~~~", "<U+0020>", "<space>", "A"]),
    "a bar that is a letter": ([*SPECIAL, "_", "|", "A"], {"word_delimiter_token": "_"}, 0, None),
    "white space": (
        [*SPECIAL, "|", "A", "\u00a0", "\u200b", "\u2028", "\u3000", "\x1f"],
        {},
        0,
        [*"~~~~", "<space>", "A", "<U+00A0>", "\u200b", "<U+2028>", "<U+3000>", "<U+001F>"],
    ),
    "two of each": (
        [*SPECIAL, "|", "A", "[UNK]", "[PAD]", "[EOS]"],
        {**BLOG, "eos_token": "[EOS]"},
        7,
        ["<blank>", "<pad>", "<s>", "</s>", "<unk#3>", "<space>", "A", "<unk>", "<sos/eos>"],
    ),
    "names of ours": (
        [*SPECIAL, "|", "<space>", "<blank>", "<sos/eos>", "A"],
        {},
        0,
        [*"~~~~", "<space>", "<space#5>", "<blank#6>", "<sos/eos#7>", "A"],
    ),
    "no settings": (["a", "|", "[UNK]", "[PAD]"], None, 3, ["<blank>", "a", "<space>", "<unk>"]),
    "decomposed": ([*SPECIAL, "|", "e", "\u0301"], {}, 0, [*"~~~~", "<space>", "e", "\u0301"]),
    "phonemes": ([*SPECIAL, "|", "aɪ", "t"], {}, 0, [*"~~~~", "<space>", "aɪ", "t"]),
}


@pytest.mark.parametrize("name", VOCABULARIES)
def test_every_token_keeps_its_row_and_its_text(name, ctc_folder, tmp_path):
    names, settings, blank, listed = VOCABULARIES[name]
    folder = ctc_folder(tmp_path / "one", names, tokenizer=settings, pad_token_id=blank)
    upstream = load_upstream(str(folder))
    if listed:
        assert [t for t in upstream.tokens if t not in ("<s>", "<sos/eos>")] == [
            *(["<blank>", "<unk>"] if "~" in listed else []),
            *(t for t in listed if t not in ("~", "<s>", "<sos/eos>")),
        ]
    write_tokens(tmp_path / "tokens.txt", upstream.tokens)
    with open(tmp_path / "tokens.txt", encoding="utf-8") as file:  # both ways in which ESPnet reads it
        lines = list(file)
    assert [line.rstrip() for line in lines] == [line[0] + line[1:].rstrip() for line in lines] == upstream.tokens
    assert "<space>" in upstream.tokens and "<unk>" in upstream.tokens
    # Our export is the same model, in transformers' hands and in ours.
    save_ctc_model(tmp_path / "two", upstream.model, upstream.head, upstream.tokens, upstream.processing)
    again = load_upstream(str(tmp_path / "two"))
    assert again.tokens == upstream.tokens and torch.equal(again.head.weight, upstream.head.weight)
    theirs, original = (AutoModelForCTC.from_pretrained(tmp_path / name).eval() for name in ("one", "two"))
    speech = torch.randn(2, 16000)
    with torch.no_grad():
        a, b = theirs(speech).logits, original(speech).logits
    first = names.index("[PAD]") if blank is None else blank
    order = [first, *(row for row in range(len(names)) if row != first)]
    torch.testing.assert_close(a[:, :, order], b, rtol=0, atol=1e-4)  # the order of rows may change a rounding
    # Transcripts: ours by the token list, theirs by vocab.json.
    best = torch.randint(len(names), (2, 60))
    lengths = torch.tensor([60, 60])
    ours = [to_text(ids, upstream.tokens) for ids in ctc_greedy(best, lengths)]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "two")
    assert tokenizer.pad_token_id == 0 and len(tokenizer.encoder) == len(names)
    texts = [re.sub(r"<[^<> ]+>|\[EOS\]", "", text) for text in tokenizer.batch_decode(best)]
    if "|" not in upstream.tokens:  # as a letter transformers takes it for a space, whatever the folder says
        assert ours == [" ".join(text.split()) for text in texts] and all(len(text) > 3 for text in ours)


def test_an_export_names_its_ends_and_brings_a_whole_processor(ctc_folder, tmp_path):
    for names, bos, eos in (([*SPECIAL, "|", "A"], 1, 2), (["|", "A", "[UNK]", "[PAD]"], None, None)):
        folder = ctc_folder(
            tmp_path / "one", names, tokenizer=BLOG if bos is None else {}, pad_token_id=-1 % len(names)
        )
        if bos:
            (folder / "config.json").write_text(
                (folder / "config.json").read_text().replace('"pad_token_id": 5', '"pad_token_id": 0')
            )
        upstream = load_upstream(str(folder))
        save_ctc_model(tmp_path / "two", upstream.model, upstream.head, upstream.tokens, upstream.processing)
        config = json.loads((tmp_path / "two" / "config.json").read_text())
        assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (bos, eos, 0)
        for name in ("preprocessor_config.json", "tokenizer_config.json", "processor_config.json"):
            assert json.loads((tmp_path / "two" / name).read_text())["processor_class"] == "Wav2Vec2Processor"
        processor = AutoProcessor.from_pretrained(tmp_path / "two")
        assert processor.tokenizer.bos_token_id == bos and processor.feature_extractor.return_attention_mask
        shutil.rmtree(tmp_path / "one")
        shutil.rmtree(tmp_path / "two")


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def vocabulary(folder, content):
    (folder / "vocab.json").write_bytes(content if isinstance(content, bytes) else content.encode())


WRONG = {
    "another blank": (
        lambda f: edit(f, pad_token_id=5),
        r"CTC's blank\? .*config.json says 'E' \(pad_token_id 5\), the tokenizer says '<pad>' \(row 0\)",
    ),
    "a blank outside the head": (
        lambda f: edit(f, pad_token_id=99),
        "the blank .* in row 99, but the head has 11 rows",
    ),
    "a larger head": (
        lambda f: edit(f, vocab_size=20),
        r"the CTC head in the weights of .* has 11 rows, its config.json says 20",
    ),
    "a smaller head": (lambda f: edit(f, vocab_size=9), "has 11 rows, its config.json says 9"),
    "a letter outside the head": (
        lambda f: vocabulary(f, json.dumps({"<pad>": 0, "|": 1, "<unk>": 2, "Z": 11})),
        "the token 'Z' in row 11, but the head has 11 rows",
    ),
    "a byte order mark": (
        lambda f: vocabulary(f, b"\xef\xbb\xbf" + (f / "vocab.json").read_bytes()),
        "vocab.json begins with a byte order mark",
    ),
    "cut": (lambda f: vocabulary(f, (f / "vocab.json").read_bytes()[:30]), "vocab.json is damaged"),
    "not UTF-8": (lambda f: vocabulary(f, '{"é": 0}'.encode("latin-1")), "vocab.json is damaged"),
    "a list": (lambda f: vocabulary(f, "[1, 2]"), "vocab.json is not a vocabulary"),
    "empty": (lambda f: vocabulary(f, "{}"), "vocab.json is not a vocabulary"),
    "a row twice": (
        lambda f: vocabulary(f, '{"<pad>": 0, "|": 1, "<unk>": 2, "A": 3, "B": 3}'),
        "'A' and 'B' have the same row 3",
    ),
    "a token twice": (
        lambda f: vocabulary(f, '{"<pad>": 0, "|": 1, "|": 2}'),
        "vocab.json is damaged: '|' is there twice",
    ),
    "too deep": (lambda f: vocabulary(f, "[" * 100_000), "vocab.json is damaged"),
    "no size": (lambda f: edit(f, vocab_size=None), "config.json has no vocab_size"),
    "a rate that is none": (
        lambda f: (f / "preprocessor_config.json").write_text('{"sampling_rate": "x"}'),
        "has a sampling rate of 'x' Hz",
    ),
    "a rate of nothing": (
        lambda f: (f / "preprocessor_config.json").write_text('{"sampling_rate": 0}'),
        "has a sampling rate of 0 Hz",
    ),
    "rows that are none": (lambda f: vocabulary(f, '{"<pad>": "0"}'), "'<pad>' has the row '0'"),
    "no space": (lambda f: vocabulary(f, '{"<pad>": 0, "<unk>": 1}'), "vocab.json has no token for <space>"),
    "a damaged processor": (
        lambda f: (f / "preprocessor_config.json").write_text("{"),
        "preprocessor_config.json cannot be read",
    ),
    "a damaged tokenizer": (
        lambda f: (f / "tokenizer_config.json").write_text("{"),
        "the tokenizer of .* cannot be read",
    ),
    "other weights": (lambda f: edit(f, hidden_size=20), "do not fit its config.json: .* wrong, first: "),
    "a field of another kind": (lambda f: edit(f, hidden_size="wide"), "hidden_size"),
    "cut weights": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:900]),
        "model.safetensors is damaged",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_a_folder_is_one_line(name, ctc_folder, tmp_path):
    folder = ctc_folder(tmp_path / "up", [*SPECIAL, "|", *LETTERS], tokenizer={})
    change, message = WRONG[name]
    change(folder)
    with pytest.raises((ValueError, OSError), match=message) as caught:
        load_upstream(str(folder))
    assert len(str(caught.value).splitlines()) == 1 and str(folder) in str(caught.value)


def old(state):
    """The names of a weight norm's parts in checkpoints before transformers 4.31."""
    parts = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    return {re.sub("|".join(parts), lambda found: parts[found[0]], name): t.clone() for name, t in state.items()}


def as_bin(folder, **options):
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(old(state), folder / "pytorch_model.bin", **options)


def as_shards(folder):
    model = AutoModelForCTC.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="4KB")


def beside_others(folder):
    as_bin(folder)
    (folder / "checkpoint-500").mkdir()
    save_file({"a": torch.zeros(1)}, folder / "checkpoint-500" / "model.safetensors")
    save_file({"a": torch.zeros(1)}, folder / "adapter.eng.safetensors")


LAYOUTS = {
    "safetensors": lambda folder: None,
    "bin": as_bin,
    "a bin of old torch": lambda folder: as_bin(folder, _use_new_zipfile_serialization=False),
    "shards": as_shards,
    "a bin beside other files": beside_others,
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("architectures", [["Wav2Vec2ForCTC"], None, []])
def test_weights_in_any_layout_are_the_same_model(name, architectures, ctc_folder, tmp_path, capsys, monkeypatch):
    folder = ctc_folder(tmp_path / "up", [*SPECIAL, "|", *LETTERS], tokenizer={})
    want = load_upstream(str(folder))
    LAYOUTS[name](folder)
    edit(folder, architectures=architectures)
    require_head(str(folder), read_config(str(folder)))
    got = load_upstream(str(folder))
    assert torch.equal(got.head.weight, want.head.weight) and got.tokens == want.tokens
    files = weight_files_of(folder)
    assert {path.suffix for path in files} == ({".bin"} if "bin" in name else {".safetensors"})
    assert "lm_head.weight" in weight_names(folder) and len(files) == (1 if name != "shards" else len(files))
    assert sum(p.numel() for p in load(folder).parameters()) > 0


def test_a_shard_that_is_missing_is_named(ctc_folder, tmp_path):
    folder = ctc_folder(tmp_path / "up", [*SPECIAL, "|", *LETTERS], tokenizer={})
    as_shards(folder)
    shard = sorted(folder.glob("model-00002*"))[0]
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=f"has no {shard.name}, which model.safetensors.index.json lists"):
        load_upstream(str(folder))
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../outside"}}')
    with pytest.raises(ValueError, match="index.json is not a list of the shards beside it"):
        load_upstream(str(folder))


@pytest.mark.parametrize("architectures", [["Wav2Vec2Model"], None])
def test_an_upstream_without_head_is_no_baseline(architectures, tiny_wav2vec2, tmp_path):
    Wav2Vec2Model(tiny_wav2vec2).save_pretrained(tmp_path)
    edit(tmp_path, architectures=architectures)
    with pytest.raises(ValueError, match="has no CTC head, so it cannot be its own baseline.*--baseline_config"):
        require_head(str(tmp_path), read_config(str(tmp_path)))


@pytest.mark.parametrize("kept", [0.25, 0.75, -1])
def test_a_cut_bin_is_named(kept, ctc_folder, tmp_path):
    folder = ctc_folder(tmp_path / "up", [*SPECIAL, "|", *LETTERS], tokenizer={})
    as_bin(folder)
    whole = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(whole[: int(kept * len(whole)) if kept > 0 else -1])
    for architectures in (["Wav2Vec2ForCTC"], None):
        edit(folder, architectures=architectures)
        with pytest.raises(ValueError, match="up/pytorch_model.bin is damaged"):
            load_upstream(str(folder))
