"""Times and confidences of words: of known frames, across chunks, after resampling, in pieces."""

import contextlib

import numpy as np
import pytest
import soundfile
import torch
from small_models import TOKENS, make_model

from espnet_pinch.asr.decode import decode_data_dir, recognise
from espnet_pinch.asr.recogniser import Recogniser
from espnet_pinch.asr.search import GreedySearch
from espnet_pinch.asr.spans import LONGEST_TAIL, Span, time_words
from espnet_pinch.export import long_audio
from espnet_pinch.export.long_audio import pieces, transcribe_file
from espnet_pinch.files import write_text

BLANK, SPACE = 0, TOKENS.index("<space>")
A, T = TOKENS.index("A"), TOKENS.index("T")


def frames(path: list[int], probability: float = 0.9, tokens=TOKENS) -> torch.Tensor:
    """Log-probabilities (frames, tokens) that have ``path`` as their best."""
    rows = torch.full((len(path), len(tokens)), (1 - probability) / (len(tokens) - 1))
    rows[torch.arange(len(path)), torch.tensor(path)] = probability
    return rows.log()


def test_words_have_the_times_of_their_letters():
    path = [0, A, A, 0, T, 0, 0, SPACE, 0, 0, T, 0, 0, 0, 0]
    [spans] = GreedySearch(BLANK)(frames(path)[None], torch.tensor([len(path)]))
    assert [span[:3] for span in spans] == [(A, 1, 3), (T, 4, 5), (SPACE, 7, 8), (T, 10, 11)]
    one, two = time_words(spans, TOKENS, np.arange(16) * 0.02)
    assert (one.text, one.start, one.confidence) == ("AT", pytest.approx(0.02), pytest.approx(0.81))
    assert one.end == pytest.approx(0.15)  # half-way between its last letter, to 0.10, and the next, from 0.20
    assert (two.text, two.start, two.confidence) == ("T", pytest.approx(0.20), pytest.approx(0.9))
    assert two.end == pytest.approx(0.26)
    [far] = time_words([Span(A, 1, 2, 1.0)], TOKENS, np.arange(101) * 0.02)
    assert far.end == pytest.approx(0.04 + LONGEST_TAIL)


def test_only_the_frames_of_an_utterance_count_in_a_batch():
    path = [0, A, 0, T, T, T]
    [spans] = GreedySearch(BLANK)(frames(path)[None], torch.tensor([3]))
    assert [span.token for span in spans] == [A]


@pytest.mark.parametrize("blanks", [0.2, 0.6, 0.95])
def test_greedy_search_finds_in_pieces_what_it_finds_in_the_whole(monkeypatch, blanks):
    monkeypatch.setattr(long_audio, "PIECE", 40)
    generator = torch.Generator().manual_seed(3)
    for size in (1, 39, 41, 700):
        rows = torch.rand(size, len(TOKENS), generator=generator)
        rows[torch.rand(size, generator=generator) < blanks, BLANK] = 2
        rows = rows.repeat_interleave(2, 0).log_softmax(-1)  # tokens that go on for several frames
        found, at, longest = [], 0, 0
        for piece in pieces(iter(rows.split(17)), BLANK, TOKENS):
            [spans] = GreedySearch(BLANK)(piece[None], torch.tensor([len(piece)]))
            found += [span.later(at) for span in spans]
            at, longest = at + len(piece), max(longest, len(piece))
        assert found == GreedySearch(BLANK)(rows[None], torch.tensor([len(rows)]))[0] and at == len(rows)
        assert longest <= 2 * size and (blanks < 0.5 or longest < 100)


def test_a_piece_ends_after_a_space_where_there_is_one(monkeypatch):
    monkeypatch.setattr(long_audio, "PIECE", 20)
    path = [A] * 12 + [0, SPACE, 0] + [T] * 3 + [0] * 5 + [A] * 8
    assert [len(piece) for piece in pieces([frames(path)], BLANK, TOKENS)] == [14, 17]
    silent = [A] * 12 + [0] * 4 + [T] * 8
    assert [len(piece) for piece in pieces([frames(silent)], BLANK, TOKENS)] == [14, 10]


class Loudness(Recogniser):
    """Says "A" while it is loud, and a space as soon as it is not."""

    token_list, sampling_rate, samples_per_frame, shortest = TOKENS, 16000, 320, 320

    def __call__(self, audio):
        [speech] = audio
        hop = self.samples_per_frame
        count = len(speech) // hop
        loud = speech[: count * hop].reshape(count, hop).square().mean(1).sqrt() > 0.1
        path = torch.where(loud, A, BLANK)
        path[1:][loud[:-1] & ~loud[1:]] = SPACE
        return frames(path.tolist())[None], torch.tensor([count])


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_times_are_those_of_the_file_across_chunks_and_after_resampling(tmp_path, monkeypatch, rate):
    model = Loudness()
    monkeypatch.setattr(long_audio, "PIECE", 300)
    begins = np.arange(0.5, 64, 0.83)
    samples = np.zeros(int(65.3 * rate), np.float32)
    time = np.arange(len(samples)) / rate
    for begin in begins:
        samples[(time >= begin) & (time < begin + 0.4)] = 1
    samples *= 0.5 * np.sin(2 * np.pi * 440 * time)
    soundfile.write(tmp_path / "a.wav", np.stack([samples, samples], 1), rate)
    for chunk, stride in ((100, 5), (12, 2), (7, 3)):
        heard = transcribe_file(model, tmp_path / "a.wav", chunk, stride)
        assert heard.seconds == pytest.approx(65.3, abs=1e-3) and len(heard.words) == len(begins)
        assert np.abs([word.start for word in heard.words] - begins).max() <= 0.025
        ends = np.array([word.end for word in heard.words])
        assert np.abs(ends - begins - 0.4 - LONGEST_TAIL).max() <= 0.025
        assert all(a.end <= b.start for a, b in zip(heard.words, heard.words[1:]))


def test_a_stream_is_followed_with_a_bounded_delay(monkeypatch):
    """A second of the stream at a time; what has been printed by then is compared with what was said."""
    rate, chunk, stride = 16000, 8, 2
    begins = np.concatenate([np.arange(0.5, 20, 0.83), np.arange(31.0, 50, 0.83)])  # a pause of 10 s between
    time = np.arange(60 * rate) / rate
    samples = np.zeros(len(time), np.float32)
    for begin in begins:
        samples[(time >= begin) & (time < begin + 0.4)] = 0.5
    came: list[tuple[float, float]] = []  # seconds that had been read when a word came, and its start
    read = 0.0

    @contextlib.contextmanager
    def opened(path, _rate):
        def blocks():
            nonlocal read
            for block in samples.reshape(-1, rate // 10):
                read += 0.1
                yield block

        yield rate, blocks()

    monkeypatch.setattr(long_audio, "open_live", opened)
    for transcript in long_audio.follow(Loudness(), "-", chunk, stride):
        came += [(read, word.start) for word in transcript.words]
    assert np.abs(np.array([start for _, start in came]) - begins).max() <= 0.025  # none lost, none doubled
    assert max(at - start - 0.4 for at, start in came) <= chunk


def test_decoding_a_data_directory_leaves_ctm_beside_the_text(tiny_config, tmp_path):
    model = make_model(tiny_config)
    generator = np.random.default_rng(0)
    lengths = {"b": 8000, "a": 20000}
    for name, length in lengths.items():
        soundfile.write(tmp_path / f"{name}.wav", generator.normal(0, 0.1, length), 16000, subtype="FLOAT")
    for table, row in (("wav.scp", f"{tmp_path}/{{0}}.wav"), ("text", "A"), ("utt2spk", "{0}"), ("spk2utt", "{0}")):
        write_text(tmp_path / "data" / table, "".join(f"{name} {row.format(name)}\n" for name in sorted(lengths)))
    write_text(tmp_path / "data" / "utt2num_samples", "a 20000\nb 8000\n")
    write_text(tmp_path / "data" / "utt2dur", "a 1.25\nb 0.5\n")
    decode_data_dir(model, tmp_path / "data", tmp_path / "out", batch_size=2)
    rows = [line.split() for line in (tmp_path / "out" / "ctm").read_text().splitlines()]
    texts = dict(line.split(maxsplit=1) for line in (tmp_path / "out" / "text").read_text().splitlines())
    assert {id_: " ".join(row[4] for row in rows if row[0] == id_) for id_ in texts} == texts and len(rows) > 2
    samples = [torch.from_numpy(soundfile.read(tmp_path / f"{name}.wav", dtype="float32")[0]) for name in "ab"]
    for name, transcript in zip("ab", recognise(model, samples)):
        own = [row for row in rows if row[0] == name]
        assert [float(row[2]) for row in own] == pytest.approx([word.start for word in transcript.words], abs=1e-3)
        assert all(float(row[2]) + float(row[3]) <= lengths[name] / 16000 + 1e-6 for row in own)
