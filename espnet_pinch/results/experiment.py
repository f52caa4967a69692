"""One experiment beside its baseline: ``results.json``, ``RESULTS.md`` and pictures in the experiment's folder."""

import dataclasses
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from espnet_pinch.asr import history
from espnet_pinch.asr.head import ASR
from espnet_pinch.core.mixed_bits import build_quantization
from espnet_pinch.core.parameters import Parameters
from espnet_pinch.data.kaldi_dir import read_table
from espnet_pinch.data.source import named
from espnet_pinch.data.spelling import UnknownCharacters, describe
from espnet_pinch.data.text_changes import read_record
from espnet_pinch.errors import UserError
from espnet_pinch.files import read_json, write_text
from espnet_pinch.progress import progress_bar
from espnet_pinch.results.confusions import Compared, appendix
from espnet_pinch.results.plots import plot_course, plot_layers, plot_widths
from espnet_pinch.results.records import Results, SetScore, SystemFigures
from espnet_pinch.results.scoring import read_texts, score_files
from espnet_pinch.results.significance import compare_files
from espnet_pinch.results.unit import AUTO, CER, ERROR, WER, Unit, choose_unit


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Folders of a trained, folded and decoded system.

    Attributes:
        folder: ``exp/.../asr_TAG``.
        decoded: name of its decoding folder, such as "decode_ctc_greedy".
        references: ``dump/.../raw``, whose SET/text are the references.
        sets: names of the sets to score.
        part: of a run with several targets, the one of this system, such as "0.65"; "" where there is one alone. The
            model is in folded/0.65, everything else that is made of it in 0.65.
    """

    folder: Path
    decoded: str
    references: Path
    sets: tuple[str, ...]
    part: str = ""

    @property
    def folded(self) -> Path:
        return self.folder / "folded" / self.part

    def reference(self, name: str) -> Path:
        return self.references / name / "text"

    def hypothesis(self, name: str) -> Path:
        return self.folder / self.part / self.decoded / name / "text"

    def upstream_source(self) -> dict | None:
        """What was known of the upstream's origin when its weights were read; None of runs that did not note it."""
        with open(self.folded / "config.yaml", encoding="utf-8") as file:
            return yaml.safe_load(file)["frontend_conf"].get("built", {}).get("source")

    def parameters(self) -> Parameters:
        return Parameters.read(self.folded / "parameters.json")

    def figures(self, unit: Unit) -> SystemFigures:
        """Score the system, and gather what else is known of it.

        Args:
            unit: what errors are counted in.
        """
        parameters = self.parameters()
        sets = progress_bar(self.sets, desc=f"scoring {self.folder.name}", unit="sets")
        scores = {name: score_files(self.reference(name), self.hypothesis(name), unit) for name in sets}
        epochs = history.read(self.folder)
        phases = [figures for epoch in epochs.values() for figures in epoch.values()]
        points = [point for epoch in epochs.values() for point in epoch.get("train", {}).get("points", [])]
        return SystemFigures(
            experiment=str(self.folder),
            upstream_source=self.upstream_source(),
            sparsity=parameters.sparsity,
            params_total=parameters.params_total,
            params_kept=parameters.params_kept,
            params_stored=parameters.params_stored,
            extra_trained_parameters=parameters.extra_trained_parameters,
            compression_ratio=parameters.params_total / parameters.params_kept,
            macs=parameters.macs,
            macs_total=parameters.macs_total,
            wer=scores,
            seconds=sum(figures["seconds"] for figures in phases),
            peak_memory_bytes=max((figures["peak_memory_bytes"] for figures in phases), default=0),
            epochs=len(epochs),
            iterations=points[-1]["iteration"] if points else 0,
            device=phases[-1].get("device", "") if phases else "",
        )


def write_report(
    out: Path,
    run: Experiment,
    baseline: Experiment,
    upstream: str,
    corpus: str = "",
    command: str = "",
    measure: Callable[[list[Path]], list[dict]] | None = None,
    error_rate: str = AUTO,
) -> Results:
    """Score both systems, write the report to ``out``, and return what is in its results.json.

    Args:
        out: folder of RESULTS.md, results.json and images/.
        run, baseline: the two systems.
        upstream: name of the upstream, such as "wav2vec2_base".
        corpus: name of the corpus, such as "librispeech_100".
        command: the command line that made it.
        measure: from folders of folded models to the figures of each that have to be measured: ``forward_seconds``,
            ``forward_device``, ``file_bytes``.
        error_rate: which comes first, as ``choose_unit`` takes it.

    Raises:
        UserError: the two systems are of different upstreams.
    """
    first, second = baseline.upstream_source(), run.upstream_source()
    if first and second and any(first[key] != second[key] for key in ("upstream", "commit")):
        raise UserError(
            f"{baseline.folder} is of the upstream {named(first)}, and {run.folder} of {named(second)}: they cannot be "
            "compared; train both from one (stage 4)"
        )
    with open(run.folder / "config.yaml", encoding="utf-8") as file:
        config = yaml.safe_load(file)
    pruning = config["pruning"]
    prunes, quantization = pruning["method"] != "dense", build_quantization(config.get("quantize"))
    references = (text for name in run.sets for text in read_table(run.reference(name)).values())
    unit = choose_unit(error_rate, references, config.get("task", ASR))
    measured: list[dict] = measure([baseline.folded, run.folded]) if measure else [{}, {}]
    results = Results(
        upstream=upstream,
        corpus=corpus,
        method=pruning["method"],
        target_sparsity=_target(pruning.get("target_sparsity"), run.part) if prunes else 0.0,
        target_macs=_target(pruning.get("target_macs"), run.part) if prunes else None,
        seed=config["seed"],
        settings={
            **{k: v for k, v in (pruning.get(pruning["method"]) or {}).items() if k != "layer_sparsities"},
            **({"budget": "multiplications"} if pruning.get("target_macs") is not None else {}),
            **({"targets in one run": " ".join(map(str, _targets(pruning)))} if run.part else {}),
            **{f"distill {k}": v for k, v in (config.get("distill") or {}).items()},
            **{f"quantize {k}": v for k, v in (quantization.settings.chosen if quantization else {}).items()},
            "lr": config["optim_conf"].get("lr"),
            "max_epoch": config["max_epoch"],
        },
        figures=dataclasses.replace(run.figures(unit), **measured[1]),
        decoded=run.decoded,
        references=str(run.references),
        baseline=dataclasses.replace(baseline.figures(unit), **measured[0]),
        significance={
            name: compare_files(run.reference(name), baseline.hypothesis(name), run.hypothesis(name), unit)
            for name in progress_bar(run.sets, desc="testing significance", unit="sets")
        },
        unknown_characters=_unknown_characters(run.references),
        text_steps=read_record(run.references),
        error_rate=unit.rate,
        error_rate_why=unit.why,
        command=command,
    )
    epochs = history.read(run.folder)
    plot_course(epochs, out / "images" / "course", max(_targets(pruning)) if prunes else None)
    parameters = run.parameters()
    plot_layers(parameters.layers, out / "images" / "layers")
    if parameters.widths:
        plot_widths(parameters.widths, out / "images" / "widths")
    wrong = appendix(_compared(run, baseline, unit), system_name(results), "labels" if unit.rate == ERROR else unit.of)
    write_text(out / "RESULTS.md", "\n".join([markdown(results, bool(parameters.widths)), *wrong]))
    results.write(out / "results.json")
    return results


def _compared(run: Experiment, baseline: Experiment, unit: Unit) -> list[Compared]:
    """All utterances of both systems."""
    found = []
    for name in run.sets:
        references, before, after = read_texts(run.reference(name), baseline.hypothesis(name), run.hypothesis(name))
        for id_, text in references.items():
            found.append(Compared(f"{name} {id_}", *map(unit.split, (text, before[id_], after[id_]))))
    return found


_TESTS = {
    "MAPSSWE": "MAPSSWE (matched pairs sentence-segment word error test)",
    "McNemar's exact test": "McNemar's exact test on the utterances that one of the two alone has wrong",
}


def markdown(results: Results, widths: bool = False) -> str:
    """The report as Markdown.

    Args:
        widths: whether there is a picture of them.
    """
    source = results.figures.upstream_source
    return "\n".join(
        [
            f"# {results.upstream}: {system_name(results)} beside its baseline",
            "",
            *table(results),
            "",
            "Against the baseline, positive where the run is worse:",
            "",
            *significance_table(results),
            "",
            *(
                [f"Upstream: {named(source, results.upstream)}; licence: {source['licence'] or 'not known'}."]
                if source
                else []
            ),
            f"Made by `{results.command}`. Error rates are of this run, none is the paper's.",
            "Hours are of training and validation; the baseline's are 0 where a published model is used as it is.",
            f"{_TESTS[results.unit.test]}, alpha = 0.05; intervals by paired bootstrap.",
            *_note_on_text(results),
            *_note_on_characters(results.unknown_characters),
            "",
            "![The course of the run](images/course.png)",
            "",
            "![Sparsity of every gated layer](images/layers.png)",
            "",
            *(["![Filters, channels and heads that are left](images/widths.png)", ""] if widths else []),
        ]
    )


def _target(given: float | list[float] | None, part: str) -> float | None:
    """The target of a system: the one that is given, or that of several which ``part`` names."""
    return float(part) if isinstance(given, list) else given


def _targets(pruning: dict) -> list[float]:
    """The targets of a run, one or several."""
    given: Any = pruning.get("target_macs") if pruning.get("target_sparsity") is None else pruning["target_sparsity"]
    return given if isinstance(given, list) else [given]


def _unknown_characters(dump: Path) -> dict:
    """What stage 2 has noted of characters that the vocabulary lacks; empty where it has not."""
    path = dump / "unknown_characters.json"
    return read_json(path) if path.is_file() else {}


def _note_on_text(results: Results) -> list[str]:
    """What was done to the texts before they were compared, and in what their errors are counted."""
    lines = []
    if names := results.text_steps.get("steps"):
        changed = sum(counts["changed"] for counts in results.text_steps["sets"].values())
        lines.append(
            f"Steps over all transcripts, references and hypotheses: {' '.join(names)}; they changed {changed:,} "
            "transcripts of the data (text_changes/ beside them has each)."
        )
    if results.unit.rate == CER:
        lines.append(f"Errors are counted in characters first: {results.unit.why}.")
    return lines


def _note_on_characters(unknown: dict) -> list[str]:
    total = Counter(unknown.get("characters", {}).get("all", {}))
    if not total:
        return []
    return [
        f"Not in the vocabulary, in all sets: {describe(total)}. The training has "
        f"{UnknownCharacters(unknown['policy']).treatment} what it has of them; the references keep them.",
    ]


def system_name(results: Results) -> str:
    bits = f", {results.bits}" if results.bits else ""
    if results.method == "dense":
        return f"dense{bits}"
    of = "" if results.target_macs is None else " of the multiplications"
    return f"{results.method}, target {100 * results.target:g} %{of}{bits}"


def table(results: Results) -> list[str]:
    """Lines of a Markdown table, the baseline and the run in columns; WER and CER in per cent, the main one first.

    Of a classifier they are the error rate and the accuracy.
    """
    sets, unit = list(results.figures.wer), results.unit
    other = {WER: "CER", CER: "WER", ERROR: "accuracy"}[unit.rate]
    rows: dict[str, Callable[[SystemFigures], str]] = {
        "sparsity %": lambda f: f"{100 * f.sparsity:.2f}",
        "parameters kept, M": lambda f: f"{f.params_kept / 1e6:.3f}",
        "compression ratio": lambda f: f"{f.compression_ratio:.2f}",
        "seconds for 10 s of audio": lambda f: "-" if f.forward_seconds is None else f"{f.forward_seconds:.3f}",
        "MB of the smallest file": lambda f: "-" if f.file_bytes is None else f"{f.file_bytes / 1e6:.2f}",
        "multiplications for 10 s of audio, G": lambda f: "not recorded" if f.macs is None else f"{f.macs / 1e9:.3f}",
        "extra trained parameters": lambda f: f"{f.extra_trained_parameters}",
        **{f"{name} {unit.title} % (errors/{unit.of})": _cell(name, partial(_rate, unit)) for name in sets},
        **{f"{name} {other} %": _cell(name, lambda score: f"{100 * _other(score, other):.2f}") for name in sets},
        "hours": lambda f: f"{f.seconds / 3600:.2f}",
        "iterations": lambda f: f"{f.iterations}",
        "peak memory GB": lambda f: f"{f.peak_memory_bytes / 1e9:.2f}",
        "device": lambda f: f.device,
    }
    lines = [[title, cell(results.baseline), cell(results.figures)] for title, cell in rows.items()]
    return markdown_table(["", "baseline", system_name(results)], lines)


def _other(score: SetScore, title: str) -> float:
    return 1 - score.wer if title == "accuracy" else getattr(score, title.lower())


def _cell(name: str, text: Callable[[SetScore], str]) -> Callable[[SystemFigures], str]:
    """From figures to what ``text`` makes of the score of the set ``name``."""
    return lambda figures: text(figures.wer[name])


def significance_table(results: Results) -> list[str]:
    """Lines of a Markdown table, a row for each set."""
    unit = results.unit
    head = [
        "set",
        f"{unit.title} difference, points",
        "95 % interval",
        *(["baseline alone wrong", "run alone wrong"] if unit.rate == ERROR else ["segments", "errors a segment"]),
        "p two-sided",
    ]
    head += ["p one-sided", "increase"]
    lines = [
        [
            name,
            f"{test.wer_difference:+.2f}",
            f"{test.bootstrap_low:+.2f} to {test.bootstrap_high:+.2f}",
            *(map(str, test.alone) if unit.rate == ERROR else (f"{test.segments}", f"{test.mean_difference:+.3f}")),
            f"{test.p_two_sided:.4f}",
            f"{test.p_one_sided:.4f}",
            "significant" if test.significant_increase else "not significant †",
        ]
        for name, test in results.significance.items()
    ]
    return markdown_table(head, lines)


def markdown_table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows]]


def _rate(unit: Unit, score: SetScore) -> str:
    errors, total = score.counts(unit)
    return f"{100 * errors / total:.2f} ({errors}/{total})"
