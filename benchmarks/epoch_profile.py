"""Where the time of a training epoch goes, from what finished runs of the recipe have recorded: a row for each run.

The forward pass has the gates' masks, the optimizer step what the method does after it. What is left of the training is
gradient clipping and the figures of every batch. Between epochs lie checkpoints and the log.
"""

import argparse
import re
from datetime import datetime
from pathlib import Path

import yaml
from measure import print_table

from espnet_pinch.asr import history
from espnet_pinch.errors import UserError

PARTS = ("loading", "forward", "backward", "optimizer step", "rest of training", "validation", "between epochs")
OVERHEAD = ("loading", "rest of training", "between epochs")  # neither the model nor its optimizer
_LINE = re.compile(
    r"\[.*?\] ([\d-]+ [\d:]+,\d+) \(trainer:\d+\) INFO: (?:(\d+)/\d+epoch started|The training was finish)"
)


def profile(folder: Path) -> dict[int, dict[str, float]]:
    """``{epoch: {part: seconds}}`` of the epochs that ran from their start to their end without a break.

    Raises:
        FileNotFoundError, UserError: the folder is not that of a run, or a file is damaged.
    """
    accumulated = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["accum_grad"]
    whole = wall_seconds((folder / "train.log").read_text(encoding="utf-8", errors="replace"))
    found, before = {}, 0
    for epoch, phases in history.read(folder).items():
        train, valid = phases["train"], phases["valid"]
        batches = train["points"][-1]["iteration"] - before
        before += batches
        parts = {
            "loading": train["iter_time"] * batches,
            "forward": train["forward_time"] * batches,
            "backward": train["backward_time"] * batches,
            "optimizer step": train["optim_step_time"] * (batches // accumulated),
        }
        parts["rest of training"] = train["seconds"] - sum(parts.values())
        parts["validation"] = valid["seconds"]
        parts["between epochs"] = whole.get(int(epoch), 0.0) - train["seconds"] - valid["seconds"]
        if parts["rest of training"] >= 0 and parts["between epochs"] >= 0:
            found[int(epoch)] = parts
    if not found:
        raise UserError(f"{folder}: no epoch ran from its start to its end, so nothing can be said")
    return found


def wall_seconds(log: str) -> dict[int, float]:
    """Seconds from the start of each epoch to the next one's, or to the end of the training, as the log says."""
    marks = [(datetime.strptime(m[1], "%Y-%m-%d %H:%M:%S,%f"), m[2]) for m in map(_LINE.match, log.split("\n")) if m]
    pairs = zip(marks, marks[1:])
    return {
        int(epoch): (end - start).total_seconds()
        for (start, epoch), (end, following) in pairs
        if epoch and following in (None, str(int(epoch) + 1))
    }


def main(arguments: list[str] | None = None) -> None:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run, exp/.../asr_...")
    rows = []
    for folder in made.parse_args(arguments).runs:
        epochs, recorded = profile(folder), history.read(folder)
        seconds = {part: sum(parts[part] for parts in epochs.values()) for part in PARTS}
        total = sum(seconds.values())
        shares = [f"{100 * seconds[part] / total:.1f}" for part in PARTS]
        overhead = 100 * sum(seconds[part] for part in OVERHEAD) / total
        device = next(iter(recorded.values()))["train"]["device"]
        rows.append([folder.name, device, str(len(epochs)), f"{total / len(epochs):.1f}", *shares, f"{overhead:.1f}"])
        if left_out := [epoch for epoch in recorded if int(epoch) not in epochs]:
            print(f"{folder.name}: left out, as they were interrupted: epochs {', '.join(left_out)}\n")
    head = ["run", "device", "epochs", "s an epoch", *(f"{part} %" for part in PARTS), f"{' + '.join(OVERHEAD)} %"]
    print_table(head, rows)


if __name__ == "__main__":
    main()
