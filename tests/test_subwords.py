"""Subword tokens: how many a text supports, their words, and the same texts from every format."""

import shutil
import sys

import pytest
import soundfile
import torch
from conftest import TINY
from test_export import fold_experiment
from test_sparse_file import make_model
from test_words import frames

import espnet_pinch
from espnet_pinch.asr.beam import BeamSearch
from espnet_pinch.asr.decode import transcribe
from espnet_pinch.asr.forced import ids_of
from espnet_pinch.asr.greedy import to_text
from espnet_pinch.asr.search import GreedySearch
from espnet_pinch.asr.upstream import load_upstream
from espnet_pinch.bin import prepare_dump
from espnet_pinch.data import subwords
from espnet_pinch.data.kaldi_dir import Utterance, write_data_dir
from espnet_pinch.data.tokens import text_of
from espnet_pinch.errors import UserError
from espnet_pinch.export import long_audio
from espnet_pinch.export.check import noise
from espnet_pinch.export.long_audio import pieces
from espnet_pinch.export.metadata import Metadata
from espnet_pinch.export.model import build, describe
from espnet_pinch.export.write import export
from espnet_pinch.lm.arpa import read_arpa

TEXTS = ["ONE SIX TWO", "TWO SIX", "SEVEN ONE", "TEN <A> TEN<A>"] * 9
MODEL = subwords.train(TEXTS, 22)
TOKENS = subwords.tokens_of(MODEL)
ONE, SIX, X, SPACE = (TOKENS.index(name) for name in ("\u2581ONE", "\u2581SIX", "X", "\u2581"))


def test_a_token_list_is_espnets_and_spells_the_texts():
    assert len(TOKENS) == 22 and TOKENS[:2] == ["<blank>", "<unk>"] and TOKENS[-1] == "<sos/eos>"
    for text in TEXTS:
        ids = ids_of(text.lower(), TOKENS, MODEL)  # in the case of the tokens
        assert to_text(ids, TOKENS) == text and len(ids) < len(text)
    with pytest.raises(UserError, match=r"lacks '5'"):
        ids_of("ONE 5", TOKENS, MODEL)
    with pytest.raises(UserError, match="no sentencepiece model"):
        ids_of("ONE", TOKENS)


def test_the_numbers_that_a_message_names_are_the_limits():
    for wrong, where in ((3, "need: [0-9]+ at least"), (999, "support: [0-9]+ at most")):
        with pytest.raises(UserError, match=where) as error:
            subwords.train(TEXTS, wrong)
        limit = int(str(error.value).split()[-3])
        assert len(subwords.tokens_of(subwords.train(TEXTS, limit))) == limit
        with pytest.raises(UserError, match=f"{limit} at"):
            subwords.train(TEXTS, limit + (1 if wrong > limit else -1))
    for texts in ([""], ["A\u2581B"]):
        with pytest.raises(UserError, match="training transcripts"):
            subwords.train(texts, 30)


def test_words_are_searched_with_a_language_model_of_words(tmp_path):
    (tmp_path / "lm.arpa").write_text(
        "\\data\\\nngram 1=5\n\n\\1-grams:\n-9\t<unk>\n-9\t<s>\n-1\t</s>\n-0.1\tSIX\n-6\tONE\n\n\\end\\\n"
    )
    rows = torch.full((4, len(TOKENS)), 1e-4)
    rows[[0, 2], 0], rows[[0, 2], SIX] = 0.9, 0.01
    rows[[1, 3], ONE], rows[[1, 3], SIX], rows[[1, 3], 0] = 0.5, 0.4, 0.05
    rows = (rows / rows.sum(1, keepdim=True)).log()[None]
    lengths = torch.tensor([4])
    found = {}
    for name, search in {
        "greedy": GreedySearch(0),
        "beam": BeamSearch(TOKENS, 0, 8),
        "lm": BeamSearch(TOKENS, 0, 8, read_arpa(tmp_path / "lm.arpa"), 1.0),
        "hot": BeamSearch(TOKENS, 0, 8, hotwords=["SIX"]),
    }.items():
        [spans] = search(rows, lengths)
        found[name] = text_of(TOKENS[span.token] for span in spans)
    assert found == {"greedy": "ONE ONE", "beam": "ONE ONE", "lm": "SIX SIX", "hot": "SIX SIX"}


def test_long_audio_is_cut_between_words(monkeypatch):
    monkeypatch.setattr(long_audio, "PIECE", 20)
    path = [ONE] * 12 + [0] * 6 + [X] + [0] * 3 + [SIX] * 3 + [0] * 2
    assert [len(piece) for piece in pieces([frames(path, tokens=TOKENS)], 0, TOKENS)] == [22, 5]
    path[15] = SPACE
    assert [len(piece) for piece in pieces([frames(path, tokens=TOKENS)], 0, TOKENS)] == [16, 11]


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """A folded experiment of a model of subwords."""
    torch.manual_seed(0)
    model = make_model(TINY, tokens=TOKENS)
    model.subwords = MODEL
    return fold_experiment(tmp_path_factory.mktemp("subwords"), model)


def check(experiment, tmp_path, formats):
    own, audio = espnet_pinch.load(experiment), noise(2)
    export(experiment, tmp_path / "export", formats)  # compares logits and texts, in each library
    assert own.subwords == MODEL and any(" " in text for text in transcribe(own, audio))
    return own


def test_every_format_keeps_tokens_and_model(experiment, tmp_path):
    shutil.rmtree(experiment.parent / "hf")
    (experiment.parent / "bpe.model").unlink()  # the folder of the run is enough
    own = check(experiment, tmp_path, ["hf", "sparse", "espnet"])
    for file in (tmp_path / "export", tmp_path / "export" / "sparse_fp32.safetensors"):
        again = espnet_pinch.load(file)
        assert again.token_list == TOKENS and again.subwords == MODEL
        assert transcribe(again, noise(2)) == transcribe(own, noise(2))
    assert Metadata.parse(Metadata.of(own).strings(), "here").subwords_model == MODEL
    start = load_upstream(str(tmp_path / "export"))
    assert start.tokens == TOKENS and torch.equal(start.head.weight, own.ctc.ctc_lo.weight)
    description = describe(own)
    with pytest.raises(UserError, match="cannot build a model"):
        build({**description, "subwords": "?"})


def test_a_model_of_subwords_keeps_them_as_an_upstream(experiment, tmp_path, monkeypatch, capsys):
    soundfile.write(tmp_path / "a.flac", noise(1)[0].numpy(), 16000)
    write_data_dir(tmp_path / "data" / "train", [Utterance("s-1", str(tmp_path / "a.flac"), "one ten", "s", 16000)])
    upstream = experiment / "folded" / "hf"
    options = ["--data", tmp_path / "data", "--upstream", upstream, "--out", tmp_path / "dump", "--train_set", "train"]
    options += ["--valid_set", "train", "--test_sets", "train", "--token_type", "bpe", "--nbpe", "16"]
    monkeypatch.setattr(sys, "argv", ["x", *map(str, options)])
    prepare_dump.main()
    assert f"{upstream} has a CTC head and keeps its own 22 tokens, not bpe of 16" in capsys.readouterr().out
    place = tmp_path / "dump" / "token_list" / (tmp_path / "dump" / "token_type").read_text().strip()
    assert (place / "bpe.model").read_bytes() == MODEL and (place / "tokens.txt").read_text().split("\n")[:-1] == TOKENS
    assert (tmp_path / "dump" / "train" / "text").read_text() == "s-1 ONE TEN\n"
    (upstream / "bpe.model").rename(upstream / "other")
    with pytest.raises(UserError, match="no bpe.model for them"):
        prepare_dump.main()
    (upstream / "other").rename(upstream / "bpe.model")


@pytest.mark.slow
def test_the_other_formats_give_the_same_texts(experiment, tmp_path):
    own = check(experiment, tmp_path, ["onnx", "openvino", "sherpa_onnx"])
    for runtime in ("onnxruntime", "openvino"):
        again = espnet_pinch.load(tmp_path / "export" / "model.onnx", runtime)
        assert again.subwords == MODEL and transcribe(again, noise(2)) == transcribe(own, noise(2))
