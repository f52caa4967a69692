"""The ESPnet tasks. Importing this module registers the frontend, the models and the scheduler with ESPnet."""

import argparse
import contextlib
import logging
import multiprocessing
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from espnet2.utils.nested_dict_action import NestedDictAction
from torch import nn

from espnet_pinch.asr.classifier import IndexOfLabel, PruningClassifier
from espnet_pinch.asr.espnet import CTC, ASRTask, abs_task, frontend_choices, model_choices, preprocessor_choices
from espnet_pinch.asr.frontend import UpstreamFrontend
from espnet_pinch.asr.head import ASR, CLASSIFY, all_heads, find_head, on_target
from espnet_pinch.asr.model import PruningASRModel
from espnet_pinch.asr.option_types import check_block, check_options
from espnet_pinch.asr.processes import is_first
from espnet_pinch.asr.pruned import PrunedModel
from espnet_pinch.asr.resume import NEWEST, owned
from espnet_pinch.asr.safe_load import tensors_only
from espnet_pinch.asr.scheduler import LinearWarmupDecay
from espnet_pinch.asr.settings_record import check_unchanged
from espnet_pinch.asr.trainer import PruningTrainer
from espnet_pinch.core.registry import DEFAULT_METHOD, Method, all_methods, method_of, self_contained
from espnet_pinch.core.settings import shown
from espnet_pinch.data import subwords
from espnet_pinch.data.audio import no_code
from espnet_pinch.data.spelling import POLICIES, UnknownCharacters
from espnet_pinch.data.text_steps import TextSteps
from espnet_pinch.errors import UserError, one_line
from espnet_pinch.explain import explain
from espnet_pinch.files import whole_file

frontend_choices.classes["upstream"] = UpstreamFrontend
model_choices.classes["pruning"] = PruningASRModel
model_choices.classes["classifying"] = PruningClassifier
abs_task.scheduler_classes["linearwarmupdecay"] = LinearWarmupDecay


class PruningASRTask(ASRTask):
    """ESPnet's ASR task with a pruned upstream. ``--pruning`` takes the YAML's block of that name."""

    trainer = PruningTrainer
    task = ASR

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser) -> None:
        super().add_task_arguments(parser)
        parser.add_argument("--task", choices=tuple(all_heads()), default=cls.task, help="What the model is for")
        parser.add_argument(
            "--pruning",
            action=NestedDictAction,
            default={"method": "pinch"},
            help="Pruning method and its settings",
        )
        parser.add_argument(
            "--distill",
            action=NestedDictAction,
            default={},
            help="Learn from the model that the run starts from as well: weight, temperature",
        )
        parser.add_argument(
            "--quantize",
            action=NestedDictAction,
            default={},
            help="Train with rounded weights: bits, average_bits, others",
        )
        parser.add_argument(
            "--save_every_steps",
            type=int,
            default=0,
            help="Optimizer steps between checkpoints within an epoch; a kill loses no more. 0: only at its end",
        )
        parser.add_argument(
            "--max_skipped_steps",
            type=int,
            default=20,
            help="Stop after this many optimizer steps in a row without a finite loss and gradient",
        )
        parser.add_argument(
            "--unknown_characters",
            choices=POLICIES,
            default=UnknownCharacters.policy,
            help="What stage 2 did with characters that the vocabulary lacks; with extend the head gets new rows",
        )
        parser.add_argument(
            "--text",
            type=lambda given: " ".join(TextSteps(given).names),
            default="",
            help="Steps that stage 2 has taken over all transcripts",
        )
        # The Transformer is in the frontend, the head is ESPnet's CTC, the waveform is normalised in the frontend.
        parser.set_defaults(
            frontend="upstream",
            model="pruning",
            normalize=None,
            encoder=None,
            decoder=None,
            token_type="char",
            best_model_criterion=[["valid", on_target(find_head(cls.task).rate), "min"]],
        )

    @classmethod
    def main(cls, args: argparse.Namespace | None = None, cmd: Sequence[str] | None = None) -> None:
        """As ``ASRTask.main``, with one run at a time and one configuration in an output folder.

        Args:
            args: the parsed options.
            cmd: options to parse if ``args`` is None; those of the command line if both are None.

        Raises:
            BlockingIOError: another process is training in the folder.
            UserError: the training in the folder has other settings or data (``check_unchanged``) or would be
                overwritten; or an option is out of range; or as ``is_first``.
        """
        parsed_here = args is None
        try:
            args = args or cls.get_parser().parse_args(cmd)
        except abs_task.humanfriendly.InvalidSize as error:
            raise UserError(f"max_cache_size or valid_max_cache_size: {one_line(error)}") from None
        if args.output_dir is None or args.print_config:
            return super().main(args)
        cls.check_settings(args)
        if parsed_here:
            _check_own(cmd, method_of(args.pruning))
        first = is_first(args)
        # Only the first process locks the folder, for the other nodes and ranks too.
        with owned(args.output_dir) if first else contextlib.nullcontext():
            if first and not args.dry_run and not args.collect_stats:
                if not args.resume and (Path(args.output_dir) / NEWEST).exists():
                    raise UserError(
                        f"{args.output_dir} holds a training: --resume true continues it; remove that folder to "
                        "train from the start"
                    )
                check_unchanged(args)
                _keep_subwords(args)
            try:
                super().main(args)
            except torch.multiprocessing.ProcessExitedException:
                sys.exit(1)  # that process has printed the reason

    @classmethod
    def check_settings(cls, args: argparse.Namespace) -> None:
        """Raise UserError if an option, or a setting in a block, is of a wrong type, or an option out of its range."""
        check_options(args, cls.get_parser())
        made = {
            "frontend_conf": frontend_choices.get_class(args.frontend),
            "model_conf": model_choices.get_class(args.model),
            "optim_conf": abs_task.optim_classes[args.optim],
            "scheduler_conf": abs_task.scheduler_classes.get(args.scheduler),
            "ctc_conf": CTC,
            "preprocessor_conf": preprocessor_choices.get_class(args.preprocessor),
        }
        for name, of in made.items():
            if of is not None:
                check_block(name, getattr(args, name), of)
        if args.save_every_steps < 0 or args.max_skipped_steps < 1:
            raise UserError("save_every_steps must be at least 0, max_skipped_steps at least 1")
        for name in ("batch_size", "valid_batch_size", "accum_grad", "max_epoch", "num_iters_per_epoch"):
            if (number := getattr(args, name)) is not None and number < 1:
                raise UserError(f"{name} must be at least 1, not {number}")
        if args.train_dtype == "float16":
            raise UserError("train_dtype: float16 is not supported; use_amp: true computes in 16 bits on a GPU")
        for criterion in args.best_model_criterion or [None]:
            if not isinstance(criterion, list | tuple) or len(criterion) != 3 or criterion[2] not in ("min", "max"):
                raise UserError(
                    "best_model_criterion must be a list of [valid or train, figure, min or max], not "
                    f"{shown(args.best_model_criterion)}"
                )
            _check_figure("best_model_criterion", criterion, args)
        _check_figure("early_stopping_criterion", args.early_stopping_criterion, args)
        _check_figure("val_scheduler_criterion", args.val_scheduler_criterion, args)
        if args.preprocessor_conf:
            cls.build_preprocess_fn(args, train=True)

    @classmethod
    def build_preprocess_fn(cls, args: argparse.Namespace, train: bool):
        try:
            return super().build_preprocess_fn(args, train)
        except TypeError as error:
            if not args.preprocessor_conf:
                raise
            raise UserError(f"preprocessor_conf: {one_line(error)}") from None  # ESPnet gives that setting itself

    @classmethod
    def main_worker(cls, args: argparse.Namespace) -> None:
        """As ``ASRTask.main_worker``, but no file can run code: only tensors, numbers and text are unpickled."""
        try:
            with tensors_only(), no_code():
                super().main_worker(args)
        except Exception as error:
            line = explain(error)
            if line is None or multiprocessing.parent_process() is None:
                raise
            print(f"error: {line}", file=sys.stderr)  # ESPnet has started this process, one for each GPU
            sys.exit(1)

    @classmethod
    def new_model(cls, args: argparse.Namespace) -> PrunedModel:
        """The model of a configuration with a new head. What a checkpoint needs to be loaded into."""
        return super().build_model(args)

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> PrunedModel:
        """As ESPnet's, with the upstream's head. Adds to ``args`` what is needed to build the same model without the
        upstream's files.

        Raises:
            UserError: the names of the outputs are not those of the upstream's head; or as the frontend and
                ``build_method``.
        """
        args.pruning = self_contained(args.pruning)
        args.model_conf = {**args.model_conf, "pruning": args.pruning}
        for name in ("distill", "quantize"):
            if block := getattr(args, name, None):  # which older configurations lack
                args.model_conf[name] = block
        model = cls.new_model(args)
        frontend = model.frontend
        head = frontend.take_head()
        if head is not None:
            upstream = args.frontend_conf["upstream"]
            if frontend.tokens is None:
                raise UserError(
                    f"{upstream} has a CTC head but no {frontend.family.vocabulary_file} to name its outputs"
                )
            if not cls.take_head(args, model, head):
                raise UserError(
                    f"the token list differs from the vocabulary of {upstream}: {len(model.token_list)} and "
                    f"{len(frontend.tokens)} {model.kind.outputs}; run stage 2 again"
                )
        if not getattr(args, "dry_run", False):  # which may build the model of an upstream without a head yet
            model.begin_distilling()
        cls.finish(args, model)
        args.frontend_conf = {**args.frontend_conf, "built": frontend.built}
        return model

    @classmethod
    def take_head(cls, args: argparse.Namespace, model: PrunedModel, head: nn.Module) -> bool:
        """Give the model the upstream's head; False if its outputs have other names than the model's."""
        assert model.frontend.tokens is not None
        count = len(model.frontend.tokens)
        known, new = model.token_list[:count], model.token_list[count:]
        if model.frontend.tokens != known or (new and args.unknown_characters != "extend"):
            return False
        # A new token starts as a copy of "<unk>", which a trained head hardly ever outputs.
        rows = [*range(len(known)), *[known.index("<unk>")] * len(new)]
        model.head.load_state_dict({name: tensor[rows] for name, tensor in head.state_dict().items()})
        return True

    @classmethod
    def finish(cls, args: argparse.Namespace, model) -> None:
        """Set what inference needs to know of a new model."""
        if args.bpemodel:
            model.subwords = Path(args.bpemodel).read_bytes()
        if "<sos/eos>" not in model.token_list:
            # ESPnet's beam search would take the last character of the list for the end of the sentence.
            model.sos = model.eos = model.token_list.index("<unk>")
            args.model_conf.update(sym_sos="<unk>", sym_eos="<unk>")

    @classmethod
    def build_optimizers(cls, args: argparse.Namespace, model: nn.Module) -> list[torch.optim.Optimizer]:
        """One optimizer. The method's new parameters are a separate group without weight decay.

        Raises:
            UserError: optim_conf has an unknown setting, or one out of range; or as ``_check_frozen``.
        """
        _check_frozen(args.freeze_param, model)
        optimizer_class = abs_task.optim_classes[args.optim]
        lr = args.optim_conf.get("lr", 1e-3)
        options = {k: v for k, v in args.optim_conf.items() if k != "lr"}
        groups = model.parameter_groups(lr, **options)
        for group in groups:
            logging.info(f"{sum(p.numel() for p in group['params']):,} parameters at lr {group['lr']}")
        try:
            return [optimizer_class(groups, **args.optim_conf)]
        except (TypeError, ValueError) as error:  # torch checks the settings
            raise UserError(f"optim_conf: {one_line(error)}") from None


def _check_figure(name: str, criterion: Sequence, args: argparse.Namespace) -> None:
    """Raise UserError if there is no such figure to compare epochs by.

    Args:
        name: of the setting.
        criterion: begins with the phase and the figure.
        args: of the training.
    """
    head = find_head(args.task)
    losses = list(dict.fromkeys(["loss", head.loss]))
    given = [args.pruning.get(name) for name in ("target_sparsity", "target_macs")]
    targets = next((value for value in given if isinstance(value, list | tuple)), ())
    rates = [*head.rates, *map(on_target, head.rates), *(f"{head.rate}_{target}" for target in targets)]
    figures = {"train": losses, "valid": [*losses, *rates]}
    phase, figure = criterion[:2]
    if phase not in figures or figure not in figures[phase]:
        known = "; ".join(f"{phase} has {', '.join(names)}" for phase, names in figures.items())
        raise UserError(f"{name}: {shown(phase)} has no figure {shown(figure)}: {known}")


def _check_own(cmd: Sequence[str] | None, method: Method) -> None:
    """Raise UserError if one of the options of asr_train sets what another method has.

    In a YAML such settings may stand: it may be that of several methods.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--pruning", action=NestedDictAction, default={})
    # run.sh finds the run that a method reads by the same options.
    own = {method.name, DEFAULT_METHOD} if method.from_run else {method.name}
    for other, settings in parser.parse_known_args(cmd)[0].pruning.items():
        if other not in own and other in all_methods():
            name = f"{other}.{next(iter(settings))}" if isinstance(settings, dict) and settings else other
            raise UserError(f"--pruning {name}: the method is {method.name}, which does not read it")


def _check_frozen(wanted: Sequence[str], model: nn.Module) -> None:
    """Raise UserError if ESPnet would find no parameter to freeze by a name."""
    for name in wanted:
        if not any(f"{known}.".startswith(f"{name}.") for known, _ in model.named_parameters()):
            raise UserError(f"freeze_param: the model has no parameter {shown(name)}, and none that begins with it")


def _keep_subwords(args: argparse.Namespace) -> None:
    """Copy the sentencepiece model of a training into its folder, and train with the copy."""
    if args.bpemodel:
        own = Path(args.output_dir) / subwords.FILE
        with whole_file(own) as new:
            new.write_bytes(Path(args.bpemodel).read_bytes())
        args.bpemodel = str(own)


class PruningClassifyTask(PruningASRTask):
    """A label for each utterance: the data, the options and the training of ``PruningASRTask``, another head.

    A label is the whole transcript. The token list has a label in each line.
    """

    task = CLASSIFY

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser) -> None:
        super().add_task_arguments(parser)
        parser.set_defaults(model="classifying", token_type=None)

    @classmethod
    def build_preprocess_fn(cls, args: argparse.Namespace, train: bool) -> IndexOfLabel:
        before = super().build_preprocess_fn(args, train)
        return IndexOfLabel(cls._labels(args), before or (lambda uid, data: data))

    @classmethod
    def new_model(cls, args: argparse.Namespace) -> PruningClassifier:
        args.token_list = cls._labels(args)
        frontend = UpstreamFrontend(**args.frontend_conf, task=cls.task)
        return PruningClassifier(token_list=args.token_list, frontend=frontend, **args.model_conf)

    @classmethod
    def take_head(cls, args: argparse.Namespace, model: PrunedModel, head: nn.Module) -> bool:
        if model.frontend.tokens != model.token_list:
            return False
        model.head.load_state_dict(head.state_dict())
        return True

    @classmethod
    def finish(cls, args: argparse.Namespace, model) -> None:
        pass

    @staticmethod
    def _labels(args: argparse.Namespace) -> list[str]:
        """The lines of the token list, which ESPnet puts into config.yaml in the place of the file's name."""
        if isinstance(args.token_list, (list, tuple)):
            return list(args.token_list)
        return Path(args.token_list).read_text(encoding="utf-8").splitlines()


TASKS: Mapping[str, type[PruningASRTask]] = {task.task: task for task in (PruningASRTask, PruningClassifyTask)}


def find_task(name: str) -> type[PruningASRTask]:
    """The ESPnet task of that name; raises UserError if there is none."""
    return TASKS[find_head(name).name]


def task_of_options(options: Sequence[str] | None) -> type[PruningASRTask]:
    """The ESPnet task that ``--task`` names among the options of asr_train; of the command line if None."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--task", default=ASR)
    return find_task(parser.parse_known_args(options)[0].task)


def task_of(args: argparse.Namespace) -> type[PruningASRTask]:
    """The ESPnet task of a configuration. Those of earlier releases do not say it: speech recognition."""
    return find_task(getattr(args, "task", ASR))
