"""What other programs call the fields of a recipe: the name that is meant is suggested."""

from __future__ import annotations

from collections.abc import Collection

from ...errors.wording import unknown

__all__ = ["unknown_field"]

# timm's train.py, torchvision's references, common habit. Not accepted: a recipe has one spelling.
_MEANT = {
    "model": ("arch", "architecture", "backbone", "model_name", "name", "network"),
    "checkpoint": (
        "checkpoint_path", "ckpt", "init_checkpoint", "initial_checkpoint", "load", "weights",
    ),
    "ternary": ("method", "quant", "quantization", "quantizer", "ternary_config"),
    "model_kwargs": ("drop", "drop_path", "drop_path_rate", "drop_rate", "kwargs", "model_args"),
    "in_chans": ("channels", "in_channels", "input_channels", "num_channels"),
    "dataset": ("data", "data_dir", "data_path", "dataset_name", "root", "train_dir"),
    "dataset_config": ("config_name", "dataset_config_name", "subset"),
    "eval_split": ("test_split", "val_split", "valid_split", "validation_split"),
    "image_column": ("image_key", "img_column", "input_key"),
    "label_column": ("label_key", "target_column", "target_key"),
    "num_classes": ("classes", "nb_classes", "num_labels"),
    "image_size": ("crop_size", "img_size", "input_size", "resolution", "size"),
    "hflip": ("flip", "horizontal_flip"),
    "random_resized_crop": ("crop", "rrc", "scale"),
    "color_jitter": ("colorjitter", "jitter"),
    "auto_augment": ("aa", "augment", "augmentation", "rand_augment", "randaugment"),
    "re_prob": ("erase", "random_erase", "random_erasing", "reprob"),
    "max_train_samples": ("limit", "train_samples"),
    "learning_rate": ("base_lr", "blr", "lr", "rate"),
    "weight_decay": ("decay", "l2", "opt_weight_decay", "wd"),
    "threshold_learning_rate": ("lr_threshold", "threshold_lr", "threshold_rate"),
    "optimizer": ("opt", "optim_name"),
    "lr_milestones": ("decay_epochs", "decay_milestones", "milestones", "steps_lr"),
    "lr_gamma": ("decay_rate", "gamma", "lr_decay"),
    "lr_scheduler_type": ("lr_schedule", "lr_scheduler", "sched", "schedule", "scheduler"),
    "warmup_steps": ("warmup", "warmup_epochs", "warmup_ratio"),
    "num_train_epochs": ("epoch", "epochs", "max_epochs", "n_epochs", "num_epochs"),
    "max_steps": ("iterations", "iters", "max_iters", "steps", "total_steps"),
    "per_device_train_batch_size": ("b", "batch", "batch_size", "bs", "train_batch_size"),
    "per_device_eval_batch_size": (
        "eval_batch_size", "test_batch_size", "val_batch_size", "validation_batch_size",
    ),
    "gradient_accumulation_steps": (
        "accum_iter", "accumulate", "accumulation_steps", "grad_accum", "grad_accum_steps",
    ),
    "max_grad_norm": ("clip", "clip_grad", "clip_grad_norm", "grad_clip", "gradient_clip"),
    "label_smoothing_factor": ("label_smoothing", "smoothing"),
    "teacher": ("distill", "teacher_model", "teacher_path"),
    "distill_alpha": ("alpha", "kd_alpha"),
    "distill_temperature": ("kd_temperature", "t", "tau", "temperature"),
    "ema_decay": ("ema", "model_ema", "model_ema_decay"),
    "mixup": ("mixup_alpha",),
    "cutmix": ("cutmix_alpha",),
    "early_stopping_patience": ("early_stop", "early_stopping", "patience"),
    "metric_for_best_model": ("best_metric", "eval_metric", "metric", "monitor"),
    "output_dir": ("log_dir", "out", "out_dir", "output", "save_dir"),
    "resume_from_checkpoint": ("auto_resume", "resume", "resume_from"),
    "eval_strategy": ("evaluation_strategy",),
    "eval_steps": ("eval_every", "eval_interval"),
    "save_steps": ("checkpoint_every", "checkpoint_interval", "save_every", "save_interval"),
    "logging_steps": ("log_every", "log_interval", "log_steps", "print_freq"),
    "dataloader_num_workers": ("num_workers", "workers"),
    "dataloader_drop_last": ("drop_last",),
    "dataloader_pin_memory": ("pin_memory", "pin_mem"),
    "use_cpu": ("cpu", "device", "no_cuda"),
    "bf16": ("amp", "amp_dtype", "half", "mixed_precision", "precision"),
    "gradient_checkpointing": ("checkpoint_activations", "grad_checkpointing"),
    "torch_compile": ("compile", "torchcompile"),
    "push_to_hub": ("publish", "push", "upload"),
    "hub_model_id": ("hub_id", "hub_name", "repo", "repo_id"),
    "report_to": ("log_wandb", "logger", "tracker", "wandb"),
    "run_name": ("experiment", "experiment_name"),
    "quiet": ("q", "silent"),
}  # fmt: skip
_FIELD_OF = {other: field for field, others in _MEANT.items() for other in others}


def unknown_field(kind: str, name: str, fields: Collection[str]) -> str:
    """One line for a name that is no field: the one that is meant, or the nearest.

    Args:
        kind: ``"key"`` of a recipe, or ``"option"`` of a command line, which begins with dashes.
        name: As it was given.
        fields: The names there are, without dashes.
    """
    dashes = "--" if kind == "option" else ""
    meant = _FIELD_OF.get(name.lstrip("-").replace("-", "_").lower())
    guess = dashes + meant if meant is not None and meant in fields else None
    return unknown(kind, name, [dashes + field for field in fields], meant=guess)
