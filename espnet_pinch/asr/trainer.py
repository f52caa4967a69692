"""ESPnet's trainer with the hooks of the pruning method and with checkpoints within an epoch."""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

import torch
from espnet2.train import trainer as espnet_trainer
from espnet2.train.reporter import Reporter, SubReporter, aggregate
from espnet2.train.trainer import Trainer, TrainerOptions
from espnet2.utils.build_dataclass import build_dataclass

from espnet_pinch.asr import history
from espnet_pinch.asr.head import SHORT_OF_TARGET, Head, on_target
from espnet_pinch.asr.resume import MIDDLE, NEWEST, average_best, mend, recover, whole_saves
from espnet_pinch.asr.safe_load import load
from espnet_pinch.asr.scheduler import LinearWarmupDecay
from espnet_pinch.asr.steps import (
    Skipped,
    Steps,
    no_lost_batches,
    pack_figures,
    random_state,
    set_random_state,
    unpack_figures,
)
from espnet_pinch.core.method import PruningMethod
from espnet_pinch.errors import UserError, one_line
from espnet_pinch.progress import duration


@dataclasses.dataclass
class Options(TrainerOptions):
    """ESPnet's options of a trainer, and two more.

    Attributes:
        save_every_steps: optimizer steps between two checkpoints within an epoch; 0 saves only at its end.
        max_skipped_steps: steps in a row without a finite loss and gradient after which the training stops.
    """

    save_every_steps: int
    max_skipped_steps: int


class PruningTrainer(Trainer):
    """Tells the pruning method the length of the run, and computes the error rates of the dev set.

    ``valid.cer`` and ``valid.wer`` are the error rates of greedy decoding over the whole set, as fractions.
    ``valid.wer_on_target`` is ``valid.wer`` if the epoch ends on the target sparsity, and at least 100 otherwise. It is
    the criterion to choose a checkpoint by; ``valid.cer_on_target`` is the same for languages without spaces. Of a
    classifier they are ``valid.error`` and ``valid.error_on_target``. ``Head.rates`` names them.

    A checkpoint from within an epoch has the same keys as ESPnet's at the end of an epoch. Its epoch is the previous
    one. "middle" adds the batches done, the figures of the epoch so far and the state of the random generators. So a
    killed and resumed run has the same result as an uninterrupted one, and saving within epochs does not change it.
    """

    # The current run, for hooks that ESPnet does not pass it to.
    reporter: Reporter
    options: Options
    middle: dict | None = None  # where to resume within the epoch
    skipped: Skipped
    collapsed: frozenset[str] = frozenset()  # layers that a warning has named

    @classmethod
    def build_options(cls, args) -> Options:
        return build_dataclass(Options, args)

    @classmethod
    def run(cls, model, optimizers, schedulers, train_iter_factory, trainer_options, **kwargs) -> None:
        """As ``Trainer.run``.

        Raises:
            UserError: an epoch has fewer batches than ``accum_grad``, so no step; or an earlier run left no intact
                checkpoint to resume from.
            FloatingPointError: the training has diverged.
            OSError: a file cannot be written.
        """
        iterations = train_iter_factory.num_iters_per_epoch or len(train_iter_factory.sampler)
        steps = iterations // trainer_options.accum_grad * trainer_options.max_epoch
        if steps == 0:
            raise UserError(
                f"an epoch has {iterations} batches, fewer than accum_grad {trainer_options.accum_grad}: no step"
            )
        logging.info(f"{steps} optimizer steps: {trainer_options.max_epoch} epochs of {iterations} batches")
        model.pruning.total_steps = steps
        for scheduler in schedulers:
            if isinstance(scheduler, LinearWarmupDecay):
                scheduler.set_total_steps(steps)
        if model.frontend.family.leaves_out_parameters(model.frontend.upstream.config):
            # With several processes torch must know that some parameters get no gradient.
            trainer_options = dataclasses.replace(trainer_options, unused_parameters=True)
        cls.options, cls.middle, cls.reporter = trainer_options, None, Reporter()
        cls.skipped, cls.collapsed = Skipped(trainer_options.max_skipped_steps), frozenset()
        with whole_saves(), no_lost_batches(), _in_espnet(cls.reporter):
            if _rank() == 0:
                recover(Path(trainer_options.output_dir))
            if _processes() > 1:
                torch.distributed.barrier()
            super().run(
                model=model,
                optimizers=optimizers,
                schedulers=schedulers,
                train_iter_factory=train_iter_factory,
                trainer_options=trainer_options,
                **kwargs,
            )
        for target in model.pruning.targets:
            model.pruning.use(target)
            if _rank() == 0 and model.pruning.fell_short():
                print(f"warning: the run ended {_shortfall(model.pruning, target)}", flush=True)

    @staticmethod
    def resume(checkpoint, model, reporter, **kwargs) -> None:
        """As ``Trainer.resume``; also repairs the other files of the folder.

        Raises:
            UserError: the file is not a checkpoint of this model; or as ``espnet_pinch.asr.resume.mend``.
        """
        cls = PruningTrainer
        try:
            Trainer.resume(checkpoint=checkpoint, model=model, reporter=reporter, **kwargs)
        except KeyError as error:
            raise UserError(f"{checkpoint} is not a checkpoint of a training: it has no {error}") from None
        except RuntimeError as error:
            if "state_dict" not in str(error):
                raise
            raise UserError(f"{checkpoint} does not fit the model: {one_line(error)}") from None
        cls.middle = load(checkpoint, map_location="cpu", mmap=True).get(MIDDLE)
        options = cls.options
        if options.patience is not None and reporter.get_epoch() > 0:
            if reporter.check_early_stopping(options.patience, *options.early_stopping_criterion):
                options.max_epoch = reporter.get_epoch()  # early stopping has ended the run; ESPnet would train on
        if _rank() == 0:
            folder = Path(checkpoint).parent
            mend(folder, reporter, cls.options.best_model_criterion, cls.options.keep_nbest_models)
            history.mend(folder, reporter)

    @classmethod
    def train_one_epoch(
        cls, model, iterator, optimizers, schedulers, scaler, reporter: SubReporter, options, **kwargs
    ) -> bool:
        before, length = reporter.get_total_count(), len(iterator)
        for optimizer in optimizers:
            optimizer.zero_grad()  # gradients of the last batches, if these were too few for a step
        start, begin, cls.skipped.of_epoch = 0, _nothing, 0
        if cls.middle and cls.middle["epoch"] == reporter.get_epoch():
            start, cls.skipped.of_epoch = cls.middle["batches"], cls.middle["skipped_steps"]
            unpack_figures(reporter, cls.middle["figures"])
            if len(cls.middle["random"]) == _processes():
                begin = functools.partial(set_random_state, cls.middle["random"][_rank()])
            else:
                logging.warning("the number of processes has changed: their random generators are not restored")
            logging.info(f"resuming after batch {start} of epoch {reporter.get_epoch()}")
        cls.middle = None
        plain = getattr(model, "module", model)
        title = f"training, epoch {reporter.get_epoch()} of {options.max_epoch}" if _rank() == 0 else None
        every, steps = options.save_every_steps * options.accum_grad, plain.pruning.step

        def done(batches: int, ids: list[str]) -> None:
            nonlocal steps
            where = f"at batch {batches} of epoch {reporter.get_epoch()}"
            if skipped := plain.pruning.step == steps:
                plain.pruning.skip_step()
            cls.skipped.count(skipped, where, ids, plain)
            steps = plain.pruning.step
            if every and batches % every == 0 and batches < length and not cls.skipped.in_row:
                cls._save(plain, optimizers, schedulers, scaler, reporter, batches)

        invalid = super().train_one_epoch(
            model=model,
            iterator=Steps(iterator, options.accum_grad, done, start, begin, title),
            optimizers=optimizers,
            schedulers=schedulers,
            scaler=scaler,
            reporter=reporter,
            options=options,
            **kwargs,
        )
        if invalid and cls.skipped.in_row:  # ESPnet would end the run here as if it were finished
            cls.skipped.stop(f"the whole of epoch {reporter.get_epoch()}", [], plain)
        cls._record(reporter, before, skipped_steps=cls.skipped.of_epoch)
        return False

    @classmethod
    @torch.no_grad()
    def validate_one_epoch(cls, model, reporter: SubReporter, options, **kwargs) -> None:
        plain = getattr(model, "module", model)
        pruning, kind = plain.pruning, plain.kind
        main = kind.rates[kind.rate]
        of_target, short = {}, 0.0
        for target in pruning.targets:  # of several, the rates are means over all of them
            done = len(reporter.stats[main.of]) if of_target else 0
            pruning.use(target)
            if plain.quantization:
                plain.quantization.fit()
            super().validate_one_epoch(model=model, reporter=reporter, options=options, **kwargs)
            of_target[target] = _ratio(reporter, main.errors, main.of, done)
            short = short if plain.on_target() else SHORT_OF_TARGET
        rates = {name: _ratio(reporter, rate.errors, rate.of) for name, rate in kind.rates.items()}
        rates |= {on_target(name): rate + short for name, rate in rates.items()}
        several = len(of_target) > 1
        own = {f"{kind.rate}_{target}": rate for target, rate in of_target.items()} if several else {}
        reporter.register({**rates, **own, **plain.scalars()}, weight=1.0)
        reporter.next()
        cls._record(reporter)
        if _rank() == 0:
            print(_epoch_line(kind, rates, plain.scalars(), reporter, options), flush=True)
            cls._warn_of_collapsed_layers(pruning)

    @classmethod
    def _save(cls, model, optimizers, schedulers, scaler, reporter: SubReporter, batches: int) -> None:
        """Write checkpoint.pth within an epoch, in the form of ESPnet's at the end of the previous epoch."""
        states = [random_state()]
        if _processes() > 1:
            states *= _processes()
            torch.distributed.all_gather_object(states, random_state())
        if _rank() > 0:
            return
        middle = {
            "epoch": reporter.get_epoch(),
            "batches": batches,
            "skipped_steps": cls.skipped.of_epoch,
            "figures": pack_figures(reporter),
            "random": states,
        }
        torch.save(
            {
                "model": model.state_dict(),
                "reporter": {**cls.reporter.state_dict(), "epoch": reporter.get_epoch() - 1},
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "schedulers": [scheduler and scheduler.state_dict() for scheduler in schedulers],
                "scaler": scaler and scaler.state_dict(),
                MIDDLE: middle,
            },
            Path(cls.options.output_dir) / NEWEST,
        )

    @classmethod
    def _record(cls, reporter, steps_before: int = 0, **figures) -> None:
        if _rank() == 0:
            history.record(Path(cls.options.output_dir), reporter, steps_before, **figures)

    @classmethod
    def _warn_of_collapsed_layers(cls, pruning) -> None:
        new = {name: what for name, what in pruning.collapsed().items() if name not in cls.collapsed}
        for name, what in sorted(new.items()):
            print(f"warning: {name}: {what}", flush=True)
        cls.collapsed |= new.keys()


def _nothing() -> None:
    pass


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def _processes() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


@contextlib.contextmanager
def _in_espnet(reporter: Reporter) -> Iterator[None]:
    """Inside the block, ESPnet's trainer averages epochs on target, and reports to ``reporter``.

    A save within an epoch needs the state of the reporter.
    """
    with (
        mock.patch.object(espnet_trainer, "Reporter", lambda: reporter),
        mock.patch.object(espnet_trainer, "average_nbest_models", average_best),
    ):
        yield


def _epoch_line(kind: Head, rates: dict, scalars: dict, reporter: SubReporter, options) -> str:
    """One line about a finished epoch for stdout. ESPnet's own line is long and goes to the log."""
    epochs, epoch = history.read(options.output_dir), reporter.get_epoch()
    phases = epochs[str(epoch)]
    seconds = [sum(figures["seconds"] for figures in phases.values()) for phases in epochs.values()]
    left = (options.max_epoch - epoch) * sum(seconds) / len(seconds)
    sparsity = f", sparsity {100 * scalars['sparsity']:.2f} %" if "sparsity" in scalars else ""
    sparsity += f", {scalars['bits']:.2f} bits" if "bits" in scalars else ""
    skipped = phases["train"].get("skipped_steps")
    errors = ", ".join(f"dev {rate.title} {100 * rates[name]:.2f} %" for name, rate in kind.rates.items())
    return (
        f"epoch {epoch} of {options.max_epoch}: loss {phases['train'][kind.loss]:.2f}, dev loss "
        f"{phases['valid']['loss']:.2f}, {errors}{sparsity}, {seconds[-1]:.0f} s"
        + (f", {duration(left)} left" if left else "")
        + (f"; {skipped} steps skipped, without a finite loss and gradient" if skipped else "")
    )


def _ratio(reporter: SubReporter, part: str, whole: str, start: int = 0) -> float:
    """The mean of one figure divided by the mean of another: the error rate of a set from the means of its batches.

    Args:
        start: of the batches, the first one that counts.
    """
    stats: dict[str, Sequence] = reporter.stats
    return float(aggregate(stats[part][start:]) / aggregate(stats[whole][start:]))


def _shortfall(pruning: PruningMethod, target: float) -> str:
    """How a run has ended that is not on its target, for the end of a sentence."""
    reached = pruning.reached()
    pruned = f"with {100 * reached:.2f} % pruned"
    if reached < target:
        return f"{pruned}, below its target of {100 * target:g} %{pruning.advice}"
    done = 100 * pruning.progress
    return f"after {done:.0f} % of its steps, {pruned}, before it had come to rest on its target of {100 * target:g} %"
