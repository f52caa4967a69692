"""n-gram models and prefix beam search: against sums over all paths; broken ARPA files; programs that use them."""

import gzip
import itertools
import json
import math
import re
import sys

import numpy as np
import pytest
import soundfile
import torch
from small_models import TOKENS, make_model
from test_cli import _loud, run, speech  # noqa: F401  (_loud is a fixture)

from espnet_pinch.asr.beam import BeamSearch
from espnet_pinch.asr.greedy import ctc_greedy, runs
from espnet_pinch.bin import asr_decode, run_main, train_lm, tune_lm
from espnet_pinch.data.tokens import text_of
from espnet_pinch.errors import UserError
from espnet_pinch.export.sparse_file import write_sparse
from espnet_pinch.files import write_text
from espnet_pinch.lm.arpa import END, read_arpa
from espnet_pinch.lm.count import count_ngrams
from espnet_pinch.lm.spelling import check_spelling

SMALL = ["<blank>", "<space>", "A", "B"]
TEXTS = ["A BA", "A B A", "BA", "A BA B", "AB A BA"]
BY_HAND = """a comment
\\data\\
ngram 1=4
ngram 2=2

\\1-grams:
-1.0\t<s>\t-0.5
-0.5\tA\t-0.25
-0.75\tB
-0.6\t</s>

\\2-grams:
-0.1\t<s> A
-0.2\tA B

\\end\\
"""


@pytest.fixture
def lm(tmp_path):
    write_text(tmp_path / "lm.arpa", count_ngrams(TEXTS, 3))
    return read_arpa(tmp_path / "lm.arpa")


def log_probs(frames: int, tokens: int, seed: int, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(batch, frames, tokens, generator=generator)).log_softmax(-1)


def score_of_words(lm, text: str, lm_weight: float, word_score: float) -> float:
    context, total = lm.start, 0.0
    for word in text.split():
        total += lm_weight * lm.score(context, word) + word_score
        context = lm.after(context, word)
    return total + lm_weight * lm.score(context, END)


@pytest.mark.parametrize("weights", [(0.0, 0.0), (0.7, 0.4), (2.0, -1.0)])
@pytest.mark.parametrize("seed", range(4))
def test_a_wide_beam_finds_what_the_sum_over_all_paths_finds(lm, seed, weights):
    rows = log_probs(5, len(SMALL), seed)
    total: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(len(SMALL)), repeat=5):
        ids = tuple(runs(torch.tensor(path), 0)[:, 0].tolist())
        value = sum(float(rows[0, t, token]) for t, token in enumerate(path))
        total[ids] = np.logaddexp(total.get(ids, -np.inf), value)
    scores = {ids: value + score_of_words(lm, text_of(SMALL[i] for i in ids), *weights) for ids, value in total.items()}
    best = max(scores, key=scores.get)
    [found] = BeamSearch(SMALL, 0, 500, lm, *weights).find(rows, torch.tensor([5]))
    assert tuple(found.ids) == best
    assert found.score == pytest.approx(scores[best], abs=1e-5) and found.acoustic == pytest.approx(
        total[best], abs=1e-5
    )


def test_a_small_beam_does_not_run_words_together_to_escape_the_language_model(tmp_path):
    write_text(tmp_path / "lm", count_ngrams(["TEN TO EAT TEN", "EAT TEN TO TO", "TO EAT EAT TEN"], 2))
    said = "TEN TO EAT TO TEN EAT TO TO TEN"
    frames = []
    for char in said:
        row = torch.full((len(TOKENS),), 0.01)
        row[TOKENS.index("<space>" if char == " " else char)] = 0.9
        frames += [row, torch.nn.functional.one_hot(torch.tensor(0), len(TOKENS)) * 0.9 + 0.01]
    rows = torch.stack(frames).log()[None]
    [spans] = BeamSearch(TOKENS, 0, 4, read_arpa(tmp_path / "lm"), lm_weight=4)(rows, torch.tensor([len(frames)]))
    assert text_of(TOKENS[span.token] for span in spans) == said


@pytest.mark.parametrize("seed", range(3))
def test_without_a_language_model_it_is_never_worse_than_greedy_search(seed):
    rows, lengths = log_probs(40, 11, seed, batch=6), torch.tensor([40, 31, 40, 7, 22, 1])
    greedy = ctc_greedy(rows.argmax(-1), lengths)
    found = [row.ids for row in BeamSearch(TOKENS, 0, 64).find(rows, lengths)]

    def log_probabilities(batch):
        targets = torch.tensor([i for ids in batch for i in ids])
        counts = torch.tensor([len(ids) for ids in batch])
        return -torch.nn.functional.ctc_loss(rows.transpose(0, 1), targets, lengths, counts, reduction="none")

    gain = log_probabilities(found) - log_probabilities(greedy)
    assert (gain > -1e-4).all() and (gain > 0.01).any()


def test_a_batch_finds_what_each_utterance_finds_alone(lm):
    rows, lengths = log_probs(30, len(SMALL), 5, batch=5), torch.tensor([3, 30, 17, 30, 1])
    search = BeamSearch(SMALL, 0, 6, lm, 0.8, 0.5)
    together = search.find(rows, lengths)
    for row, length, found in zip(rows, lengths, together):
        [alone] = search.find(row[None, :length], length[None])
        assert alone.ids == found.ids and alone.score == pytest.approx(found.score)
    spans = search(rows, lengths)
    assert [[span.token for span in row] for row in spans] == [found.ids for found in together]
    assert all(0 <= span.start < span.end <= n for row, n in zip(spans, lengths) for span in row)


def test_a_language_model_corrects_a_letter(tmp_path):
    write_text(tmp_path / "lm", count_ngrams(["TEN TO TEN", "EAT TEN", "TO EAT"], 2))
    path = [TOKENS.index(name) for name in ("T", "E", "N", "<space>", "T", "O")]
    rows = torch.full((1, 12, len(TOKENS)), 0.001)
    for place, token in enumerate(path):
        rows[0, 2 * place, 0] = 0.9
        rows[0, 2 * place + 1, token] = 0.9
    rows[0, 5, TOKENS.index("N")], rows[0, 5, TOKENS.index("I")] = 0.4, 0.5
    rows = rows.log()

    def text(search):
        [spans] = search(rows, torch.tensor([12]))
        return text_of(TOKENS[span.token] for span in spans)

    lm = read_arpa(tmp_path / "lm")
    assert text(BeamSearch(TOKENS, 0)) == text(BeamSearch(TOKENS, 0, lm=lm, lm_weight=0)) == "TEI TO"
    assert text(BeamSearch(TOKENS, 0, lm=lm)) == "TEN TO"


def test_the_probabilities_of_a_counted_model_sum_to_one(lm):
    words = [*lm.words(), END, "UNHEARD"]
    assert sorted(lm.words()) == ["A", "AB", "B", "BA"]
    for context in [(), ("<s>",), ("A",), ("<s>", "A"), ("A", "BA"), ("B", "BA"), ("UNHEARD", "A")]:
        assert sum(math.exp(lm.score(context, word)) for word in words) == pytest.approx(1, abs=1e-4), context
    assert lm.score(("<s>", "A"), "BA") > lm.score(("<s>", "A"), "AB")
    assert lm.after(("<s>", "A"), "BA") == ("A", "BA")


@pytest.mark.parametrize("pack", [str.encode, lambda text: gzip.compress(text.encode(), mtime=0)])
def test_an_arpa_file_means_what_it_says(tmp_path, pack):
    (tmp_path / "lm").write_bytes(pack(BY_HAND))
    model = read_arpa(tmp_path / "lm")
    ten = math.log(10)
    assert model.order == 2 and model.start == ("<s>",)
    assert model.score(("<s>",), "A") == pytest.approx(-0.1 * ten)
    assert model.score(("<s>",), "B") == pytest.approx((-0.5 - 0.75) * ten)  # backs off
    assert model.score(("B",), "A") == pytest.approx(-0.5 * ten)  # B has no weight
    assert model.score(("A",), "X") == pytest.approx((-0.25 - 1.0 - 1.0) * ten)  # a tenth of the least probable
    assert model.beginnings() == pytest.approx({"A": -0.5 * ten, "B": -0.75 * ten})


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda text: "", "lm is empty"),
        (lambda text: text.replace("\\data\\", ""), r"no ARPA file: it has no line \\data\\"),
        (lambda text: text.replace("\\end\\", ""), "cut short: it ends in its 2-grams"),
        (lambda text: text[: text.index("-0.6")], "cut short: it ends in its 1-grams"),
        (lambda text: text.replace("ngram 2=2", "ngram 2=3"), "3 2-grams are stated, and there are 2"),
        (lambda text: text.replace("ngram 1=4\n", ""), "numbers of n-grams are expected here"),
        (lambda text: text.replace("ngram 1=4", "ngram 1=" + "4" * 5000), "numbers of n-grams are expected here"),
        (lambda text: text.replace("A B", "A" * 200_000), "no line of over 100,000 characters"),
        (lambda text: text.replace("-0.2\tA B", "-0.2\tA"), r"line 14, '-0.2\\tA': log10 of a probability, 2 words"),
        (lambda text: text.replace("-0.2\t", "0.2\t"), "log10 of a probability"),
        (lambda text: text.replace("-0.2\t", "nan\t"), "log10 of a probability"),
        (lambda text: text.replace("-0.2\tA B", "-0.2\t<s> A"), "this n-gram was there before"),
        (lambda text: text.replace("\\2-grams:", "\\3-grams:"), r"\\2-grams: is expected here"),
    ],
)
def test_a_broken_arpa_file_gets_one_line(tmp_path, change, message):
    (tmp_path / "lm").write_text(change(BY_HAND))
    with pytest.raises(UserError, match=message) as error:
        read_arpa(tmp_path / "lm")
    assert "\n" not in str(error.value) and str(tmp_path / "lm") in str(error.value)


@pytest.mark.parametrize(
    "data, message",
    [
        (b"mmap lm http://kheafield.com/code format version 5\n\0...", "a binary file of KenLM: give the ARPA file"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (gzip.compress(BY_HAND.encode() * 50, mtime=0)[:90], "cut short or damaged"),
    ],
)
def test_a_file_of_another_kind_gets_one_line(tmp_path, data, message):
    (tmp_path / "lm").write_bytes(data)
    with pytest.raises(UserError, match=message):
        read_arpa(tmp_path / "lm")


def test_words_that_cannot_be_spelled_are_refused_or_noted(tmp_path):
    def note(*words, tokens=TOKENS):
        write_text(tmp_path / "lm", count_ngrams([" ".join(words)], 1))
        return check_spelling(read_arpa(tmp_path / "lm"), tokens, "lm")

    assert note("TEA", "TO") == ""
    assert "1 of its 3 words, such as 'TEXT', have characters that the model lacks" in note("TEA", "TO", "TEXT")
    with pytest.raises(UserError, match="such as 'tea' for 'TEA': change the case of the language model's words"):
        note("tea", "to")
    with pytest.raises(UserError, match="2 of its 2 words, such as '[^']*', have characters .* another language"):
        note("чай", "да")


def test_the_smallest_texts_can_be_counted_and_none_cannot(tmp_path):
    for order in (1, 5):
        write_text(tmp_path / "lm", count_ngrams(["A"], order))
        assert read_arpa(tmp_path / "lm").order == min(order, 3)
    with pytest.raises(UserError, match="texts without a word"):
        count_ngrams(["", " "], 3)
    with pytest.raises(UserError, match="at least 1, not 0"):
        count_ngrams(["A"], 0)


def test_a_hot_word_is_found_where_it_is_nearly_heard():
    rows = torch.full((1, 9, len(TOKENS)), 0.001)
    for place, name in enumerate(("T", "O", "<space>", "E", "T")):
        rows[0, 2 * place, TOKENS.index(name)] = 0.8
    rows[0, 1::2, 0] = 0.9
    rows[0, 7, 0], rows[0, 7, TOKENS.index("A")] = 0.7, 0.2
    rows = (rows / rows.sum(-1, keepdim=True)).log()

    def text(**options):
        [found] = BeamSearch(TOKENS, 0, **options).find(rows, torch.tensor([9]))
        return text_of(TOKENS[i] for i in found.ids)

    assert text() == text(hotwords=["EAT"], hotword_score=0) == text(hotwords=["TEN"]) == "TO ET"
    assert text(hotwords=["EAT"]) == "TO EAT"


# ---- The programs


@pytest.fixture
def job(tiny_config, tmp_path):
    """A model, a data directory that it recognises wholly, and a language model of that text."""
    model = make_model(tiny_config)
    write_sparse(tmp_path / "m.safetensors", model)
    for i, seconds in enumerate((3, 2)):
        soundfile.write(tmp_path / f"u{i}.wav", speech(seconds), 16000, subtype="FLOAT")
    for table, row in (("wav.scp", f"{tmp_path}/u{{0}}.wav"), ("text", "A TEA TO EAT"), ("utt2spk", "u{0}")):
        write_text(tmp_path / "data" / table, "".join(f"u{i} {row.format(i)}\n" for i in range(2)))
    write_text(tmp_path / "data" / "utt2num_samples", "u0 48000\nu1 32000\n")
    write_text(tmp_path / "data" / "utt2dur", "u0 3\nu1 2\n")
    return tmp_path


def program(capsys, monkeypatch, main, *arguments) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
    try:
        run_main(main)
        status = 0
    except SystemExit as end:
        status = end.code
    return status, *capsys.readouterr()


def test_counting_tuning_decoding_and_transcribing_with_a_language_model(job, capsys, monkeypatch):
    call = ("--text", job / "data" / "text", "--out", job / "lm.arpa", "--order", 2)
    status, out, err = program(capsys, monkeypatch, train_lm.main, *call)
    assert status == 0 and "ngram 1=7, ngram 2=5" in out
    model, data = ("--model", job / "m.safetensors"), ("--data", job / "data")
    lm = ("--lm", job / "lm.arpa")
    grid = ("--lm_weights", 0, 3, "--word_scores", 0, 9, "--beam_size", 4)
    status, out, err = program(capsys, monkeypatch, tune_lm.main, *model, *data, *lm, *grid)
    errors = [int(n) for n in re.findall(r"^\| \S+ \| \S+ \| [\d.]+ \((\d+)/8\)", out, re.M)]
    greedy = int(re.search(r"greedy search: [\d.]+ \((\d+)/8\)", out)[1])
    assert status == 0 and len(errors) == 4 and len(set(errors)) > 1
    best, weight, score = re.search(
        r"best: [\d.]+ \((\d+)/8\) with .*--lm_weight (\S+) --word_score (\S+)", out
    ).groups()
    assert int(best) == min(errors) < greedy
    chosen = (*lm, "--lm_weight", weight, "--word_score", score, "--beam_size", 4)
    status, *_ = program(capsys, monkeypatch, asr_decode.main, *model, *data, "--out", job / "out", *chosen)
    assert status == 0
    record = json.loads((job / "out" / "data" / "decode.json").read_text())
    assert (record["lm_weight"], record["beam_size"], record["lm"]) == (float(weight), 4, str(job / "lm.arpa"))
    texts = dict(line.split(maxsplit=1) for line in (job / "out" / "data" / "text").read_text().splitlines())
    status, out, _ = run(capsys, monkeypatch, "transcribe", job / "m.safetensors", job / "u0.wav", *chosen)
    assert (status, out) == (0, f"{job}/u0.wav\t{texts['u0']}\n")
    _, greedy_text, _ = run(capsys, monkeypatch, "transcribe", job / "m.safetensors", job / "u0.wav")
    assert greedy_text != out


@pytest.mark.parametrize(
    "options, message",
    [
        (["--lm", "lower.arpa"], "lower.arpa: its words are spelled in another way than the model's transcripts"),
        (["--lm", "gone.arpa"], "gone.arpa"),
        (["--lm_weight", "1"], "--lm_weight and --word_score need --lm"),
        (["--hotword_score", "1"], "--hotword_score needs --hotwords"),
        (["--hotwords", "numbers"], "numbers: the model's vocabulary lacks '5' (U+0035) once: take these words out"),
        (["--beam_size", "0"], "beam_size must be from 1 to 5000, not 0"),
        (["--beam_size", "1000000000"], "beam_size must be from 1 to 5000, not 1000000000"),
        (["--lm", "upper.arpa", "--lm_weight", "-1"], "lm_weight must be at least 0"),
    ],
)
def test_a_wrong_language_model_gets_one_line(job, capsys, monkeypatch, options, message):
    monkeypatch.chdir(job)
    for name, text in (("lower", "a tea to eat"), ("upper", "A TEA")):
        write_text(job / f"{name}.arpa", count_ngrams([text], 2))
    write_text(job / "numbers", "tea 5")
    status, out, err = run(capsys, monkeypatch, "transcribe", "m.safetensors", "u0.wav", *options)
    [line] = err.splitlines()
    assert (status, out) == (1, "") and line.startswith("error: ") and message in line
