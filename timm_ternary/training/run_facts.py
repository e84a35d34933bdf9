"""What a run writes of itself into training.json: facts that a model card may state."""

from __future__ import annotations

import json
import os
import platform
import shlex
from collections.abc import Mapping, Sequence, Sized
from dataclasses import MISSING, fields
from datetime import datetime, timezone
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from accelerate.utils import gather_object
from timm.models import parse_model_name

from ..checkpoint.run_files import (
    METRICS_NAME,
    TRAINING_NAME,
    BaseFacts,
    DatasetFacts,
    HardwareFacts,
    TrainingFacts,
    read_metrics,
    read_training,
)
from ..checkpoint.weights_file import WEIGHTS_NAME
from ..config import TernaryConfig
from ..data.arguments import TIMM, DataArguments
from ..data.load import Data
from ..files import sha256
from ..quantizers import resolve
from ..version import __version__
from .arguments.model import ModelArguments
from .arguments.trainer import TernaryTrainingArguments
from .start import Start

__all__ = ["gpu_names", "training_facts"]

# Arguments that have a place of their own, or that say where and how a run is watched.
_UNTOLD = {
    *("model", "pretrained", "checkpoint", "ternary", "dataset", "dataset_config"),
    *("train_split", "eval_split", "output_dir", "run_name", "project", "resume_from_checkpoint"),
    *("report_to", "disable_tqdm", "use_cpu", "debug", "accelerator_config", "deepspeed", "fsdp"),
    *("trackio_space_id", "push_to_hub", "fsdp_config", "ddp_timeout", "torch_empty_cache_steps"),
}
_UNTOLD_GROUPS = ("do_", "hub_", "log_", "logging_", "save_", "dataloader_", "trackio_")


def training_facts(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: TernaryTrainingArguments,
    *,
    start: Start,
    data: Data,
    config: TernaryConfig | None,
    state: Any,
    seconds: float | None,
    gpus: Sequence[str],
) -> TrainingFacts:
    """The content of training.json. Of a path it holds the last name only.

    Args:
        start: What the run started from.
        config: How the model was made ternary; None for a float model.
        state: The Trainer's, after training.
        seconds: Of the whole training; None where only a part of it was timed.
        gpus: Of all processes; empty for a run on CPUs.
    """
    left_out: dict[str, str] = {}
    dataset = _dataset(data_args, data)
    base = _base(model_args, start, dataset, left_out)
    evaluation = _evaluation(data_args, dataset, left_out)
    if seconds is None:
        left_out["seconds"] = "the run was resumed, and only its last part timed"
    return TrainingFacts(
        weights_sha256=sha256(Path(args.output_dir) / WEIGHTS_NAME),
        dataset=dataset,
        base=base,
        ternary=None if config is None else resolve(config).to_dict(),
        arguments=_arguments(model_args) | _arguments(data_args) | _arguments(args),
        seconds=seconds,
        steps=state.global_step,
        epochs=state.epoch,
        hardware=_hardware(gpus, args.world_size),
        versions=_versions(),
        date=datetime.now(timezone.utc).date().isoformat(),
        evaluation=evaluation,
        left_out=left_out,
    )


def gpu_names(args: TernaryTrainingArguments) -> list[str]:
    """The accelerators of all processes; empty for a run on CPUs. All processes must call."""
    if args.device.type == "cpu":
        return []
    name = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else None
    return list(gather_object([name or args.device.type]))


def _dataset(args: DataArguments, data: Data) -> DatasetFacts:
    train, evaluation = (len(d) if isinstance(d, Sized) else None for d in (data.train, data.eval))
    return DatasetFacts(
        name=_dataset_name(args.dataset),
        hub_id=str(args.dataset) if _on_hub(args.dataset) else None,
        config=args.dataset_config,
        train_split=data.splits[0],
        train_images=train,
        eval_split=data.splits[1],
        eval_images=evaluation,
        classes=data.num_classes,
    )


def _dataset_name(dataset: Any) -> str:
    """As on the command line, paths cut to their last name."""
    if isinstance(dataset, Mapping):
        return json.dumps({str(key): _file_names(files) for key, files in dataset.items()})
    name = str(dataset)
    if not name.startswith(TIMM):
        return name if _on_hub(dataset) or name == "digits" else _last_name(name)
    reader, colon, root = name.removeprefix(TIMM).rpartition(":")
    return f"{TIMM}{reader}{colon}{_last_name(root)}"


def _file_names(files: Any) -> Any:
    if isinstance(files, list):
        return [_last_name(str(file)) for file in files]
    return _last_name(str(files))


def _on_hub(dataset: Any) -> bool:
    """Whether `dataset` names a data set of the Hub, by the rules of data_sources.py."""
    if isinstance(dataset, Mapping) or dataset == "digits" or str(dataset).startswith(TIMM):
        return False
    return not os.path.exists(os.path.expanduser(str(dataset)))


def _last_name(path: str) -> str:
    # Of an address without its query, which may hold a signature.
    path = urlsplit(path).path if "://" in path else path
    return os.path.basename(os.path.abspath(os.path.expanduser(path)))


def _base(
    args: ModelArguments, start: Start, dataset: DatasetFacts, left_out: dict[str, str]
) -> BaseFacts | None:
    """The weights that the run started from; None where it started from random ones."""
    source, name = parse_model_name(args.model)
    directory = name if source == "local-dir" and start.trained else args.checkpoint
    if directory:
        accuracy = _float_accuracy(Path(directory).expanduser(), dataset, left_out)
        return BaseFacts(_last_name(directory), None, accuracy)
    if not start.trained:
        left_out["base"] = "the run started from random weights"
        return None
    left_out["float_accuracy"] = "the base checkpoint was not evaluated on this data set"
    hub_id = name.partition("@")[0] if source == "hf-hub" else start.cfg.get("hf_hub_id")
    return BaseFacts(hub_id or args.model, hub_id)


def _float_accuracy(path: Path, dataset: DatasetFacts, left_out: dict[str, str]) -> float | None:
    """Of a checkpoint's own run, where that was float and on the same images."""
    weights = path / WEIGHTS_NAME if path.is_dir() else path
    missing = "float_accuracy"
    try:
        facts, metrics = read_training(weights.parent), read_metrics(weights.parent) or {}
        accuracy, digest = float(metrics["eval_accuracy"]), sha256(weights)
    except (OSError, ValueError, KeyError, TypeError):
        facts = None
    if facts is None:
        left_out[missing] = (
            f"no {TRAINING_NAME} and {METRICS_NAME} of a float run beside the base checkpoint"
        )
        return None
    if facts.ternary is not None:
        left_out[missing] = "the base checkpoint is ternary"
    elif facts.dataset != dataset:
        left_out[missing] = "the base checkpoint was evaluated on another data set"
    elif facts.weights_sha256 != digest:
        left_out[missing] = "the base checkpoint was changed after its evaluation"
    return None if missing in left_out else accuracy


def _arguments(args: Any) -> dict[str, Any]:
    """The fields of a dataclass whose values are not their defaults."""
    told = {}
    for entry in fields(args):
        if not entry.init or entry.name in _UNTOLD or entry.name.startswith(_UNTOLD_GROUPS):
            continue
        default = entry.default
        if entry.default_factory is not MISSING:
            default = entry.default_factory()
        value = getattr(args, entry.name)
        # TrainingArguments itself replaces some empty values by others.
        if value != default and (value or default):
            told[entry.name] = _public(value)
    return told


def _public(value: Any) -> Any:
    """`value` as JSON holds it, paths cut to their last name."""
    if isinstance(value, Enum):
        return _public(value.value)
    if isinstance(value, Mapping):
        return {str(key): _public(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_public(entry) for entry in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = str(value).removeprefix("local-dir:")
    path = os.path.expanduser(text)  # unlike Path's, it knows no errors
    local = os.path.isabs(path) or os.path.exists(path) or text.startswith("..") or "://" in text
    return _last_name(text) if local else text


def _evaluation(args: DataArguments, dataset: DatasetFacts, left_out: dict[str, str]) -> str | None:
    """The command that measures the accuracy again; DIR stands for the packed directory."""
    if args.dataset_config is not None:
        left_out["evaluation"] = "the command line takes no configuration of a Hub data set"
    elif args.streaming and args.max_eval_samples is not None:
        left_out["evaluation"] = "the first images of a stream were taken"
    if "evaluation" in left_out:
        return None
    options = {
        "--dataset": dataset.name,
        "--split": dataset.eval_split,
        "--image-column": args.image_column,
        "--label-column": args.label_column,
        "--max-samples": args.max_eval_samples,
    }
    words = [word for name, v in options.items() if v is not None for word in (name, str(v))]
    return shlex.join(["timm-ternary", "evaluate", "DIR", *words])


def _hardware(gpus: Sequence[str], processes: int) -> HardwareFacts:
    """Of the CPU: its name, and how many of its cores this process may use."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((x.partition(":")[2].strip() for x in lines if "model name" in x), name)
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return HardwareFacts(name, count, list(gpus), processes)


def _versions() -> dict[str, str]:
    found = {name: version(name) for name in ("torch", "timm", "transformers", "accelerate")}
    return {"python": platform.python_version(), **found, "timm_ternary": __version__}
