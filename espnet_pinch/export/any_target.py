"""The models of a trained run: of the targets that it was trained for, and of any other, without more training."""

import copy
import dataclasses
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import yaml

from espnet_pinch.asr.checkpoint import load_model, write_folded
from espnet_pinch.asr.decode import decode_data_dir
from espnet_pinch.asr.head import ASR, find_head, on_target
from espnet_pinch.asr.pruned import PrunedModel
from espnet_pinch.asr.resume import average_again, owned
from espnet_pinch.asr.safe_load import damage
from espnet_pinch.core.methods.dense import Dense
from espnet_pinch.core.methods.pinch import Pinch
from espnet_pinch.core.parameters import Parameters
from espnet_pinch.core.quantize import MIXED, QuantizeSettings
from espnet_pinch.core.settings import check_number
from espnet_pinch.errors import UserError
from espnet_pinch.results.scoring import score_files
from espnet_pinch.results.unit import unit_of

STEP = 0.005  # of the target, between the models that a search may find
HIGHEST = 0.98


class Trained:
    """A run after its training, landed on all of its targets.

    Args:
        exp: its folder.
        checkpoint: name of a file in it; None for the mean of the best epochs. Such a mean that is missing or damaged
            is written again.
        say: is told so.
        quantize: of a run without bits, how to round what ``at`` returns: a YAML's ``quantize:`` block.

    Raises:
        FileNotFoundError: as ``load_model``.
        UserError: as ``load_model``; or the run has bits already, or ``quantize`` asks for such as are learnt.
    """

    def __init__(
        self,
        exp: Path,
        checkpoint: str | None = None,
        say: Callable[[str], None] = print,
        quantize: dict | None = None,
    ):
        if not (exp / "config.yaml").is_file():
            raise FileNotFoundError(f"{exp} is not the folder of a trained run: it has no config.yaml")
        if checkpoint is None and (exp / "model.pth").is_file():
            raise UserError(f"{exp} is a folded model: give the folder of its run")
        checkpoint = checkpoint or mean_of_best(exp)
        self.exp, file = exp, exp / checkpoint
        if quantize and quantize.get("bits") == MIXED:
            raise UserError(f"bits: {MIXED} are learnt in a training; after it, give one width")
        self.bits = QuantizeSettings(**quantize) if quantize else None
        if ".ave" in checkpoint and (not file.exists() or damage(file)):
            say(f"warning: {file} is missing or damaged: written again from the best epochs")
            with open(exp / "config.yaml", encoding="utf-8") as config:
                trained = yaml.safe_load(config)
            with owned(exp):
                average_again(exp, trained["best_model_criterion"], trained["keep_nbest_models"])
        self.model, self.config = load_model(exp / "config.yaml", file)
        if quantize and self.model.quantization:
            raise UserError(f"{exp} was trained with bits already, which the folded model keeps")
        self.model.land()

    @property
    def targets(self) -> tuple[float, ...]:
        """The targets that it was trained for; none of a run that prunes nothing."""
        return () if isinstance(self.model.pruning, Dense) else self.model.pruning.targets

    def at(self, target: float | None, rounded: bool = True) -> PrunedModel:
        """A copy of the model that is landed on ``target``, whether it was trained for it or not.

        Args:
            target: of the kind that the run has; None for a run that has none.
            rounded: quantised, if that was asked for.

        Raises:
            UserError: it was not, and the run is not one of pinch; or a target that is none, or out of reach.
        """
        model = copy.deepcopy(self.model)
        if target in self.targets:
            model.pruning.use(target)
        elif target is not None:
            self._pinch_of(model).aim(target)
        if rounded and self.bits:
            model.quantize(dataclasses.asdict(self.bits))
        return model

    def _pinch_of(self, model: PrunedModel) -> Pinch:
        if not isinstance(model.pruning, Pinch):
            name = self.config.pruning.get("method")
            raise UserError(
                f"{self.exp} is a run of {name}; only the thresholds of pinch give other targets without training"
            )
        return model.pruning

    def fold(self, target: float | None, out: Path) -> Parameters:
        """Write the model of a target, as ``at`` and ``write_folded``."""
        return write_folded(self.at(target), self.config, out)

    def sparsest(self, increase: float, data: Path, batch_size: int = 8, say: Callable[[str], None] = print) -> float:
        """The highest target whose error rate exceeds that of the lowest trained one by no more than ``increase``.

        That reference is not quantised. Bisected in steps of ``STEP`` up to ``HIGHEST``, as if the error rate rose with
        the target.

        Args:
            increase: points of WER, or of a classifier's error rate, 0 or more.
            data: a data directory with a text.
            say: is told of each model that was tried.

        Raises:
            UserError: as ``check_number``; or the run is not one of pinch; or no target is within that.
        """
        check_number("the increase of the WER", increase)
        self._pinch_of(self.model)
        lowest = self.targets[0]
        low, high = math.floor(lowest / STEP), round(HIGHEST / STEP) + 1
        most = self._wer(self.at(lowest, rounded=False), data, batch_size)
        rate = self.model.kind.rates[self.model.kind.rate].title
        say(f"target {100 * lowest:g} %: {rate} {most:.2f} %, the reference")
        if self.bits:
            wer = self._wer(self.at(lowest), data, batch_size)
            say(f"target {100 * lowest:g} %, {self.bits.name}: {rate} {wer:.2f} %")
            if wer > most + increase:
                raise UserError(
                    f"no target is within {increase:g} points: with these bits the lowest, {100 * lowest:g} %, has "
                    f"{rate} {wer:.2f} % instead of {most:.2f} %; give more bits or points"
                )
        while high - low > 1:
            middle = (low + high) // 2
            try:
                wer = self._wer(self.at(middle * STEP), data, batch_size)
            except UserError:  # the floors of the units do not allow the target
                wer = math.inf
            say(f"target {100 * middle * STEP:g} %: " + (f"{rate} {wer:.2f} %" if wer < math.inf else "out of reach"))
            low, high = (middle, high) if wer <= most + increase else (low, middle)
        return max(round(low * STEP, 6), lowest)

    @staticmethod
    def _wer(model: PrunedModel, data: Path, batch_size: int) -> float:
        """The error rate in per cent."""
        model.fold()
        with tempfile.TemporaryDirectory() as folder:
            decode_data_dir(model, data, folder, batch_size)
            return 100 * score_files(data / "text", Path(folder) / "text", unit_of(model.task)).wer


def mean_of_best(exp: Path) -> str:
    """The name of the mean of the best epochs, in the folder of a run."""
    with open(exp / "config.yaml", encoding="utf-8") as config:
        head = find_head(yaml.safe_load(config).get("task", ASR))
    return f"valid.{on_target(head.rate)}.ave.pth"
