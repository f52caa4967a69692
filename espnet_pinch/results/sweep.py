"""The runs of an experiment folder: what is finished, what is not, and what is broken."""

import dataclasses
import statistics
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from espnet_pinch.asr import history
from espnet_pinch.core.registry import all_methods
from espnet_pinch.errors import UserError
from espnet_pinch.results.records import AVERAGE_BITS, BITS, Results, SystemFigures
from espnet_pinch.results.unit import Unit

NOT_PAPERS = ("budget", "targets in one run", "distill ", "quantize ")  # settings of what the paper has not
BASELINE = "baseline"  # in the place of a method: the system that all others are compared with


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Attributes:
        folder: ``exp/CORPUS/asr_TAG``.
        results: what is in its results.json; None where it has none that can be read.
        state: "finished", or in a few words why there are no results.
    """

    folder: Path
    results: Results | None
    state: str


def read_runs(exp: Path) -> list[Run]:
    """All runs in ``exp``, baselines excepted.

    Raises:
        FileNotFoundError: no such folder.
        UserError: it is the folder above: its runs are those of several corpora.
    """
    if not exp.is_dir():
        raise FileNotFoundError(f"the experiment folder {exp} does not exist")
    # Folders asr_stats_* are left from earlier releases.
    folders = [folder for folder in sorted(exp.glob("asr_*")) if folder.is_dir()]
    if not folders and (corpora := sorted({str(folder.parent) for folder in exp.glob("*/asr_*")})):
        raise UserError(f"{exp} has no runs, but folders with runs: give one of {', '.join(corpora)}")
    folders = [f for f in folders if not f.name.startswith("asr_stats") and not f.name.endswith("_baseline")]
    return [_read(part) for folder in folders for part in _parts(folder)]


def _parts(folder: Path) -> list[Path]:
    """Where the results of a run are: in its folder, or in one folder for each of several targets that is scored."""
    return sorted(path.parent for path in folder.glob("[0-9]*/results.json")) or [folder]


def _read(folder: Path) -> Run:
    path = folder / "results.json"
    if not path.is_file():
        try:
            epochs = len(history.read(folder))
        except UserError:
            return Run(folder, None, "broken: history.json is not JSON")
        return Run(folder, None, f"not finished: {epochs} epochs trained")
    try:
        results = Results.read(path)
    except UserError as error:
        return Run(folder, None, f"broken: {str(error).removeprefix(f'{folder}/')}")  # the folder is named already
    if results.method not in all_methods():
        return Run(folder, None, f"of the unknown method {results.method!r}")
    figures = dataclasses.replace(results.figures, experiment=str(folder))  # wherever it has been moved to
    return Run(folder, dataclasses.replace(results, figures=figures), "finished")


@dataclasses.dataclass(frozen=True)
class System:
    """A method at a target sparsity: one run, or several that differ in their seed.

    Attributes:
        runs: results of each; the baseline's have no significance.
        variant: where runs of a method differ in their settings, those of this one: "eta 3e-05, threshold_lr None".
    """

    upstream: str
    method: str
    target: float
    runs: tuple[Results, ...]
    variant: str = ""

    @property
    def is_papers(self) -> bool:
        """Whether it is like the paper's systems: one target of the weights, which are neither taught nor rounded."""
        if self.method == BASELINE:  # its runs are those that are compared with it
            return True
        own = self.runs[0].settings
        return own.get("unit", "weight") == "weight" and not any(key.startswith(NOT_PAPERS) for key in own)

    @property
    def sets(self) -> tuple[str, ...]:
        """The sets that all of its runs were scored on."""
        first, *others = (run.figures.wer for run in self.runs)
        return tuple(name for name in first if all(name in scores for scores in others))

    def mean(self, figure: Callable[[SystemFigures], float]) -> float:
        return statistics.fmean(figure(run.figures) for run in self.runs)

    @property
    def unit(self) -> Unit:
        """What errors are counted in first."""
        return self.runs[0].unit

    def wers(self, sets: tuple[str, ...]) -> list[float]:
        """WER of each run in per cent, over ``sets`` together; CER where errors are counted in characters first."""
        counts = [[run.figures.wer[name].counts(self.unit) for name in sets] for run in self.runs]
        return [100 * sum(errors for errors, _ in own) / sum(total for _, total in own) for own in counts]

    def lossless(self, sets: tuple[str, ...]) -> bool:
        """Whether no run's WER on any of ``sets`` is significantly higher than the baseline's."""
        return not any(run.significance[s].significant_increase for run in self.runs for s in sets)


def systems(runs: list[Run]) -> list[System]:
    """Finished runs by upstream, method, settings and target; of each upstream the baseline comes first."""
    finished = [run.results for run in runs if run.results]
    variants = _variants(finished)
    found: dict[tuple, list[Results]] = defaultdict(list)
    for r, variant in zip(finished, variants):
        found[r.upstream, r.method, r.target, variant].append(r)
    for upstream in dict.fromkeys(key[0] for key in found):
        runs_of_it = [rs for key, rs in found.items() if key[0] == upstream]
        newest = runs_of_it[0][-1]
        scores = {name: score for rs in runs_of_it for r in rs for name, score in r.baseline.wer.items()}
        figures = dataclasses.replace(newest.baseline, wer=scores | newest.baseline.wer)  # of all sets of any run
        found[upstream, BASELINE, 0.0, ""] = [dataclasses.replace(newest, figures=figures, significance={})]
    keys = sorted(found, key=lambda key: (key[0], rank(key[1]), key[3], key[2]))
    return [System(key[0], key[1], key[2], tuple(found[key]), key[3]) for key in keys]


def all_sets(found: list[System]) -> tuple[str, ...]:
    """The sets that any run of these systems was scored on."""
    return tuple(dict.fromkeys(name for system in found for run in system.runs for name in run.figures.wer))


def common_sets(found: list[System], tests: bool = False) -> tuple[str, ...]:
    """The sets that every run of these systems was scored on: over other sets together no two of them compare.

    Args:
        tests: only those whose names start with "test"; where no set of any run is named so, all sets are.
    """
    sets = all_sets(found)
    if tests:
        sets = tuple(name for name in sets if name.startswith("test")) or sets
    return tuple(name for name in sets if all(name in system.sets for system in found))


def rate_title(found: list[System]) -> str:
    """What ``System.wers`` gives, for headings: "WER" or "CER"."""
    return found[0].unit.title if found else Unit().title


def rank(method: str) -> int:
    """The place of a method in tables: the baseline first, then as the registry has them."""
    return 0 if method == BASELINE else 1 + list(all_methods()).index(method)


def _variants(finished: list[Results]) -> list[str]:
    """For each run its bits, and the settings in which the runs of its upstream and method differ."""
    settings: dict[tuple, list[dict]] = defaultdict(list)
    for r in finished:
        settings[r.upstream, r.method].append(r.settings)
    names = []
    for r in finished:
        group = settings[r.upstream, r.method]
        differing = [
            key
            for key in r.settings
            if key in (BITS, AVERAGE_BITS) or any(other.get(key) != r.settings[key] for other in group)
        ]
        names.append(", ".join(f"{key} {r.settings[key]}" for key in differing))
    return names
