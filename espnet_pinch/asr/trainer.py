"""ESPnet's trainer with the pruning method's hooks in it."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from espnet2.train.reporter import SubReporter, aggregate
from espnet2.train.trainer import Trainer

from espnet_pinch.asr import history
from espnet_pinch.asr.resume import mend, whole_saves
from espnet_pinch.asr.scheduler import LinearWarmupDecay

# Added to the error rate of an epoch that ends short of the target sparsity, so that none of these is ever
# the best one. An error rate is a fraction; few exceed 1, none 100.
SHORT_OF_TARGET = 100.0


class PruningTrainer(Trainer):
    """Tells the pruning method how long the run is and when a step is done; forms dev error rates.

    ``valid.cer`` and ``valid.wer`` are the corpus' error rates of greedy decoding, as fractions.
    ``valid.wer_on_target`` is ``wer`` where the epoch ends on the target sparsity, and over 100 where it does not:
    the criterion to choose a checkpoint by.
    """

    criteria: Sequence[Sequence[str]] = ()  # of the run in progress: ESPnet's resume() is not told

    @classmethod
    def run(cls, model, optimizers, schedulers, train_iter_factory, trainer_options, **kwargs) -> None:
        """As ``Trainer.run``.

        Raises:
            ValueError: there are fewer batches in an epoch than ``accum_grad`` adds up to one step.
        """
        iterations = train_iter_factory.num_iters_per_epoch or len(train_iter_factory.sampler)
        steps = iterations // trainer_options.accum_grad * trainer_options.max_epoch
        if steps == 0:
            raise ValueError(
                f"an epoch has {iterations} batches, accum_grad {trainer_options.accum_grad} needs more: no step"
            )
        logging.info(f"{steps} optimizer steps: {trainer_options.max_epoch} epochs of {iterations} batches")
        model.pruning.total_steps = steps
        for optimizer, scheduler in zip(optimizers, schedulers):
            optimizer.register_step_post_hook(model.pruning.after_step)
            if isinstance(scheduler, LinearWarmupDecay):
                scheduler.set_total_steps(steps)
        config = model.frontend.upstream.config
        if config.layerdrop or not config.apply_spec_augment or not config.mask_time_prob:
            # Layers that are dropped, or the vector that masks frames, get no gradient: several processes have to know.
            trainer_options = dataclasses.replace(trainer_options, unused_parameters=True)
        cls.criteria = trainer_options.best_model_criterion
        with whole_saves():
            super().run(
                model=model,
                optimizers=optimizers,
                schedulers=schedulers,
                train_iter_factory=train_iter_factory,
                trainer_options=trainer_options,
                **kwargs,
            )

    @staticmethod
    def resume(checkpoint, model, reporter, **kwargs) -> None:
        Trainer.resume(checkpoint=checkpoint, model=model, reporter=reporter, **kwargs)
        mend(Path(checkpoint).parent, model, reporter, PruningTrainer.criteria)

    @classmethod
    def train_one_epoch(cls, reporter: SubReporter, options, distributed_option, **kwargs) -> bool:
        before = reporter.get_total_count()
        invalid = super().train_one_epoch(
            reporter=reporter, options=options, distributed_option=distributed_option, **kwargs
        )
        cls._record(reporter, options, distributed_option, before)
        return invalid

    @classmethod
    @torch.no_grad()
    def validate_one_epoch(cls, model, reporter: SubReporter, options, distributed_option, **kwargs) -> None:
        super().validate_one_epoch(
            model=model, reporter=reporter, options=options, distributed_option=distributed_option, **kwargs
        )
        pruning = getattr(model, "module", model).pruning
        wer = _ratio(reporter, "word_errors", "words")
        short = 0.0 if pruning.on_target() else SHORT_OF_TARGET
        rates = {"wer": wer, "cer": _ratio(reporter, "char_errors", "chars"), "wer_on_target": wer + short}
        reporter.register({**rates, **pruning.scalars()}, weight=1.0)
        reporter.next()
        cls._record(reporter, options, distributed_option)
        if not distributed_option.distributed or distributed_option.dist_rank == 0:
            print(_epoch_line(rates, pruning.scalars(), reporter, options), flush=True)

    @classmethod
    def _record(cls, reporter, options, distributed_option, steps_before: int = 0) -> None:
        if not distributed_option.distributed or distributed_option.dist_rank == 0:
            history.record(Path(options.output_dir), reporter, steps_before)


def _epoch_line(rates: dict, scalars: dict, reporter: SubReporter, options) -> str:
    """One line on a finished epoch for those who watch: ESPnet's own line is long and goes to the log."""
    phases = history.read(options.output_dir)[str(reporter.get_epoch())]
    sparsity = f", sparsity {100 * scalars['sparsity']:.2f} %" if scalars else ""
    return (
        f"epoch {reporter.get_epoch()} of {options.max_epoch}: loss {phases['train']['loss_ctc']:.2f}, dev loss "
        f"{phases['valid']['loss']:.2f}, dev WER {100 * rates['wer']:.2f} %, dev CER {100 * rates['cer']:.2f} %"
        f"{sparsity}, {sum(figures['seconds'] for figures in phases.values()):.0f} s"
    )


def _ratio(reporter: SubReporter, part: str, whole: str) -> float:
    """The mean of one figure over the mean of another: a corpus' error rate out of its batches' means."""
    stats: dict[str, Sequence] = reporter.stats
    return float(aggregate(stats[part]) / aggregate(stats[whole]))
