"""Formats of transcripts: third-party parsers read back what was said, and when."""

import html
import io
import json

import pytest
import webvtt
from praatio import textgrid

from espnet_pinch.transcript.cues import LINE, LINES, LONGEST, PAUSE, SHORTEST, cues_of
from espnet_pinch.transcript.format import Writer, all_formats, whole
from espnet_pinch.transcript.words import Transcript, Word


def said(*words: tuple[str, float, float], seconds: float = 4000.0, audio: str = "a b.wav") -> Transcript:
    rows = tuple(Word(text, start, end, 0.75) for text, start, end in words)
    return Transcript(audio, " ".join(row.text for row in rows), seconds, rows)


TALK = said(("IT'S", 0.0, 0.5), ('A"B', 0.5, 0.9004), ("<I>&", 2.5, 2.75), ("ÉTÉ", 3661.0625, 3662.9996))
NOTHING = said(seconds=3.5)


def file_of(name: str, transcript: Transcript) -> str:
    return whole(all_formats()[name], transcript)


@pytest.mark.parametrize("name", ["srt", "vtt"])
def test_a_third_party_parser_reads_the_subtitles(name):
    content = file_of(name, TALK)
    cues = list(webvtt.from_buffer(io.BytesIO(content.encode()), format=name))
    assert [html.unescape(cue.raw_text) for cue in cues] == ["IT'S A\"B", "<I>&", "ÉTÉ"]
    times = [(cue.start, cue.end) for cue in cues]
    assert times == [
        ("00:00:00.000", "00:00:01.000"),  # held for a second
        ("00:00:02.500", "00:00:03.500"),
        ("01:01:01.062", "01:01:03.000"),
    ]
    assert ("&lt;I&gt;&amp;" in content) == (name == "vtt")  # SubRip has no escapes


def test_subtitles_of_silence_are_empty():
    assert file_of("srt", NOTHING) == ""
    assert list(webvtt.from_buffer(io.BytesIO(file_of("vtt", NOTHING).encode()), format="vtt")) == []


def test_a_third_party_parser_reads_the_textgrid(tmp_path):
    for transcript in (TALK, NOTHING):
        (tmp_path / "a.TextGrid").write_text(file_of("textgrid", transcript), encoding="utf-8")
        grid = textgrid.openTextgrid(str(tmp_path / "a.TextGrid"), includeEmptyIntervals=True, reportingMode="error")
        tier = grid.getTier("words")
        assert grid.tierNames == ("words",) and grid.maxTimestamp == tier.maxTimestamp == transcript.seconds
        assert tier.entries[0].start == 0 and tier.entries[-1].end == transcript.seconds
        assert all(a.end == b.start for a, b in zip(tier.entries, tier.entries[1:]))  # no gap, no overlap
        words = [(entry.label, entry.start, entry.end) for entry in tier.entries if entry.label]
        assert words == [(word.text, word.start, word.end) for word in transcript.words]


def test_ctm_has_a_line_for_each_word_of_every_recording():
    fmt = all_formats()["ctm"]
    lines = [line.split(" ") for line in fmt.write(TALK).splitlines()]
    assert [line[:2] for line in lines] == [[r"a\x20b.wav", "1"]] * 4
    assert [line[4:] for line in lines] == [[word.text, "0.7500"] for word in TALK.words]
    for line, word in zip(lines, TALK.words):
        start, duration = map(float, line[2:4])
        assert abs(start - word.start) < 0.000501 and abs(start + duration - word.end) < 0.000501
    ends = [round(1000 * (float(line[2]) + float(line[3]))) for line in lines]
    assert ends[0] <= round(1000 * float(lines[1][2]))


def test_json_is_a_list_whatever_the_number_of_recordings():
    for rows in ([], [TALK], [TALK, NOTHING]):
        parts: list[str] = []
        writer = Writer(all_formats()["json"], parts.append)
        for row in rows:
            writer(row)
        writer.close()
        read = json.loads("".join(parts))
        assert [(r["audio"], r["text"], r["seconds"]) for r in read] == [(r.audio, r.text, r.seconds) for r in rows]
        assert [[w["word"] for w in r["words"]] for r in read] == [[w.text for w in r.words] for r in rows]
    assert read[0]["words"][1] == {"word": 'A"B', "start": 0.5, "end": 0.9, "confidence": 0.75}


def test_a_name_with_a_tab_stays_on_its_line():
    assert file_of("text", said(("A", 0, 1), audio="x\ty\n.wav")) == "x\\ty\\n.wav\tA\n"


def test_cues_fit_on_a_screen_and_lose_no_word():
    lengths = [3, 9, 1, 14, 7, 2, 60, 5]
    words, at = [], 0.2
    for i in range(200):
        duration = 0.1 + 0.05 * (i % 7)
        words.append((chr(65 + i % 26) * lengths[i % 8], at, at + duration))
        at += duration + (1.2 if i % 31 == 30 else 0.04)
    transcript = said(*words, seconds=at)
    cues = cues_of(transcript)
    assert " ".join(line for cue in cues for line in cue.lines) == transcript.text
    for cue in cues:
        assert len(cue.lines) <= LINES and all(len(line) <= LINE or " " not in line for line in cue.lines)
        assert cue.end - cue.start <= LONGEST
    for cue, following in zip(cues, cues[1:]):
        assert cue.end <= following.start
        assert cue.end - cue.start >= min(SHORTEST, following.start - cue.start) - 1e-9
    starts = {cue.start for cue in cues}
    for (_, _, end), (_, start, _) in zip(words, words[1:]):
        assert start - end < PAUSE or start in starts
    assert len(cues) < 80
