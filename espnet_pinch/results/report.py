"""One experiment beside its baseline: ``results.json``, ``RESULTS.md`` and pictures in the experiment's folder."""

import dataclasses
from pathlib import Path

import yaml

from espnet_pinch.asr import history
from espnet_pinch.files import read_json, write_json, write_text
from espnet_pinch.results.plots import plot_course, plot_layers
from espnet_pinch.results.scoring import score_files


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Folders of a trained, folded and decoded system.

    Attributes:
        folder: ``exp/.../asr_TAG``.
        decoded: name of its decoding folder, such as "decode_ctc_greedy".
        references: ``dump/.../raw``, whose SET/text are the references.
        sets: names of the sets to score.
    """

    folder: Path
    decoded: str
    references: Path
    sets: tuple[str, ...]

    def figures(self) -> dict:
        """Sparsity, parameters, error rates, and the cost of training (0 epochs where nothing was trained)."""
        parameters = read_json(self.folder / "folded" / "parameters.json")
        keys = ("sparsity", "params_total", "params_kept", "extra_trained_parameters")
        scores = {
            name: score_files(self.references / name / "text", self.folder / self.decoded / name / "text")
            for name in self.sets
        }
        return {
            "experiment": str(self.folder),
            **{key: parameters[key] for key in keys},
            "compression_ratio": parameters["params_total"] / parameters["params_kept"],
            "wer": scores,
            **history.summary(self.folder),
        }


def write_report(out: Path, run: Experiment, baseline: Experiment, upstream: str, command: str) -> dict:
    """Score both systems, write the report to ``out``, and return what is in ``results.json``.

    Args:
        out: folder of RESULTS.md, results.json and images/.
        run, baseline: the two systems.
        upstream: name of the upstream, such as "wav2vec2_base".
        command: the command line that made it.
    """
    with open(run.folder / "config.yaml", encoding="utf-8") as file:
        pruning = yaml.safe_load(file)["pruning"]
    prunes = pruning["method"] != "dense"
    results = {
        "upstream": upstream,
        "method": pruning["method"],
        "target_sparsity": pruning["target_sparsity"] if prunes else 0.0,
        **run.figures(),
        "baseline": baseline.figures(),
        "command": command,
    }
    epochs = history.read(run.folder)
    plot_course(epochs, out / "images" / "course", results["target_sparsity"] if prunes else None)
    plot_layers(read_json(run.folder / "folded" / "parameters.json")["layers"], out / "images" / "layers")
    write_json(out / "results.json", results)
    write_text(out / "RESULTS.md", markdown(results))
    return results


def markdown(results: dict) -> str:
    """The report of ``results.json`` as Markdown."""
    systems = [("baseline", results["baseline"]), (system_name(results), results)]
    return "\n".join(
        [
            f"# {results['upstream']}: {system_name(results)} beside its baseline",
            "",
            *table(systems),
            "",
            f"Made by `{results['command']}`. Error rates are of this run, none is the paper's.",
            "Hours are of training and validation; the baseline's are 0 where a published model is used as it is.",
            "",
            "![The course of the run](images/course.png)",
            "",
            "![Sparsity of every gated layer](images/layers.png)",
            "",
        ]
    )


def system_name(results: dict) -> str:
    if results["method"] == "dense":
        return "dense"
    return f"{results['method']}, target {100 * results['target_sparsity']:g} %"


def table(systems: list[tuple[str, dict]]) -> list[str]:
    """Lines of a Markdown table: a column for each system; WER and CER in per cent, (errors/words) behind the WER."""
    sets = list(systems[0][1]["wer"])
    rows = {
        "sparsity %": lambda r: f"{100 * r['sparsity']:.2f}",
        "parameters M": lambda r: f"{r['params_kept'] / 1e6:.3f}",
        "compression ratio": lambda r: f"{r['compression_ratio']:.2f}",
        **{f"{name} WER % (errors/words)": lambda r, name=name: _wer(r["wer"][name]) for name in sets},
        **{f"{name} CER %": lambda r, name=name: f"{100 * r['wer'][name]['cer']:.2f}" for name in sets},
        "hours": lambda r: f"{r['seconds'] / 3600:.2f}",
        "peak memory GB": lambda r: f"{r['peak_memory_bytes'] / 1e9:.2f}",
    }
    lines = [["", *(name for name, _ in systems)], ["---"] * (len(systems) + 1)]
    lines += [[title, *(cell(figures) for _, figures in systems)] for title, cell in rows.items()]
    return [f"| {' | '.join(line)} |" for line in lines]


def _wer(score: dict) -> str:
    return f"{100 * score['wer']:.2f} ({score['errors']}/{score['words']})"
