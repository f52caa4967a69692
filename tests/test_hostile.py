"""Random and hostile input: either the result is right, or one line says what is wrong and where."""

import os
import re
import shutil
import string
import sys
import tempfile
import unicodedata
import zlib
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from espnet_pinch.bin.prepare_librispeech import main as prepare_librispeech
from espnet_pinch.core.grids import Codes
from espnet_pinch.data.audio import read_audio, read_file
from espnet_pinch.data.dump import Limits, pack_audio, prepare_training_set
from espnet_pinch.data.kaldi_dir import Utterance, read_data_dir, read_table, write_data_dir
from espnet_pinch.data.librispeech import SUBSETS, read_subset
from espnet_pinch.data.spelling import Spelling, UnknownCharacters
from espnet_pinch.data.tokens import tokens_of_texts, write_tokens
from espnet_pinch.export.encoding import decode, encode, pack, unpack
from espnet_pinch.results.scoring import error_rates, join, score_files

common = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}
few, many = settings(max_examples=40, derandomize=True, **common), settings(max_examples=1500, **common)

TRAPS = "\r\x00\x0b\x1c\x85\u00a0\u2028\ufeff\u200b\u0301ßİǰΐŉé \t'-_./\\A1a"
characters = st.one_of(st.sampled_from(TRAPS), st.characters(exclude_categories=["Cs"]))
texts = st.text(characters, max_size=12)
words = st.lists(st.text(string.ascii_uppercase, min_size=1, max_size=4), min_size=1, max_size=6).map(" ".join)


@contextmanager
def folder():
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def one_line(error: BaseException, *names: str) -> None:
    """The error is one that a user sees as one line, and names what is wrong."""
    assert isinstance(error, (ValueError, OSError)), repr(error)
    assert len(str(error).split("\n")) == 1 and str(error).strip()
    assert any(name in str(error) for name in names), str(error)


def chapter(root: Path, lines: bytes, ids=(), samples=800) -> Path:
    path = root / "dev-clean" / "19" / "198"
    path.mkdir(parents=True)
    (path / "19-198.trans.txt").write_bytes(lines)
    for id_ in ids:
        soundfile.write(path / f"{id_}.flac", np.zeros(samples), 16000)
    return path


def properties(*strategies):
    """Test on drawn arguments: a few by default, and many behind the slow marker, as NAME_many."""

    def decorate(test):
        slow = pytest.mark.slow(many(given(*strategies)(test)))
        slow.__name__ = f"{test.__name__}_many"
        test.__globals__[slow.__name__] = slow
        return few(given(*strategies)(test))

    return decorate


# ---- Data directories


def odd(text: str) -> bool:
    return any(unicodedata.category(char) == "Cc" or char == "\ufeff" for char in " ".join(text.split()))


def check_transcript(text: str) -> None:
    with folder() as root:
        path = chapter(root, f"19-198-0 {text}\n".encode(), ["19-198-0"])
        wanted = " ".join(unicodedata.normalize("NFC", text).split())
        try:
            [row] = read_subset(root, "dev-clean", 1)
        except (ValueError, OSError) as error:
            assert not wanted or odd(text) or re.search("[\n\r]", text), error
            one_line(error, str(path))
            return
        assert row.text == wanted and not odd(text)
        write_data_dir(root / "data", [row])
        assert read_data_dir(root / "data") == [row]
        tokens = tokens_of_texts([row.text])
        limits = Limits(0.01, 30, lambda samples: samples // 5)
        kept = prepare_training_set([row], Spelling(tokens), limits, UnknownCharacters(), Counter())
        assert list(kept) == [row]
        write_tokens(root / "tokens.txt", tokens)
        # As ESPnet reads it: espnet2.text.token_id_converter.
        with open(root / "tokens.txt", encoding="utf-8") as file:
            assert [line[0] + line[1:].rstrip() for line in file] == tokens


@properties(texts)
def test_a_transcript_comes_back_composed_or_is_refused(text):
    check_transcript(text)


@properties(st.binary(max_size=40))
def test_bytes_as_transcripts_are_read_or_refused_by_name(data):
    with folder() as root:
        path = chapter(root, data, ["19-198-0"])
        try:
            rows = read_subset(root, "dev-clean", 1)
        except (ValueError, OSError) as error:
            one_line(error, str(path))
        else:
            assert [row.id for row in rows] == ["19-198-0"] and rows[0].text


@properties(st.lists(st.text(characters, min_size=1, max_size=6), min_size=1, max_size=4))
def test_ids_come_back_sorted_or_are_refused(ids):
    with folder() as root:
        rows = [Utterance(id_, "/a/b.flac", "A", id_.rpartition("-")[0] or id_, i + 1) for i, id_ in enumerate(ids)]
        bad = len(set(ids)) < len(ids) or any(v.split() != [v] or odd(v) for r in rows for v in (r.id, r.speaker))
        try:
            write_data_dir(root / "d", rows)
        except ValueError as error:
            assert bad
            one_line(error, f"{root}/d")
            assert not list(root.iterdir())
        else:
            assert not bad
            back = read_data_dir(root / "d")
            assert back == sorted(rows, key=lambda u: u.id.encode())
            assert {u.id: str(u.samples) for u in rows} == read_table(root / "d" / "utt2num_samples")


def test_ids_that_leave_the_chapter_or_come_twice_are_refused(tmp_path):
    path = chapter(tmp_path / "a", b"../198/19-198-0 ONE\n", ["19-198-0"])
    with pytest.raises(ValueError, match="no file name"):
        read_subset(tmp_path / "a", "dev-clean")
    (path / "19-198.trans.txt").write_bytes(b"19-198-0 ONE\n")
    (path / "other.trans.txt").write_bytes(b"19-198-0 TWO\n")
    with pytest.raises(ValueError, match="other.trans.txt: utterance 19-198-0 is there twice"):
        read_subset(tmp_path / "a", "dev-clean")


@pytest.mark.parametrize("line", [b"\xef\xbb\xbf19-198-0 ONE TWO\n", b"19-198-0 ONE  TWO\r\n", b"19-198-0\tONE\tTWO"])
def test_a_byte_order_mark_windows_lines_and_tabs_are_read(tmp_path, line):
    chapter(tmp_path, line, ["19-198-0"])
    assert [(u.id, u.text) for u in read_subset(tmp_path, "dev-clean")] == [("19-198-0", "ONE TWO")]


def test_a_line_of_a_million_words_is_read(tmp_path):
    chapter(tmp_path, b"19-198-0" + b" A" * 1_000_000, ["19-198-0"])
    assert len(read_subset(tmp_path, "dev-clean")[0].text) == 1_999_999


NO_LENGTHS = {"utt2num_samples": ("x", "0", "-1", "", "1.5"), "utt2dur": ("nan", "inf", "0", "1e999", "-0.1", "two")}


@pytest.mark.parametrize("name, value", [(name, value) for name in NO_LENGTHS for value in NO_LENGTHS[name]])
def test_a_length_that_is_none_is_named(tmp_path, name, value):
    write_data_dir(tmp_path / "d", [Utterance("a-0", "/a.flac", "A", "a", 16000)])
    (tmp_path / "d" / name).write_text(f"a-0 {value}\n")
    with pytest.raises(ValueError, match=f"d, utterance a-0: {name} must be a number over 0"):
        read_data_dir(tmp_path / "d")


# ---- Audio


@properties(st.integers(1, 400), st.sampled_from(["PCM_16", "PCM_24", "PCM_S8"]), st.integers(0, 10**6), st.data())
def test_a_damaged_flac_is_read_as_it_was_or_refused(samples, subtype, seed, data):
    with folder() as root:
        path = chapter(root, b"19-198-0 ONE\n")
        audio = path / "19-198-0.flac"
        wave = np.random.default_rng(seed).integers(-8000, 8000, samples).astype("int16")
        soundfile.write(audio, wave, 16000, subtype=subtype)
        whole, before = audio.read_bytes(), soundfile.read(audio, dtype="int16")[0]
        where = data.draw(st.integers(0, len(whole) - 1))
        flip = data.draw(st.integers(0, 255))
        if not flip:
            audio.write_bytes(whole[:where])
        else:
            audio.write_bytes(whole[:where] + bytes([whole[where] ^ flip]) + whole[where + 1 :])
        try:
            [row] = read_subset(root, "dev-clean", 1)
        except (ValueError, OSError) as error:
            one_line(error, str(audio))
        else:
            assert row.samples == samples
            assert np.array_equal(read_file(audio, "int16")[0], before)


@pytest.mark.parametrize("form, subtype", [("WAV", "FLOAT"), ("WAV", "PCM_16"), ("OGG", "VORBIS")])
def test_another_format_under_flacs_name_is_read_as_what_it_is(tmp_path, form, subtype):
    path = chapter(tmp_path, b"19-198-0 ONE\n")
    wave = np.zeros(800)
    soundfile.write(path / "19-198-0.flac", wave, 16000, format=form, subtype=subtype)
    assert [u.samples for u in read_subset(tmp_path, "dev-clean")] == [800]
    if subtype == "FLOAT":
        wave[5] = np.nan
        soundfile.write(path / "19-198-0.flac", wave, 16000, format=form, subtype=subtype)
        with pytest.raises(ValueError, match="19-198-0.flac holds samples that are no numbers"):
            read_subset(tmp_path, "dev-clean")


def test_audio_without_a_sample_is_refused_and_of_one_sample_counted(tmp_path):
    chapter(tmp_path / "a", b"19-198-0 ONE\n", ["19-198-0"], samples=0)
    with pytest.raises(ValueError, match="19-198-0.flac"):
        read_subset(tmp_path / "a", "dev-clean")
    chapter(tmp_path / "b", b"19-198-0 ONE\n", ["19-198-0"], samples=1)
    assert read_subset(tmp_path / "b", "dev-clean")[0].samples == 1


@pytest.mark.parametrize("name", ["a b", "ünïcode", "a:1", "x.ark:y", "tab\there", "[1]", " lead"])
def test_odd_folders_keep_their_audio(tmp_path, name):
    chapter(tmp_path / name, b"19-198-0 ONE\n", ["19-198-0"])
    rows = read_subset(tmp_path / name, "dev-clean")
    write_data_dir(tmp_path / "data", rows)
    assert read_data_dir(tmp_path / "data") == rows
    assert len(read_audio(rows[0].audio)) == 800
    if "[" not in name:  # run.sh refuses such a dump folder
        [packed] = pack_audio(rows, tmp_path / name / "packed")
        assert np.array_equal(read_audio(packed.audio), read_audio(rows[0].audio))


def test_a_folder_that_is_not_utf8_and_one_with_a_new_line_are_refused(tmp_path):
    chapter(tmp_path / "a", b"19-198-0 ONE\n", ["19-198-0"])
    for name in (os.fsdecode(b"\xff"), "a\nb"):
        shutil.copytree(tmp_path / "a", tmp_path / name)
        with pytest.raises(ValueError, match="19-198-0"):
            write_data_dir(tmp_path / "data", read_subset(tmp_path / name, "dev-clean"))


def test_links_that_lead_in_circles_are_passed_by_or_named(tmp_path):
    path = chapter(tmp_path, b"19-198-0 ONE\n", ["19-198-0"])
    (path / "loop").symlink_to(path.parent)
    (path.parent / "loop").symlink_to(path.parent)
    (path / "self").symlink_to("self")
    assert len(read_subset(tmp_path, "dev-clean")) == 1
    (path / "19-198.trans.txt").write_bytes(b"19-198-0 ONE\n19-198-1 TWO\n")
    (path / "19-198-1.flac").symlink_to("19-198-1.flac")
    with pytest.raises(ValueError, match="utterance 19-198-1 has no audio file"):
        read_subset(tmp_path, "dev-clean")


def test_packing_names_audio_that_has_changed(tmp_path):
    path = chapter(tmp_path, b"19-198-0 ONE\n", ["19-198-0"])
    rows = read_subset(tmp_path, "dev-clean")
    soundfile.write(path / "19-198-0.flac", np.zeros(900), 16000)
    with pytest.raises(ValueError, match="19-198-0.*has changed since stage 1"):
        list(pack_audio(rows, tmp_path / "packed"))
    (path / "19-198-0.flac").write_bytes(b"x")
    with pytest.raises(ValueError, match="utterance 19-198-0: .*cannot be read"):
        list(pack_audio(rows, tmp_path / "packed"))
    assert not (tmp_path / "packed").exists() and not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_program_that_prepares_data_says_one_line(tmp_path, monkeypatch):
    for subset in SUBSETS:
        (tmp_path / "c" / subset).mkdir(parents=True)
    monkeypatch.setattr(sys, "argv", ["x", "--corpus", str(tmp_path / "c"), "--out", str(tmp_path / "out")])
    with pytest.raises(ValueError, match="holds no SPEAKER/CHAPTER"):
        prepare_librispeech()
    assert not (tmp_path / "out").exists()


# ---- Digits in sparse files


def draw_digits(base, count, skew, seed):
    return (np.random.default_rng(seed).random(count) ** skew * base).astype(np.uint8)


@properties(st.integers(2, 254), st.integers(0, 3000), st.sampled_from([1, 3, 100]), st.integers(0, 10**6))
def test_digits_come_back(base, count, skew, seed):
    digits = draw_digits(base, count, skew, seed)
    stored = pack(digits, base)
    assert np.array_equal(unpack(stored, base, count, "codes"), digits)
    whole = max(n for n in range(1, 9) if base**n <= 256)
    assert len(stored) <= -(-count // whole) and (skew < 100 or count < 1000 or len(stored) < count / 2)


@properties(st.integers(2, 254), st.integers(0, 100), st.binary(max_size=60), st.booleans(), st.integers(0, 60))
def test_any_bytes_are_digits_or_refused(base, count, data, deflated, cut):
    if deflated:
        stream = zlib.compressobj(9, zlib.DEFLATED, -15)
        data = (stream.compress(data) + stream.flush())[: cut or None]
    stored = torch.from_numpy(np.frombuffer(data, np.uint8).copy())
    try:
        digits = unpack(stored, base, count, "codes")
    except ValueError as error:
        one_line(error, "has a codes part")
    else:
        assert len(digits) == count and (digits < base).all()


@properties(st.lists(st.integers(1, 127), min_size=1, unique=True), st.integers(0, 10**6), st.floats(0, 1))
def test_codes_of_any_levels_come_back(levels, seed, sparsity):
    generator = np.random.default_rng(seed)
    shape = tuple(generator.integers(1, 20, generator.integers(1, 4)))
    codes = generator.choice(levels, shape) * generator.choice([-1, 1], shape) * (generator.random(shape) >= sparsity)
    scales = torch.from_numpy(generator.random(shape[0]).astype(np.float32))
    weight = Codes(torch.from_numpy(codes.astype(np.float32)), scales)
    parts = encode(weight)
    again = decode(parts, weight.codes)
    assert torch.equal(again.codes, weight.codes) and torch.equal(again.scales, scales)
    assert parts["levels"].tolist() == np.unique(np.abs(codes[codes != 0])).tolist()


# ---- Case and tokens


@properties(texts)
def test_a_text_is_spelled_once_and_keeps_its_words(text):
    text = " ".join(text.split())
    for tokens in ("ABC", "abc", "aB", "e\u0301", "É1'"):
        spelling = Spelling(tokens)
        once = spelling(text)
        assert spelling(once) == once and len(once.split(" ")) == len(text.split(" "))
        plain = unicodedata.normalize("NFC", text)
        assert unicodedata.normalize("NFC", once).casefold() in (plain.casefold(), plain.upper().casefold())
        assert once == text or spelling.unknown([text])


@pytest.mark.parametrize("tokens, message", [(["A", "A"], "'A'.*twice"), (["A\nB"], "new line"), ([""], "empty")])
def test_a_token_list_that_would_not_come_back_is_refused(tmp_path, tokens, message):
    with pytest.raises(ValueError, match=message):
        write_tokens(tmp_path / "tokens.txt", tokens)
    assert not list(tmp_path.iterdir())


# ---- Scoring


@properties(st.dictionaries(st.text("abc-", min_size=1, max_size=4), words, min_size=1, max_size=6), st.data())
def test_scoring_joins_by_id_and_names_the_one_that_is_wrong(references, data):
    with folder() as root:
        rows = [(id_, data.draw(words | st.just(""))) for id_ in data.draw(st.permutations(list(references)))]
        write = lambda name, rows: (root / name).write_text("".join(f"{i} {t}\n" for i, t in rows))  # noqa: E731
        write("ref", references.items())
        write("hyp", rows)
        pairs = [(references[id_], dict(rows)[id_]) for id_ in references]
        assert score_files(root / "ref", root / "hyp") == error_rates(pairs)
        assert error_rates([(r, r) for r, _ in pairs]).errors == 0
        victim, _ = data.draw(st.sampled_from(rows))
        for wrong in ([r for r in rows if r[0] != victim], [*rows, (victim, "X")], [*rows, ("new", "X")]):
            write("hyp", wrong)
            with pytest.raises(ValueError) as caught:
                score_files(root / "ref", root / "hyp")
            one_line(caught.value, victim, "new")


@properties(st.binary(max_size=40))
def test_bytes_as_hypotheses_are_scored_or_refused(data):
    with folder() as root:
        (root / "ref").write_text("u1 A\nu2 B\n")
        (root / "hyp").write_bytes(data)
        try:
            score_files(root / "ref", root / "hyp")
        except (ValueError, OSError) as error:
            one_line(error, str(root / "hyp"))
        else:
            assert set(read_table(root / "hyp")) == {"u1", "u2"}


@properties(st.lists(st.tuples(texts, texts), min_size=1, max_size=4))
def test_any_words_have_error_rates_that_add_up(pairs):
    if not any(r.split() for r, _ in pairs):
        with pytest.raises(ValueError, match="no reference has a word"):
            join({str(i): " ".join(r.split()) for i, (r, _) in enumerate(pairs)}, {}, "x")
        return
    rates = error_rates(pairs)
    assert rates.errors == rates.substitutions + rates.deletions + rates.insertions
    assert rates.words == sum(len(r.split()) for r, _ in pairs) and 0 <= rates.wer < float("inf")
    hypothesis_words = rates.words - rates.deletions + rates.insertions
    assert hypothesis_words == sum(len(h.split()) for _, h in pairs)
