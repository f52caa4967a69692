"""Subword tokens: how many a text supports, their words, and the same texts from every format."""

import shutil
import sys

import pytest
import soundfile
import torch
from conftest import TINY
from small_models import make_model
from test_export import fold_experiment
from test_words import frames
from transformers import Wav2Vec2Config, Wav2Vec2Model

import espnet_pinch
from espnet_pinch.asr.beam import BeamSearch
from espnet_pinch.asr.decode import transcribe
from espnet_pinch.asr.forced import ids_of
from espnet_pinch.asr.greedy import to_text
from espnet_pinch.asr.resume import NEWEST
from espnet_pinch.asr.search import GreedySearch
from espnet_pinch.asr.settings_record import check_unchanged
from espnet_pinch.asr.task import PruningASRTask
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


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    """Stage 2 of the texts with an upstream and a number of subwords; returns the folder of the token list."""
    soundfile.write(tmp_path / "a.flac", noise(1)[0].numpy(), 16000)
    rows = [Utterance(f"s-{i}", str(tmp_path / "a.flac"), text.lower(), "s", 16000) for i, text in enumerate(TEXTS)]
    write_data_dir(tmp_path / "data" / "train", rows)

    def run(upstream, size, out):
        options = ["--data", tmp_path / "data", "--upstream", upstream, "--out", tmp_path / out, "--train_set", "train"]
        options += ["--valid_set", "train", "--test_sets", "train", "--token_type", "bpe", "--nbpe", size]
        monkeypatch.setattr(sys, "argv", ["x", *map(str, options)])
        prepare_dump.main()
        return tmp_path / out / "token_list" / (tmp_path / out / "token_type").read_text().strip()

    return run


def test_a_model_of_subwords_keeps_them_as_an_upstream(experiment, tmp_path, prepare, capsys):
    upstream = experiment / "folded" / "hf"
    place = prepare(upstream, 16, "dump")
    assert f"{upstream} has a CTC head and keeps its own 22 tokens, not bpe of 16" in capsys.readouterr().out
    assert (place / "bpe.model").read_bytes() == MODEL and (place / "tokens.txt").read_text().split("\n")[:-1] == TOKENS
    assert (tmp_path / "dump" / "train" / "text").read_text().startswith("s-0 ONE SIX TWO\n")
    (upstream / "bpe.model").rename(upstream / "other")
    with pytest.raises(UserError, match="no bpe.model for them"):
        prepare(upstream, 16, "dump")
    (upstream / "other").rename(upstream / "bpe.model")


def test_stage_2_after_a_kill_and_with_another_number_is_as_if_it_had_run_once(tmp_path, prepare, monkeypatch):
    Wav2Vec2Model(Wav2Vec2Config(**TINY)).save_pretrained(tmp_path / "upstream")

    def kill(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(prepare_dump, "whole_file", kill)  # the last but one of all files
        prepare(tmp_path / "upstream", 18, "cut")
    assert not (tmp_path / "cut" / "token_type").exists()
    with pytest.raises(UserError, match="--nbpe 999 is more than the training transcripts support"):
        prepare(tmp_path / "upstream", 999, "cut")
    again = prepare(tmp_path / "upstream", 22, "cut")
    once = prepare(tmp_path / "upstream", 22, "whole")
    assert len((once / "tokens.txt").read_text().splitlines()) == 22 and again.name == once.name
    for name in ("tokens.txt", "bpe.model", "../../train/text", "../../train/wav.scp"):
        assert (again / name).read_bytes() == (once / name).read_bytes()


def test_a_training_does_not_go_on_with_other_subwords(tmp_path):
    args = {}
    for name, size in (("first", 22), ("other", 18)):
        (tmp_path / name).write_bytes(subwords.train(TEXTS, size))
        options = ["--output_dir", str(tmp_path / "run"), "--token_type", "bpe", "--bpemodel", str(tmp_path / name)]
        args[name] = PruningASRTask.get_parser().parse_args(options)
    (tmp_path / "run").mkdir()
    check_unchanged(args["first"])
    (tmp_path / "run" / NEWEST).touch()
    check_unchanged(args["first"])
    with pytest.raises(UserError, match="bpemodel: .*/first -> .*/other, with other content"):
        check_unchanged(args["other"])


@pytest.mark.slow
def test_the_other_formats_give_the_same_texts(experiment, tmp_path):
    own = check(experiment, tmp_path, ["onnx", "openvino", "sherpa_onnx"])
    for runtime in ("onnxruntime", "openvino"):
        again = espnet_pinch.load(tmp_path / "export" / "model.onnx", runtime)
        assert again.subwords == MODEL and transcribe(again, noise(2)) == transcribe(own, noise(2))
