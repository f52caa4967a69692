"""Alignment, MAPSSWE and bootstrap; segments, verdicts and error counts beside those of NIST's sclite and sc_stats."""

import json
import random
import re
import shutil
import subprocess
from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from espnet_pinch.alignment import align
from espnet_pinch.results.scoring import error_rates
from espnet_pinch.results.significance import bootstrap, compare, compare_files, mapsswe, segments

REFERENCES = {"u1": "A B C D E F", "u2": "A B C", "u3": "A B C D E"}
BASELINE = {"u1": "A B C D E F", "u2": "A C", "u3": "A B C D E"}
HYPOTHESIS = {"u1": "A X C D E Y", "u2": "A B C Z", "u3": "X Y C Z E"}


@pytest.mark.parametrize(
    "reference, hypothesis, alignment",
    [
        ("A B C", "A B C", "CCC"),
        ("A B", "", "DD"),
        ("", "A B", "II"),
        ("A", "B", "S"),  # 4, less than the 6 of a deletion and an insertion
        ("A B", "B C", "DCI"),  # 6, less than the 8 of two substitutions
        ("A", "A A", "IC"),  # as cheap as "CI": traced from the end, the pair of words comes first
        ("C C D C B", "D B X C", "DDCDCII"),  # five edits, though four (two of them substitutions) would do
    ],
)
def test_the_alignment_weighs_edits_as_sclite_does(reference, hypothesis, alignment):
    assert align(reference.split(), hypothesis.split()) == alignment


@pytest.mark.parametrize(
    "one, other, found",
    [
        ("CCCC", "CCCC", []),
        ("SCCS", "CCCC", [(1, 0), (1, 0)]),
        ("SCSC", "CCCC", [(2, 0)]),  # one right word is no boundary
        ("SCCC", "CCSC", [(1, 1)]),  # two, but not in both
        ("SCICCS", "CCCC", [(2, 0), (1, 0)]),  # an insertion parts the first two right words, not the second two
        ("SCICS", "CCCC", [(3, 0)]),
        ("CCCI", "ICCC", [(0, 1), (1, 0)]),
        ("CCC", "CCCII", [(0, 2)]),
        ("", "II", [(0, 2)]),
    ],
)
def test_segments_end_at_two_words_right_in_both(one, other, found):
    assert segments(one, other) == found
    assert segments(other, one) == [(b, a) for a, b in found]


def test_mapsswe_by_hand():
    # Segments: u1 "A X C D" and "E Y", all of u2 and of u3. Differences 1 1 0 3: mean 5/4, variance 4.75/3.
    result = compare(REFERENCES, BASELINE, HYPOTHESIS)
    assert (result.utterances, result.words, result.baseline_errors, result.errors) == (3, 14, 1, 6)
    assert result.segments == 4 and result.mean_difference == 1.25
    assert result.std == pytest.approx(1.258306) and result.z == pytest.approx(1.986799)
    assert result.p_two_sided == pytest.approx(0.046945, abs=1e-6) and result.significant
    assert result.p_one_sided == pytest.approx(0.023472, abs=1e-6) and result.significant_increase
    better = compare(REFERENCES, HYPOTHESIS, BASELINE)
    assert better.z == -result.z and better.p_two_sided == result.p_two_sided
    assert better.p_one_sided == pytest.approx(1 - 0.023472, abs=1e-6) and not better.significant_increase
    assert better.wer_difference == -result.wer_difference == pytest.approx(-500 / 14)


@pytest.mark.parametrize(
    "found, p_one_sided, increase",
    [
        ([], 0.5, False),
        ([(2, 2)] * 9, 0.5, False),  # identical outputs
        ([(0, 4)], 0.5, False),
        ([(0, 1)] * 4, 1 / 16, False),
        ([(0, 1)] * 5, 1 / 32, True),  # no spread, but worse each time
        ([(1, 0)] * 5, 1.0, False),
    ],
)
def test_mapsswe_without_spread_is_defined(found, p_one_sided, increase):
    result = mapsswe(found)
    assert (result.segments, result.std, result.z, result.p_two_sided) == (len(found), 0, 0, 1)
    assert result.p_one_sided == p_one_sided
    assert not result.significant and result.significant_increase is increase


@pytest.mark.parametrize("hypothesis", [REFERENCES, BASELINE, dict.fromkeys(REFERENCES, "")])
def test_the_result_is_flat_and_json_able(hypothesis):
    result = compare(REFERENCES, hypothesis, hypothesis)
    assert json.dumps(vars(result), allow_nan=False)
    assert {type(value) for value in vars(result).values()} <= {int, float, bool}
    assert result.wer_difference == result.bootstrap_low == result.bootstrap_high == 0
    assert result.bootstrap_worse == 0 and not result.significant_increase


def test_bootstrap_of_two_utterances():
    # Of the four equally likely resamples one holds no error, two hold one in 4 words, one holds two in 2 words.
    result = bootstrap(np.array([1, 0]), np.array([1, 3]))
    assert (result.bootstrap_low, result.wer_difference, result.bootstrap_high) == (0, 25, 100)
    assert result.bootstrap_worse == pytest.approx(3 / 4, abs=0.02)
    assert bootstrap(np.array([1, 0]), np.array([1, 3])) == result


def test_bootstrap_interval_is_the_normal_one_on_many_utterances():
    generator = np.random.default_rng(1)
    differences = generator.integers(-2, 4, size=2000)
    result = bootstrap(differences, np.full(2000, 20))
    half = 1.96 * 100 * differences.std() / 20 / 2000**0.5
    assert result.bootstrap_low == pytest.approx(result.wer_difference - half, abs=half / 20)
    assert result.bootstrap_high == pytest.approx(result.wer_difference + half, abs=half / 20)


@pytest.mark.parametrize("broken", ["baseline", "hypothesis"])
@pytest.mark.parametrize(
    "text, message",
    [
        ("u1 A\n", "utterance u2 has no hypothesis"),
        ("u1 A\nu2 B\nu3 C\n", "utterance u3 has no reference"),
        ("u1 A\nu2 B\nu1 A\n", "u1 is there twice"),
    ],
)
def test_files_that_do_not_match_are_named(tmp_path, broken, text, message):
    for name in ("reference", "baseline", "hypothesis"):
        (tmp_path / name).write_text("u2 B\nu1 A\n")
    files = [tmp_path / name for name in ("reference", "baseline", "hypothesis")]
    assert compare_files(*files).errors == 0
    (tmp_path / broken).write_text(text)
    with pytest.raises(ValueError, match=f"{broken}.*{message}"):
        compare_files(*files)


def sctk(program: str) -> list[str] | None:
    """The command of one of SCTK's programs: by its own name, or through Debian's ``sctk``."""
    commands = ([program], ["sctk", program])
    return next((command for command in commands if shutil.which(command[0])), None)


needs_sctk = pytest.mark.skipif(
    not (sctk("sclite") and sctk("sc_stats")), reason="sclite and sc_stats are not on the PATH (apt-get install sctk)"
)


def noisy(rng: random.Random, words: list[str], vocabulary: list[str], noise: float) -> list[str]:
    heard = []
    for word in words:
        heard += [rng.choice(vocabulary)] * (rng.random() < noise / 4)
        kind = rng.random() / noise if noise else 1
        heard += [] if kind < 1 / 4 else [word] if kind > 3 / 4 else [rng.choice(vocabulary)]
    return heard


@needs_sctk
@pytest.mark.parametrize(
    "vocabulary, longest, noises",
    [  # eleven systems, 55 pairs, each
        (2000, 35, [0, 0.01, 0.02, 0.02, 0.04, 0.05, 0.05, 0.07, 0.1, 0.12, 0.15]),
        (500, 12, [0, 0.05, 0.1, 0.1, 0.2, 0.25, 0.3, 0.4, 0.6, 0.8, 1]),
        (11, 8, [0, 0.02, 0.05, 0.05, 0.1, 0.15, 0.2, 0.5, 0.9, 0.9, 1]),
        (3, 20, [0.02, 0.1, 0.2, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 0.9, 1]),
    ],
)
def test_segments_verdicts_and_errors_are_those_of_sctk(tmp_path, vocabulary, longest, noises):
    rng = random.Random(vocabulary)
    words = [f"W{i}" for i in range(vocabulary)]
    references = {f"s{i % 4}_{i:03d}": rng.choices(words, k=rng.randint(1, longest)) for i in range(80)}
    systems = {f"x{i}": {id_: noisy(rng, r, words, p) for id_, r in references.items()} for i, p in enumerate(noises)}
    for name, texts in {"reference": references, **systems}.items():
        (tmp_path / name).write_text("".join(f"{' '.join(text)} ({id_})\n" for id_, text in texts.items()))

    def run(program: str, *options: str, **more) -> str:
        command = [*sctk(program), *options]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, **more).stdout

    to_sgml = "-r reference trn -h {0} trn {0} -i spu_id -s -f 0 -o sgml stdout"
    sgml = {name: run("sclite", *to_sgml.format(name).split()) for name in systems}
    printed = run("sc_stats", *"-p -t mapsswe -v -n -".split(), input="".join(sgml.values()))
    theirs = re.findall(
        r"^Totals +\d+ +(\d+) +(\d+)$.*?MTCH_PR_RESULTS \(systems: (\w+) (\w+)\) \(# segs: (\d+)\).*?"
        r"\(mean: +(\S+)\) \(std dev: +(\S+)\) \(Z Stat: +(\S+)\) \(Stat Diff: (\w+)\)$",
        printed,
        flags=re.MULTILINE | re.DOTALL,
    )
    assert [row[2:4] for row in theirs] == list(combinations(systems, 2)) and len(theirs) == 55

    edits = {name: [align(r, texts[id_]) for id_, r in references.items()] for name, texts in systems.items()}
    for first_errors, second_errors, first, second, count, mean, std, z, differ in theirs:
        found = [segment for a, b in zip(edits[second], edits[first]) for segment in segments(a, b)]
        ours = mapsswe(found)  # sc_stats takes the second from the first, which is then our system
        assert (ours.segments, ours.significant) == (int(count), differ == "Yes")
        assert np.sum(found, axis=0).tolist() == [int(second_errors), int(first_errors)]
        values = ours.mean_difference, ours.std, ours.z
        assert values == pytest.approx([float(mean), float(std), float(z)], abs=0.00051)

    for name, texts in systems.items():
        counts = Counter(re.findall(r"(?:^|:)([CSDI]),\"?", sgml[name], flags=re.MULTILINE))
        rates = error_rates([(" ".join(r), " ".join(texts[id_])) for id_, r in references.items()])
        assert [rates.substitutions, rates.deletions, rates.insertions] == [counts[c] for c in "SDI"]
        assert rates.words == counts["C"] + counts["S"] + counts["D"]
