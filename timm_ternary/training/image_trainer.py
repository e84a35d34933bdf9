"""ImageTrainer: transformers' Trainer for classifiers of images, timm's models included."""

from __future__ import annotations

import copy
import inspect
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import Optimizer
from transformers import PrinterCallback, ProgressCallback, Trainer, default_data_collator
from transformers.trainer_pt_utils import LabelSmoother, nested_detach
from transformers.trainer_utils import EvalLoopOutput

from ..checkpoint.directory import write_config
from ..data.datasets.seeding import seeded
from ..data.datasets.streamed import StreamedImages
from ..errors import workers
from ..nn.convert import quantizers_of
from ..nn.timm_wrapper import unwrap
from ..quantizers.base import Quantizer
from . import metrics
from .arguments.trainer import TernaryTrainingArguments
from .batches import check_images, check_label_names, check_labels, check_lone_image, collate_images
from .callbacks.divergence import Divergence
from .callbacks.early_stopping import EarlyStopping
from .callbacks.ema import EmaCallback
from .callbacks.health import HealthCheck, check_epochs, check_metric, check_share
from .callbacks.progress import ConsoleProgress
from .callbacks.set_epoch import SetEpoch, SkipSeen
from .distill import TEACHER_LOGITS, Teacher, class_count, load_teacher
from .fsdp import check_launched
from .gradient_checkpointing import recomputed
from .loss import task_loss
from .mixup import Mixer, mixer_for
from .optim import create_timm_optimizer, decay_names, multi_step_schedule
from .outputs import as_safetensors, is_multi_label, logits_of, plain_outputs
from .resume.checks import best_is_whole, checkpoint_directory, resumable, same_optimizer
from .resume.facts import batch_facts, facts_of
from .resume.record import begin, write_record
from .statistics import reduce_statistics, reestimate_statistics
from .threshold_pass.functional import quantizer_parameters

__all__ = ["ImageTrainer"]

_logger = logging.getLogger(__name__)

# What is used here, in hub_mixin.py and in trainer.py of transformers' Trainer (5.17 to 5.24)
# without being a documented hook, for those who write canaries:
#   overridden  the private methods of compat.transformers.TRAINER_HOOKS; get_batch_samples,
#               set_initial_training_values (the second of its values: optimizer steps of an epoch)
#   called      _prepare_inputs, compute_loss_context_manager
#   read        _train_batch_size, current_gradient_accumulation_steps, callback_handler,
#               loss_is_scaled_for_ga (5.24; before it the rule that `loss_is_scaled` repeats)
#   written     _created_lr_scheduler, _signature_columns, data_collator, label_names,
#               label_smoother, model_accepts_loss_kwargs
#   relied on   __init__ keeps the arguments as self.args only; on_step_begin comes between
#               get_batch_samples and the first training_step, on_save after _save_checkpoint; the
#               model is in training mode in training_step, in evaluation mode in prediction_step;
#               gradient_checkpointing_enable or activation_checkpointing_enable of the model.


_WORKERS = "--dataloader_num_workers"


class ImageTrainer(Trainer):
    """``transformers.Trainer`` for any classifier of images; `TernaryTrainer` adds the thresholds.

    Loss, accuracy and evaluation; the optimizers of timm, `lr_milestones`, and what else
    TernaryTrainingArguments say beside thresholds and scales. Training ends in one line where a
    parameter is not finite, or where the data do not suffice.

    To train for another loss, override `task_loss`: all passes go through it.

    With a `teacher` the training loss is a·L + (1 - a)·T²·KL(teacher ‖ student), L the loss
    against the labels; evaluation knows no teacher. The teacher sees a batch once, however often
    the student does.

    With `ema_decay`, a moving average of the model is what `evaluate` and `predict` see; after
    training the model holds it. Checkpoints hold both.

    With `mixup` or `cutmix`, training batches are mixed once, for all that sees them; the training
    accuracy counts the larger share as the label.

    Data sets give dicts of ``pixel_values`` and ``labels``, or pairs ``(image, label)`` as those of
    torchvision and timm.

    Args:
        model: A plain timm model, ``forward(images) -> logits``, or a model of transformers,
            ``forward(pixel_values, labels)``.
        args: TernaryTrainingArguments.
        *rest: As ``transformers.Trainer``.
        **options: As ``transformers.Trainer``. A `compute_loss_func` gets a plain model's logits.

    Raises:
        ValueError: Several GPUs in one process, or `args` of another class.
    """

    args: TernaryTrainingArguments
    optimizer: Any
    lr_scheduler: Any
    compute_metrics: Any
    data_collator: Any
    preprocess_logits_for_metrics: Any
    _teacher: Teacher | None
    _ema: EmaCallback | None
    _mixer: Mixer | None

    steps_per_epoch: int = 0
    """Optimizer steps of an epoch; known once training begins."""

    def __init__(self, model: Any = None, args: Any = None, *rest: Any, **options: Any) -> None:
        args = _checked(TernaryTrainingArguments("tmp_trainer") if args is None else args)
        # The Trainer looks for the `config` of a model whose labels it smooths, and those of timm
        # have none: it begins with a copy of the arguments that smooths nothing.
        stock = copy.copy(args)
        stock.label_smoothing_factor = 0.0
        super().__init__(model, stock, *rest, **options)
        # What it has settled in them is settled in those of the caller.
        args.__dict__.update(vars(stock) | {"label_smoothing_factor": args.label_smoothing_factor})
        self.args = args
        self._plain = "pixel_values" not in inspect.signature(self.model.forward).parameters
        self._smoothing = args.label_smoothing_factor
        if self._smoothing and is_multi_label(self.model):
            self._smooth_nothing()
        elif self._smoothing and not self._plain:
            self.label_smoother = LabelSmoother(epsilon=self._smoothing)
        self.label_names = check_label_names(args.label_names)
        if self.data_collator is default_data_collator:
            self.data_collator = collate_images
        if self._plain:
            # A timm model's **kwargs are not for the Trainer, and remove_unused_columns would
            # look for the name of its argument.
            self.model_accepts_loss_kwargs = False
            self._signature_columns = ["pixel_values", "labels", "label", "label_ids"]
        args.settle_best(accuracy=self.compute_metrics is None)
        self._top1 = metrics.Top1()
        if self.compute_metrics is None:
            self.compute_metrics = self._top1
        # Where the arguments do not say it: what the caller has made.
        self.given_optimizer = _given(self.optimizer, self.optimizer_cls_and_kwargs)
        self.given_schedule = _given(self.lr_scheduler)
        self._facts: dict[str, Any] = {}
        self._accuracy = metrics.Accuracy()
        self._recent_loss: Tensor | None = None
        self._estimated_at = 0  # the step at which the statistics were measured last
        self._labels_seen = False
        self.health = HealthCheck()
        self._accompany()
        self._teacher = self._ema = self._mixer = None
        self._extend()

    def _accompany(self) -> None:
        callbacks = self.callback_handler.callbacks
        # The Trainer's own comes last; one that the caller brings, of a subclass even, stays.
        for index in reversed(range(len(callbacks))):
            if type(callbacks[index]) in (ProgressCallback, PrinterCallback):
                del callbacks[index]
                if not self.args.quiet:
                    bar = not self.args.disable_tqdm
                    callbacks.insert(index, ConsoleProgress(bar=bar, moment=self.moment))
                break
        if hasattr(self.train_dataset, "set_epoch"):
            self.add_callback(SetEpoch(self.train_dataset))
        if isinstance(self.train_dataset, StreamedImages):
            self.add_callback(SkipSeen(self.train_dataset))
        self.add_callback(self.health)
        self.add_callback(Divergence(self._guess()))

    def _guess(self) -> float | None:
        """The loss of guessing, where it is the cross entropy and nothing else is added to it."""
        classes = getattr(unwrap(self.model), "num_classes", None)
        own = any(
            type(quantizer).penalty is not Quantizer.penalty
            for quantizer in quantizers_of(self.model).values()
        )
        known = self._plain and self.compute_loss_func is None and not own
        return math.log(classes) if known and isinstance(classes, int) and classes > 1 else None

    def _extend(self) -> None:
        """Make what the arguments ask for beside the stock training."""
        args = self.args
        check_launched(args, enabled=self.is_fsdp_enabled)
        if args.teacher is not None:
            self._teacher = load_teacher(args.teacher, self.model, args.device)
        if args.ema_decay is not None:
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                raise ValueError(
                    "ema_decay needs whole parameters in every process, not FSDP or DeepSpeed: "
                    "type accelerate launch --multi_gpu, or leave ema_decay out"
                )
            self._ema = EmaCallback(args.ema_decay)
            self.add_callback(self._ema)
        if args.early_stopping_patience is not None:
            self.add_callback(
                EarlyStopping(args.early_stopping_patience, args.early_stopping_threshold)
            )
        if args.mixup or args.cutmix:
            self._mixer = mixer_for(self.model, args, plain=self._plain)

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; `gradient_checkpointing` works for models of timm too.

        A checkpoint is looked at before anything of it is loaded: whether its files are whole, and
        whether it fits this run. True means the newest whole one in `output_dir`.

        Args:
            resume_from_checkpoint: A checkpoint's directory, True (or ``"auto"``), or None.
            *args: As the Trainer's.
            **kwargs: As the Trainer's.

        Raises:
            ValueError: The checkpoint is torn, or contradicts the run; there is none; the model of
                timm does not know gradient checkpointing.
        """
        self._facts = facts_of(self)
        checkpoint = resumable(self, resume_from_checkpoint, self._facts)
        recompute = self._plain and self.args.gradient_checkpointing
        memory = (
            recomputed(self.model, self.args.gradient_checkpointing_kwargs)
            if recompute
            else nullcontext()
        )
        try:
            with memory, workers.one_line(_WORKERS, self.health.way_on):
                result = super().train(checkpoint, *args, **kwargs)
        finally:
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, ConsoleProgress):
                    callback.stop()
        self.settle_statistics()
        return result

    def settle_statistics(self) -> None:
        """Let the batch norms' statistics be those of all processes, of the average too.

        With `bn_reestimate`, of the weights as they are. Before they are evaluated or saved, so
        that the accuracy is that of the file. All processes must call.
        """
        average = None if self._ema is None else self._ema.average
        batches = self.args.bn_reestimate if self._estimated_at < self.state.global_step else None
        for model in (self.model, average):
            if model is not None and batches is not None:
                with self.compute_loss_context_manager():
                    reestimate_statistics(model, self._images(batches))
            if model is not None:
                reduce_statistics(model)
        self._estimated_at = self.state.global_step

    def _images(self, count: int) -> Iterator[Tensor]:
        """Of the first `count` training batches."""
        for batch in islice(self.get_train_dataloader(), count):
            yield batch["pixel_values"]

    def _get_dataloader(
        self, dataset: Any, description: str, batch_size: int, *rest: Any, **options: Any
    ) -> Any:
        """As the Trainer's; a stream learns the batch by which the loader's workers take turns."""
        if isinstance(dataset, StreamedImages):
            dataset.batch_size = batch_size
        return super()._get_dataloader(dataset, description, batch_size, *rest, **options)

    def set_initial_training_values(self, args: Any, dataloader: Any) -> Any:
        """As the Trainer's; remembers the optimizer steps of an epoch.

        Raises:
            ValueError: There is no image for every process; `lr_milestones` or `soft_epochs` count
                epochs of a data set without a length.
        """
        sized = hasattr(self.train_dataset, "__len__")
        if not sized:
            check_epochs(args)
        else:
            config = self.accelerator.dataloader_config
            check_share(
                len(self.train_dataset),
                self._train_batch_size,
                self.accelerator.num_processes,
                split=bool(config.split_batches),
                drop_last=args.dataloader_drop_last,
            )
        values = super().set_initial_training_values(args, dataloader)
        self.steps_per_epoch = values[1]
        if sized and self._has_lone_image(whole_epoch=values[6] >= values[1]):
            check_lone_image(
                self.model, self._see_one, len(self.train_dataset), self._train_batch_size
            )
        return values

    def _has_lone_image(self, *, whole_epoch: bool) -> bool:
        """Whether a batch of one process will hold one image.

        Of several processes accelerate fills up the last batch.
        """
        size, processes = self._train_batch_size, self.accelerator.num_processes
        if self.accelerator.dataloader_config.split_batches:
            size //= processes
        if size == 1 or processes > 1 or self.args.dataloader_drop_last:
            return size == 1
        return whole_epoch and len(self.train_dataset) % size == 1

    def _see_one(self) -> None:
        """Run the model on the first training image; no generator moves."""
        with seeded(0):
            batch = self._prepare_inputs(self.data_collator([self.train_dataset[0]]))
            check_images(batch, plain=self._plain)
            self.model(batch["pixel_values"]) if self._plain else self.model(**batch)

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """The `optimizer` of timm if one is named, else the Trainer's."""
        model = self.model if model is None else model
        named = self.args.optimizer is not None and self.optimizer_cls_and_kwargs is None
        if self.optimizer is None and named:
            names = self.get_decay_parameter_names(model)
            self.optimizer = create_timm_optimizer(self.args, model, names)
        optimizer: Optimizer = super().create_optimizer(model)
        return optimizer

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Parameters that weight decay reaches: timm's rule; never thresholds and scales."""
        return decay_names(model, quantizer_parameters(quantizers_of(model)).values())

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> Any:
        """The schedule of `lr_milestones` if given, else the Trainer's."""
        if self.lr_scheduler is None and self.args.lr_milestones is not None:
            self.lr_scheduler = multi_step_schedule(
                self.optimizer if optimizer is None else optimizer,
                [round(epoch * self.steps_per_epoch) for epoch in self.args.lr_milestones],
                self.args.lr_gamma,
                self.args.get_warmup_steps(num_training_steps),
            )
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, *args: Any, **kwargs: Any
    ) -> Any:
        """As the Trainer's; the batches are mixed, and carry what the teacher says of them.

        Raises:
            ValueError: The data end early.
        """
        if self.state.global_step >= self.state.max_steps > 0:
            # Resumed where it ends, within an epoch: the Trainer would take one step too many.
            self.control.should_training_stop = True
            return [], None
        try:
            batches, count = super().get_batch_samples(epoch_iterator, num_batches, *args, **kwargs)
        except ValueError as error:
            if "not contain any data" not in str(error):  # accelerate's, for an empty stream
                raise
            batches, count = [], None
        sized = hasattr(self.train_dataset, "__len__")
        self.health.check_batches(self.state, len(batches), num_batches, sized=sized)
        if batches and not self._labels_seen:
            self._labels_seen = True
            self._look_at_labels(batches[0])
        mixed = [self._mixed(batch, index) for index, batch in enumerate(batches)]
        return [self._taught(batch) for batch in mixed], count

    def _look_at_labels(self, batch: Any) -> None:
        """Say, at the first batch of a training, what does not fit several labels an image."""
        labels = batch.get("labels") if isinstance(batch, Mapping) else None
        single = metrics.names_one_class(labels)
        if single is None or bool(single.all()):
            return
        if self._smoothing:
            self._smooth_nothing()
        own_loss = type(self).task_loss is not ImageTrainer.task_loss or self.compute_loss_func
        if self._plain and not own_loss:
            _logger.warning(
                "labels (n, classes) that do not add up to 1 are those of a multi-label task, but "
                "the loss is cross entropy: pass compute_loss_func, e.g. lambda logits, labels, "
                "**_: binary_cross_entropy_with_logits(logits, labels)"
            )

    def _smooth_nothing(self) -> None:
        """As the Trainer's for a multi-label task, in its words."""
        warnings.warn(
            "Label smoothing is not compatible with multi-label classification. "
            "Disabling label smoothing for this training run.",
            UserWarning,
            stacklevel=2,
        )
        self._smoothing, self.label_smoother = 0.0, None

    def _mixed(self, batch: Any, index: int) -> Any:
        """Micro-batch `index` of the effective batch, mixed as its place in the run says."""
        if self._mixer is None:
            return batch
        check_images(batch, plain=self._plain)
        check_labels(batch, self._mixer.classes)
        return self._mixer(self._prepare_inputs(batch), self.place(index))

    def place(self, index: int) -> tuple[int, int]:
        """Where in the run micro-batch `index` of this process is: what random choices hang on."""
        processes = self.accelerator.num_processes
        return self.state.global_step, index * processes + self.accelerator.process_index

    def _taught(self, batch: Any) -> Any:
        if self._teacher is None:
            return batch
        check_images(batch, plain=self._plain)
        batch = self._prepare_inputs(batch)
        with self.accelerator.autocast():
            return {**batch, TEACHER_LOGITS: self._teacher(batch["pixel_values"])}

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """`task_loss`, the hits of a model in training counted for the log.

        Args:
            model: The model, wrapped for distribution or not.
            inputs: A batch: ``pixel_values``, ``(n, channels, height, width)``, and ``labels``,
                ``(n,)`` or probabilities ``(n, classes)``.
            return_outputs: Return ``(loss, {"loss": ..., "logits": ...})``.
            num_items_in_batch: Labels in the effective batch, for `compute_loss_func`.

        Returns:
            The loss, a scalar.
        """
        if self._teacher is not None and model.training and TEACHER_LOGITS not in inputs:
            inputs = self._taught(inputs)
        loss, outputs = self.task_loss(model, inputs, num_items_in_batch)
        logits, labels = logits_of(outputs), inputs.get("labels")
        if model.training:
            self._recent_loss = loss.detach()
        if model.training and not is_multi_label(self.model):
            self._accuracy.add(logits, labels)
        return (loss, outputs) if return_outputs else loss

    def task_loss(
        self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None
    ) -> tuple[Tensor, Any]:
        """What the model is to learn from a batch; counts nothing, and changes no state of ours.

        Cross entropy with `label_smoothing_factor`, or `compute_loss_func`, or the model's own;
        with what the teacher says of the batch where it carries that (``teacher_logits``).

        Args:
            model: As `compute_loss`.
            inputs: As `compute_loss`; it stays as it is.
            num_items_in_batch: As `compute_loss`.

        Returns:
            The loss, a scalar, and the outputs, of which ``logits`` are ``(n, classes)``.

        Raises:
            ValueError: The batch lacks images or labels, or a label is no class of the model.
        """
        check_images(inputs, plain=self._plain)
        if self.compute_loss_func is None:
            check_labels(inputs, class_count(self.model), needed=self._plain)
        taught = inputs.get(TEACHER_LOGITS)
        inputs = {key: value for key, value in inputs.items() if key != TEACHER_LOGITS}
        labels = inputs.get("labels")
        if self._plain:
            found = model(inputs["pixel_values"])
            given = self._given_loss(found, labels, num_items_in_batch)
            logits, outputs = plain_outputs(found)
            if logits is None and given is not None:
                return given, {**outputs, "loss": given}
            if logits is None:
                raise ValueError(
                    f"the model gives {type(found).__name__} without logits (n, classes): let its "
                    'forward return them, alone, first in a tuple, or as "logits" in a dict'
                )
        else:
            given, outputs = super().compute_loss(
                model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
            )
            logits = logits_of(outputs)
            if logits is None:
                return given, outputs
        loss = task_loss(
            logits,
            labels,
            taught,
            smoothing=self._smoothing,
            given=given,
            alpha=self.args.distill_alpha,
            temperature=self.args.distill_temperature,
            share=self._share(len(logits), num_items_in_batch),
        )
        return loss, {**outputs, "loss": loss} if self._plain else outputs

    def _given_loss(self, found: Any, labels: Any, count: Any) -> Any:
        """What `compute_loss_func` says of what a plain model gives; None without one."""
        if self.compute_loss_func is None:
            return None
        loss = self.compute_loss_func(found, labels, num_items_in_batch=count)
        if self.args.average_tokens_across_devices and count is not None:
            # The number is that of all processes, whose gradients are averaged later on.
            loss = loss * self.accelerator.num_processes
        return loss

    def _share(self, images: int, count: Any) -> Any:
        """Weight of a mean over a micro-batch where the Trainer does not average over them.

        It leaves that to a model or function that is told `count`, the labels of the effective
        batch; with `average_tokens_across_devices` those of all processes.
        """
        told = self.model_accepts_loss_kwargs or self.compute_loss_func is not None
        if count is None or not told:
            return 1.0
        shared = self.args.average_tokens_across_devices
        return images / count * (self.accelerator.num_processes if shared else 1)

    def loss_is_scaled(self, count: Any) -> bool:
        """Whether a loss is the micro-batch's share of the effective batch's already.

        The Trainer's own rule: whoever is told `count` has scaled it; else the Trainer divides.
        """
        said: bool | None = getattr(self, "loss_is_scaled_for_ga", None)
        if said is not None:
            return said
        told = self.model_accepts_loss_kwargs and count is not None
        return told or self.compute_loss_func is not None

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> Any:
        """As the Trainer's; a plain model without labels gives logits ``(n, classes)`` alone."""
        check_images(inputs, plain=self._plain)
        if self._plain and inputs.get("labels") is None:
            inputs = self._prepare_inputs(inputs)
            with torch.no_grad(), self.compute_loss_context_manager():
                _, outputs = plain_outputs(model(inputs["pixel_values"]))
            # As the Trainer: of one output that, of several a tuple.
            given = nested_detach(tuple(outputs.values()))
            logits = given[0] if len(given) == 1 else given
            return None, None if prediction_loss_only else logits, None
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def evaluation_loop(
        self, dataloader: Any, description: str, *args: Any, **kwargs: Any
    ) -> EvalLoopOutput:
        """As the Trainer's, each weight quantized once. `predict` returns logits, not classes."""
        self.settle_statistics()
        keep = self.preprocess_logits_for_metrics
        counts_hits = self.compute_metrics is self._top1
        if counts_hits and keep is None and description != "Prediction":
            self.preprocess_logits_for_metrics = metrics.predicted_class
        try:
            # A compiled model would take the cache, a global variable, for part of its graph.
            cache = nullcontext() if self.args.torch_compile else parametrize.cached()
            with self.averaged(), cache, workers.one_line(_WORKERS, self.health.way_on):
                output = super().evaluation_loop(dataloader, description, *args, **kwargs)
        finally:
            self.preprocess_logits_for_metrics = keep
        if counts_hits and is_multi_label(self.model):
            for name in [name for name in output.metrics if name.endswith("_accuracy")]:
                del output.metrics[name]
        found = {name.rpartition("_")[2] for name in output.metrics}
        if counts_hits and description != "Prediction" and "accuracy" not in found:
            self._watch_the_loss()
        return output

    def _watch_the_loss(self) -> None:
        """The task has no accuracy: an unset `metric_for_best_model` is the Trainer's."""
        schedule = self.lr_scheduler
        if self.args.settle_best(accuracy=False) and hasattr(schedule, "best"):
            # One that waits for a plateau was made to watch the accuracy.
            schedule.mode = self.args.lr_scheduler_kwargs["mode"]
            schedule.best = math.inf if schedule.mode == "min" else -math.inf

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the model holds its moving average, if there is one."""
        return nullcontext() if self._ema is None else self._ema.swapped(self.model)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """As the Trainer's, and the average, and config.json of a timm model, by which timm loads
        it."""
        state_dict = self.model.state_dict() if state_dict is None else state_dict
        super()._save(output_dir, as_safetensors(state_dict))
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        write_config(model, Path(output_dir or str(self.args.output_dir)))
        if self._ema is not None and self.args.should_save:
            # Not in on_save: that comes after the file which says that a checkpoint is whole.
            self._ema.save(output_dir or str(self.args.output_dir))

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """As the Trainer's; a model that is not finite is not written, nor a good one deleted.

        Raises:
            ValueError: A parameter is not finite (names it).
        """
        self.health.check_model(self.model, self.state)
        self.settle_statistics()
        directory = checkpoint_directory(self.args.output_dir, self.state)
        if self.args.should_save:
            begin(directory)
        super()._save_checkpoint(*args, **kwargs)
        self.accelerator.wait_for_everyone()  # each process has written its random numbers
        if self.args.should_save and directory.is_dir():
            write_record(directory, self._facts | {"batch": batch_facts(self)})

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As the Trainer's.

        Raises:
            ValueError: The checkpoint, of an earlier version, has another kind of optimizer.
        """
        with same_optimizer(self, checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_best_model(self) -> None:
        """As the Trainer's; of a best checkpoint that was damaged since, nothing is taken."""
        if not best_is_whole(self.state):
            self.state.best_model_checkpoint = None
            return
        super()._load_best_model()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """As the Trainer's, and the average; later errors name the checkpoint."""
        self.health.last_good = str(resume_from_checkpoint)
        if self._ema is not None:
            self._ema.resume_from(resume_from_checkpoint)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """As the Trainer's.

        Raises:
            ValueError: The evaluation does not report `metric_for_best_model`.
        """
        check_metric(self.args.metric_for_best_model, metrics)
        better: bool = super()._determine_best_metric(metrics=metrics, trial=trial)
        return better

    def moment(self) -> dict[str, Any]:
        """How training stands between two logs, in this process: for the console.

        Returns:
            ``phase``, what is trained, in words; ``loss`` of the last micro-batch; ``accuracy``, 0
            to 1, since the last log. What is not known is left out.
        """
        found: dict[str, Any] = {"phase": "weights"}
        if self._recent_loss is not None:
            found["loss"] = float(self._recent_loss)
        if (accuracy := self._accuracy.peek()) is not None:
            found["accuracy"] = accuracy
        return found

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the Trainer's; a training log gets the accuracy, 0 to 1, since the last one."""
        if "loss" in logs:
            accuracy = self._accuracy.take(self.accelerator)
            if accuracy is not None:
                logs["accuracy"] = accuracy
        super().log(logs, start_time)


def _given(made: Any, kind: Any = None) -> str | None:
    """The class of an optimizer or a schedule that the caller has made, or (`kind`) will have."""
    if made is not None:
        return type(made).__name__
    return None if kind is None else str(getattr(kind[0], "__name__", kind[0]))


def _checked(args: Any) -> TernaryTrainingArguments:
    if not isinstance(args, TernaryTrainingArguments):
        raise ValueError(
            f"args must be timm_ternary.training.TernaryTrainingArguments (same fields and "
            f"more), got {type(args).__name__}"
        )
    if args.n_gpu > 1:
        raise ValueError(
            f"got {args.n_gpu} GPUs in one process (DataParallel), allowed is one; type: "
            f"accelerate launch --multi_gpu --num_processes {args.n_gpu} -m "
            f"timm_ternary.train RECIPE.yaml, or set CUDA_VISIBLE_DEVICES=0"
        )
    return args
