"""A training run: from the arguments to a directory with the model and what is known of it."""

from __future__ import annotations

import tempfile
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from torch import nn
from torch.utils.data import DataLoader
from transformers import set_seed

from .. import models  # noqa: F401  (registers them with timm)
from ..checkpoint.directory import load_packed, save_float, save_packed
from ..checkpoint.evaluation_file import Evaluation, write_evaluation
from ..checkpoint.run_files import (
    HISTORY_NAME,
    METRICS_NAME,
    TRAINING_NAME,
    TrainingFacts,
)
from ..checkpoint.weights_file import WEIGHTS_NAME, is_packed_file
from ..data.arguments import DataArguments
from ..data.load import Data, check_spread, load_data
from ..errors import workers
from ..evaluation import accuracy, class_names
from ..files import write_json
from ..hub.push import PushOptions, push_directory
from ..nn.convert import config_of, quantizers_of
from ..nn.summary import summarize
from ..quantizers import Quantizer
from .arguments.model import ModelArguments
from .arguments.trainer import TernaryTrainingArguments
from .callbacks.health import check_streaming
from .callbacks.stop_at_step import StopAtStep
from .fsdp import load_whole
from .resume.choose import check_asked
from .run_facts import gpu_names, training_facts
from .start import Start, build_model, find_start
from .stop import Sigterm, Terminated, way_on
from .trainer import TernaryTrainer

__all__ = ["ARGUMENTS", "Run", "fit", "save_model"]

ARGUMENTS = (ModelArguments, DataArguments, TernaryTrainingArguments)
"""The dataclasses whose fields are the keys of a recipe."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        model: The trained model, on the device of the run; a ternary one in its trainable form.
        data: What it was trained and evaluated on.
        metrics: Of training and evaluation, as in metrics.json.
    """

    model: nn.Module
    data: Data
    metrics: dict[str, Any]


def fit(
    model_args: ModelArguments, data_args: DataArguments, args: TernaryTrainingArguments
) -> Run:
    """Load the data, build the model, train, evaluate, and write everything to `args.output_dir`.

    The directory then holds model.safetensors and config.json (``timm.create_model(
    "local-dir:DIR", pretrained=True)`` loads it; a ternary model is packed), metrics.json with the
    accuracy of the model and of what is loaded back from the directory, training.json (see
    training/run_facts.py), history.json, the Trainer's log, and evaluation.json, which classes that
    file takes for which.

    SIGTERM during training ends it at the next step, with a checkpoint; at another time, at once.

    Raises:
        ValueError: The model, the data or a field do not fit together.
        Terminated: SIGTERM came. It says how to go on, as a KeyboardInterrupt then does.
    """
    with Sigterm() as sigterm:
        first = args.process_index == 0
        try:
            return _fit(model_args, data_args, args, sigterm)
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(way_on(args.output_dir)) from stop
        except (Terminated, OSError) as stop:
            # The loader's workers may be told to end too, and die of it before the step ends.
            if isinstance(stop, OSError) and not sigterm.received:
                raise
            line = f"terminated (SIGTERM): {way_on(args.output_dir)}" if first else None
            raise Terminated(line) from stop


def _fit(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: TernaryTrainingArguments,
    sigterm: Sigterm,
) -> Run:
    if data_args.streaming:
        check_streaming(args)
    resume = check_asked(args.resume_from_checkpoint, args.output_dir)
    if args.process_index == 0:
        _check_writable(Path(args.output_dir))
    start, data, model = _prepare(model_args, data_args, args)
    if args.device.type == "cpu":
        args.dataloader_pin_memory = False  # pinned memory serves copies to a GPU; torch warns
    trainer = TernaryTrainer(
        model=model,
        args=args,
        train_dataset=data.train,
        eval_dataset=data.eval,
        data_collator=data.data_collator,
    )
    trainer.add_callback(StopAtStep(sigterm, trainer.accelerator))
    # FSDP leaves shards in the model; this one takes the result.
    twin = deepcopy(model) if trainer.is_fsdp_enabled else None
    metrics = dict(trainer.train(resume_from_checkpoint=resume).metrics)
    metrics |= trainer.evaluate()
    trained = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    if twin is not None:
        trained = load_whole(trained, twin)
    if config_of(trained) is not None:
        metrics["zeros"] = summarize(trained).zeros
    gpus = gpu_names(args)
    if trainer.is_world_process_zero():
        save_model(trained, args.output_dir)
        # First: what was measured is not lost with a file that cannot be read back.
        write_json(Path(args.output_dir) / METRICS_NAME, metrics)
        facts = training_facts(
            model_args,
            data_args,
            args,
            start=start,
            data=data,
            config=config_of(trained),
            state=trainer.state,
            seconds=None if resume else metrics["train_runtime"],
            gpus=gpus,
        )
        write_json(Path(args.output_dir) / TRAINING_NAME, facts.to_dict())
        write_json(Path(args.output_dir) / HISTORY_NAME, trainer.state.log_history)
        metrics = _with_reloaded_accuracy(metrics, data, args, facts)
        if args.push_to_hub:
            _publish(args, str(trainer.hub_model_id))
    trainer.accelerator.wait_for_everyone()
    return Run(trained, data, metrics)


def save_model(model: nn.Module, directory: str | Path) -> None:
    """Write a directory that timm loads: packed for a ternary model, else in float.

    Raises:
        ValueError: The model cannot be written, e.g. holds values that are not finite.
    """
    (save_float if config_of(model) is None else save_packed)(model, directory)


def _with_reloaded_accuracy(
    metrics: dict[str, Any], data: Data, args: TernaryTrainingArguments, facts: TrainingFacts
) -> dict[str, Any]:
    """`metrics` and the top-1 accuracy of what `save_model` wrote, 0 to 1; both in the file.

    Which classes it took for which goes to evaluation.json.
    """
    directory = Path(args.output_dir)
    if is_packed_file(directory / WEIGHTS_NAME):
        model = load_packed(directory)
    else:
        model = timm.create_model(f"local-dir:{directory}", pretrained=True)
    loader = DataLoader(
        data.eval,
        args.per_device_eval_batch_size,
        collate_fn=data.data_collator,
        num_workers=args.dataloader_num_workers,
    )
    with workers.one_line("--dataloader_num_workers"):
        found = accuracy(model, loader, device=args.device)
    metrics = {**metrics, "reloaded_accuracy": found.top1}
    write_json(directory / METRICS_NAME, metrics)
    evaluation = Evaluation(
        top1=found.top1,
        confusion=found.confusion(class_names(model, data.label_names)),
        dataset=facts.dataset.name,
        split=facts.dataset.eval_split,
        weights_sha256=facts.weights_sha256,
    )
    write_evaluation(directory, evaluation)
    return metrics


def _publish(args: TernaryTrainingArguments, repo_id: str) -> None:
    """Upload the finished directory, which stays where it is if that fails."""
    options = PushOptions(
        private=args.hub_private_repo,
        revision=args.hub_revision,
        token=args.hub_token,
        commit_message="End of training",
    )
    try:
        push_directory(args.output_dir, repo_id, options)
    except (OSError, ValueError) as error:
        raise OSError(
            f"the result is in {args.output_dir}, but {error}; type: timm-ternary push "
            f"{args.output_dir} {repo_id}"
        ) from error


def _check_writable(directory: Path) -> None:
    """Fail before hours of training, not when their result is to be written."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory):
        pass


def _prepare(
    model_args: ModelArguments, data_args: DataArguments, args: TernaryTrainingArguments
) -> tuple[Start, Data, nn.Module]:
    set_seed(args.seed)
    start = find_start(model_args)
    # One process of a machine prepares what `datasets` caches; the others then read it.
    with args.main_process_first(desc="loading the data"):
        data = load_data(
            data_args,
            model_cfg=start.cfg,
            trained=start.trained,
            in_chans=model_args.in_chans,
            seed=args.seed,
        )
    check_spread(data)
    set_seed(args.seed)  # the same weights whatever reading the data drew
    model = build_model(
        model_args,
        start,
        num_classes=data.num_classes,
        in_chans=data.in_chans,
        data_cfg=data.pretrained_cfg(),
    )
    if data_args.streaming:
        _check_refresh(model)
    return start, data, model


def _check_refresh(model: nn.Module) -> None:
    """Refuse a method that does something between epochs, which a stream has none of."""
    for layer, quantizer in quantizers_of(model).items():
        if type(quantizer).refresh is not Quantizer.refresh:
            raise ValueError(
                f"{layer} is made ternary by {type(quantizer).__name__}, refreshed between epochs, "
                "and a stream is one epoch: leave streaming out, or take another method"
            )
