"""The runs of an experiment folder: what is finished, what is not, and what is broken."""

import dataclasses
import json
import statistics
from collections import defaultdict
from pathlib import Path

from espnet_pinch.asr import history
from espnet_pinch.core.registry import all_methods
from espnet_pinch.errors import UserError
from espnet_pinch.files import read_json

BASELINE = "baseline"  # in the place of a method: the system that all others are compared with
NEEDED: tuple[str, ...] = (
    "upstream",
    "method",
    "target_sparsity",
    "seed",
    "wer",
    "significance",
    "baseline",
    "params_kept",
)
NEEDED += ("seconds", "decoded", "references")


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Attributes:
        folder: ``exp/CORPUS/asr_TAG``.
        results: what is in its results.json; None where it has none that can be read.
        state: "finished", or in a few words why there are no results.
    """

    folder: Path
    results: dict | None
    state: str


def read_runs(exp: Path) -> list[Run]:
    """All runs in ``exp``, baselines excepted.

    Raises:
        FileNotFoundError: no such folder.
    """
    if not exp.is_dir():
        raise FileNotFoundError(f"the experiment folder {exp} does not exist")
    # Folders asr_stats_* are left from earlier releases.
    folders = [folder for folder in sorted(exp.glob("asr_*")) if folder.is_dir()]
    return [_read(f) for f in folders if not f.name.startswith("asr_stats") and not f.name.endswith("_baseline")]


def _read(folder: Path) -> Run:
    path = folder / "results.json"
    if not path.is_file():
        try:
            epochs = len(history.read(folder))
        except UserError:
            return Run(folder, None, "broken: history.json is not JSON")
        return Run(folder, None, f"not finished: {epochs} epochs trained")
    try:
        results = read_json(path)
        missing = [key for key in NEEDED if key not in results]
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError):
        return Run(folder, None, "broken: results.json is not JSON")
    if not missing and results["method"] not in all_methods():
        return Run(folder, None, f"of the unknown method {results['method']!r}")
    if missing:
        return Run(folder, None, f"broken: results.json has no {missing[0]}; score it again with stage 6")
    return Run(folder, {**results, "experiment": str(folder)}, "finished")  # wherever it has been moved to


@dataclasses.dataclass(frozen=True)
class System:
    """A method at a target sparsity: one run, or several that differ in their seed.

    Attributes:
        runs: ``results.json`` of each.
        variant: where runs of a method differ in their settings, those of this one: "eta 3e-05, threshold_lr None".
    """

    upstream: str
    method: str
    target: float
    runs: tuple[dict, ...]
    variant: str = ""

    @property
    def test_sets(self) -> tuple[str, ...]:
        return tuple(name for name in self.runs[0]["wer"] if name.startswith("test"))

    def mean(self, key: str) -> float:
        return statistics.fmean(run[key] for run in self.runs)

    def wers(self, sets: tuple[str, ...]) -> list[float]:
        """WER of each run in per cent, over ``sets`` together."""
        return [
            100 * sum(run["wer"][s]["errors"] for s in sets) / sum(run["wer"][s]["words"] for s in sets)
            for run in self.runs
        ]

    def lossless(self, sets: tuple[str, ...]) -> bool:
        """Whether no run's WER on any of ``sets`` is significantly higher than the baseline's."""
        return not any(run["significance"][s]["significant_increase"] for run in self.runs for s in sets)


def systems(runs: list[Run]) -> list[System]:
    """Finished runs by upstream, method, settings and target; of each upstream the baseline comes first."""
    finished = [run.results for run in runs if run.results]
    variants = _variants(finished)
    found: dict[tuple, list[dict]] = defaultdict(list)
    for r, variant in zip(finished, variants):
        found[r["upstream"], r["method"], r["target_sparsity"], variant].append(r)
    for upstream in dict.fromkeys(key[0] for key in found):
        newest = next(rs[-1] for key, rs in found.items() if key[0] == upstream)
        same = {s: {"significant_increase": False} for s in newest["wer"]}
        found[upstream, BASELINE, 0.0, ""] = [{**newest["baseline"], "significance": same}]
    keys = sorted(found, key=lambda key: (key[0], rank(key[1]), key[3], key[2]))
    return [System(key[0], key[1], key[2], tuple(found[key]), key[3]) for key in keys]


def rank(method: str) -> int:
    """The place of a method in tables: the baseline first, then as the registry has them."""
    return 0 if method == BASELINE else 1 + list(all_methods()).index(method)


def _variants(finished: list[dict]) -> list[str]:
    """For each run the settings in which the runs of its upstream and method differ; "" where they are all alike."""
    settings: dict[tuple, list[dict]] = defaultdict(list)
    for r in finished:
        settings[r["upstream"], r["method"]].append(r.get("settings", {}))
    names = []
    for r in finished:
        group, own = settings[r["upstream"], r["method"]], r.get("settings", {})
        differing = [key for key in own if any(other.get(key) != own[key] for other in group)]
        names.append(", ".join(f"{key} {own[key]}" for key in differing))
    return names
