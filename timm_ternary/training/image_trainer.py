"""ImageTrainer: transformers' Trainer for classifiers of images, timm's models included."""

from __future__ import annotations

import inspect
import os
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from transformers import PrinterCallback, ProgressCallback
from transformers.trainer_pt_utils import LabelSmoother
from transformers.trainer_utils import EvalLoopOutput

from ..data.datasets.streamed import StreamedImages
from . import metrics as monitor
from .arguments.trainer import TernaryTrainingArguments
from .callbacks.ema import EmaCallback
from .callbacks.progress import ConsoleProgress, EarlyStopping, SetEpoch, SkipSeen
from .checked_trainer import CheckedTrainer
from .distill import TEACHER_LOGITS, Teacher, class_count, distillation_loss, load_teacher
from .gradient_checkpointing import recomputed
from .mixup import Mixer

__all__ = ["ImageTrainer"]


class ImageTrainer(CheckedTrainer):
    """Loss, evaluation and accuracy of image classifiers; `TernaryTrainer` adds ternary training.

    With a `teacher` the training loss is a·L + (1 - a)·T²·KL(teacher ‖ student), L the loss
    against the labels; evaluation knows no teacher. The teacher sees a batch once, however often
    the student does.

    With `ema_decay`, a moving average of the model is what `evaluate` and `predict` see; after
    training the model holds it. Checkpoints hold both.

    With `mixup` or `cutmix`, training batches are mixed once, for all that sees them; the training
    accuracy counts the larger share as the label.

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
    compute_metrics: Any
    preprocess_logits_for_metrics: Any
    _teacher: Teacher | None
    _ema: EmaCallback | None
    _mixer: Mixer | None

    def __init__(self, model: Any = None, args: Any = None, *rest: Any, **options: Any) -> None:
        args = TernaryTrainingArguments("tmp_trainer") if args is None else args
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
        # The Trainer would look for the `config` of a model that has none.
        smoothing, args.label_smoothing_factor = args.label_smoothing_factor, 0.0
        try:
            super().__init__(model, args, *rest, **options)
        finally:
            args.label_smoothing_factor = smoothing
        self._plain = "pixel_values" not in inspect.signature(self.model.forward).parameters
        if smoothing and not self._plain:
            self.label_smoother = LabelSmoother(epsilon=smoothing)
        if self._plain:
            # A timm model's **kwargs are not for the Trainer.
            self.model_accepts_loss_kwargs = False
        if self.compute_metrics is None:
            self.compute_metrics = monitor.top1
            if self.preprocess_logits_for_metrics is None:
                self.preprocess_logits_for_metrics = monitor.predicted_class
        for callback in (ProgressCallback, PrinterCallback):
            if self.pop_callback(callback) is not None:
                self.add_callback(ConsoleProgress(bar=not args.disable_tqdm))
        if hasattr(self.train_dataset, "set_epoch"):
            self.add_callback(SetEpoch(self.train_dataset))
        if isinstance(self.train_dataset, StreamedImages):
            self.add_callback(SkipSeen(self.train_dataset))
        self._accuracy = monitor.Accuracy()
        self._counting = False
        self._teacher = self._ema = self._mixer = None
        self._extend()

    def _extend(self) -> None:
        """Make what the arguments ask for beside the stock training."""
        args = self.args
        asked = args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
        if asked and args.world_size > 1 and not self.is_fsdp_enabled:
            raise ValueError(
                "FSDP is asked for, and accelerate trains without it on the CPU: use GPUs, or "
                "leave fsdp and --use_fsdp out"
            )
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
            classes = class_count(self.model)
            if classes is None or not self._plain:
                raise ValueError(
                    "mixup and cutmix need a model of timm, whose num_classes says how many "
                    f"classes there are, got {type(self.model).__name__}: leave them out"
                )
            self._mixer = Mixer(
                mixup=args.mixup, cutmix=args.cutmix, classes=classes, seed=args.seed
            )

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; `gradient_checkpointing` works for models of timm too.

        Raises:
            ValueError: The model of timm does not know gradient checkpointing.
        """
        if not (self._plain and self.args.gradient_checkpointing):
            return super().train(*args, **kwargs)
        with recomputed(self.model, self.args.gradient_checkpointing_kwargs):
            return super().train(*args, **kwargs)

    def _get_dataloader(
        self, dataset: Any, description: str, batch_size: int, *rest: Any, **options: Any
    ) -> Any:
        """As the Trainer's; a stream learns the batch by which the loader's workers take turns."""
        if isinstance(dataset, StreamedImages):
            dataset.batch_size = batch_size
        return super()._get_dataloader(dataset, description, batch_size, *rest, **options)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """As CheckedTrainer's; the batches are mixed, and carry what the teacher says of them."""
        batches, count = super().get_batch_samples(*args, **kwargs)
        mixed = [self._mixed(batch, index) for index, batch in enumerate(batches)]
        return [self._taught(batch) for batch in mixed], count

    def _mixed(self, batch: Any, index: int) -> Any:
        """Micro-batch `index` of the effective batch, mixed as its place in the run says."""
        if self._mixer is None:
            return batch
        return self._mixer(self._prepare_inputs(batch), self._place(index))

    def _place(self, index: int) -> tuple[int, int]:
        """Where in the run micro-batch `index` of this process is: what random choices hang on."""
        processes = self.accelerator.num_processes
        return self.state.global_step, index * processes + self.accelerator.process_index

    def _taught(self, batch: Any) -> Any:
        if self._teacher is None:
            return batch
        batch = self._prepare_inputs(batch)
        with self.accelerator.autocast():
            return {**batch, TEACHER_LOGITS: self._teacher(batch["pixel_values"])}

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As the Trainer's; counts the hits of the batch."""
        self._counting = True
        try:
            loss: Tensor = super().training_step(*args, **kwargs)
        finally:
            self._counting = False
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Cross entropy with `label_smoothing_factor`, or `compute_loss_func`, or the model's own.

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
        taught = inputs.get(TEACHER_LOGITS)
        inputs = {key: value for key, value in inputs.items() if key != TEACHER_LOGITS}
        labels = inputs.get("labels")
        logits: Tensor | None
        if self._plain:
            loss, logits = self._plain_loss(model, inputs, num_items_in_batch)
            outputs: Any = {"loss": loss, "logits": logits}
        else:
            loss, outputs = super().compute_loss(
                model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
            )
            logits = outputs.get("logits") if isinstance(outputs, dict) else None
        if taught is not None and logits is not None:
            soft = distillation_loss(logits, taught, self.args.distill_temperature)
            soft = soft * self._share(len(logits), num_items_in_batch)
            loss = self.args.distill_alpha * loss + (1 - self.args.distill_alpha) * soft
        if self._counting and logits is not None and labels is not None:
            self._accuracy.add(logits, labels)
        return (loss, outputs) if return_outputs else loss

    def _plain_loss(self, model: nn.Module, inputs: Any, count: Any) -> tuple[Any, Tensor]:
        """Loss and logits of a model of timm."""
        logits, labels = model(inputs["pixel_values"]), inputs["labels"]
        if self.compute_loss_func is not None:
            loss = self.compute_loss_func(logits, labels, num_items_in_batch=count)
            if self.args.average_tokens_across_devices and count is not None:
                # The number is that of all processes, whose gradients are averaged later on.
                loss = loss * self.accelerator.num_processes
            return loss, logits
        target = labels.to(logits.dtype) if labels.is_floating_point() else labels
        smoothing = self.args.label_smoothing_factor
        return F.cross_entropy(logits, target, label_smoothing=smoothing), logits

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

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> Any:
        """As the Trainer's; a plain model without labels gives logits ``(n, classes)`` alone."""
        if self._plain and inputs.get("labels") is None:
            inputs = self._prepare_inputs(inputs)
            with torch.no_grad(), self.compute_loss_context_manager():
                logits = model(inputs["pixel_values"])
            return None, None if prediction_loss_only else logits, None
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def evaluation_loop(
        self, dataloader: Any, description: str, *args: Any, **kwargs: Any
    ) -> EvalLoopOutput:
        """As the Trainer's, each weight quantized once. `predict` returns logits, not classes."""
        keep = self.preprocess_logits_for_metrics
        if description == "Prediction" and keep is monitor.predicted_class:
            self.preprocess_logits_for_metrics = None
        try:
            # A compiled model would take the cache, a global variable, for part of its graph.
            cache = nullcontext() if self.args.torch_compile else parametrize.cached()
            average = nullcontext() if self._ema is None else self._ema.swapped(self.model)
            with average, cache:
                return super().evaluation_loop(dataloader, description, *args, **kwargs)
        finally:
            self.preprocess_logits_for_metrics = keep

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """As the Trainer's, and the average; safetensors refuses the strides of channels_last."""
        state_dict = self.model.state_dict() if state_dict is None else state_dict
        super()._save(output_dir, {name: t.contiguous() for name, t in state_dict.items()})
        if self._ema is not None and self.args.should_save:
            # Not in on_save: that comes after the file which says that a checkpoint is whole.
            self._ema.save(output_dir or str(self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """As the Trainer's, and the average."""
        if self._ema is not None:
            self._ema.resume_from(resume_from_checkpoint)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the Trainer's; a training log gets the accuracy, 0 to 1, since the last one."""
        if "loss" in logs:
            accuracy = self._accuracy.take(self.accelerator)
            if accuracy is not None:
                logs["accuracy"] = accuracy
        super().log(logs, start_time)
