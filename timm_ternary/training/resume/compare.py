"""What a checkpoint and a run say of each other: contradictions, and what merely changes."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ...checkpoint.weights_file import WEIGHTS_NAME
from ...errors.foreign import foreign
from ...errors.printable import printable
from ...nn.state_dict import readable_name
from .facts import shortest
from .record import read_record, read_state

__all__ = ["changes", "check_fits", "contradictions"]

_SHOWN = 4
_WIDTH = 120


@dataclass(frozen=True)
class Contradiction:
    """One thing that the checkpoint and the run have otherwise.

    Attributes:
        text: E.g. ``"method is 'tga' there, 'ttq' here"``.
        typed: What to type to have it as in the checkpoint, e.g. ``"--ternary tga"``; empty where
            no option does it.
    """

    text: str
    typed: str = ""


def check_fits(directory: Path, here: Mapping[str, Any], model: nn.Module, args: Any) -> list[str]:
    """Refuse a checkpoint that contradicts a run, before anything of it is loaded.

    Args:
        directory: A checkpoint whose files are whole.
        here: The facts of the run.
        model: Of the run; its tensors are compared with those of the file.
        args: Of the run.

    Returns:
        One line for each kind of thing that may change and does, to be said to the user.

    Raises:
        ValueError: They contradict each other. One line: each contradiction, and what to type.
    """
    record = read_record(directory)
    there: Mapping[str, Any] = {} if record is None else record.facts
    found = [*contradictions(there, here), *_ended(read_state(directory), args)]
    if not found:
        found = list(_strange_tensors(directory, model))
    if not found:
        found = [*_strange_scaler(directory, there, here), *_strange_schedule(directory, here)]
    if found:
        raise ValueError(_line(directory, found))
    return changes(directory, there, here)


def contradictions(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[Contradiction]:
    """What two runs have otherwise that no checkpoint can bridge.

    Args:
        there: Facts in the checkpoint; of an entry that it lacks nothing is said.
        here: Facts of the run.
    """
    for name, compare in _COMPARED.items():
        if name in there and there[name] != here.get(name):
            yield from compare(there, here)


def changes(directory: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Lines about what is other than in the checkpoint, and may be."""
    lines = []
    kept = list(_changed("kept", there, here))
    if kept:
        told = ", ".join(
            f"{name} stays {_short(old)}, not {_short(new)}" for name, old, new in kept
        )
        lines.append(
            f"the optimizer's state in {directory} brings its own settings: {told}; to change "
            "them start from its weights by --checkpoint"
        )
    other = list(_changed("continued", there, here))
    for name in ("ema_decay", "images"):
        if there.get(name) is not None and there[name] != here.get(name):
            other.append((name, there[name], here.get(name)))
    if other:
        told = ", ".join(f"{name} {_short(old)} becomes {_short(new)}" for name, old, new in other)
        lines.append(
            f"resuming from {directory} with other settings than it was trained with: {told}"
        )
    return lines


def _changed(
    key: str, there: Mapping[str, Any], here: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    old, new = there.get(key), here[key]
    for name, value in new.items():
        if isinstance(old, Mapping) and name in old and old[name] != value:
            yield name, old[name], value


def _model(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[Contradiction]:
    yield Contradiction(
        _differ("model", there["model"], here["model"]), _option("model", there["model"])
    )


def _classes(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[Contradiction]:
    yield Contradiction(
        f"{_differ('number of classes', there['classes'], here['classes'])} (take the data that it "
        "was trained on)"
    )


def _ternary(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[Contradiction]:
    old, new = there["ternary"], here["ternary"]
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        if there.get("model") == here["model"]:  # else the names of the models say it
            kinds = ["float" if x is None else "ternary" for x in (old, new)]
            yield Contradiction(f"the model is {kinds[0]} there, {kinds[1]} here")
        return
    typed = _option("ternary", shortest(old))
    if old.get("method") != new["method"]:
        yield Contradiction(_differ("method", old.get("method"), new["method"]), typed)
        return
    for name in ("granularity", "exclude"):
        if old.get(name) != new[name]:
            yield Contradiction(_differ(name, old.get(name), new[name]), typed)
    options, own = old.get("options"), new["options"]
    if isinstance(options, Mapping):
        for name in sorted({**options, **own}):
            if options.get(name) != own.get(name):
                text = _differ(f"option {name}", options.get(name), own.get(name))
                yield Contradiction(text, typed)


def _layers(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[Contradiction]:
    if any(there.get(name) != here[name] for name in ("model", "ternary")):
        return  # it follows from these
    yield Contradiction(_sets("ternary layers", there["layers"], here["layers"]))


def _frozen(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[Contradiction]:
    if any(there.get(name) != here[name] for name in ("model", "ternary", "layers")):
        return
    yield Contradiction(
        f"{_sets('frozen parameters', there['frozen'], here['frozen'])} (freeze the same)"
    )


def _optimizer(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[Contradiction]:
    old, new = there["optimizer"], here["optimizer"]
    if not isinstance(old, Mapping) or len(old) != 1:
        return
    ((key, value),) = old.items()
    typed = "" if key == "class" else _option(key, value)
    if key == "optim" and "optimizer" in new:
        typed += ", without --optimizer"
    yield Contradiction(_differ("optimizer", value, *new.values()), typed)


def _schedule(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[Contradiction]:
    names = []
    for facts in (there, here):
        continued = facts.get("continued")
        known = continued.get("lr_scheduler_type") if isinstance(continued, Mapping) else None
        names.append(known)
    if names[0] != names[1]:
        yield Contradiction(
            _differ("lr_scheduler_type", *names), _option("lr_scheduler_type", names[0])
        )
    else:
        yield Contradiction(_differ("schedule", there["schedule"], here["schedule"]))


def _batch(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[Contradiction]:
    old, new = there["batch"], here["batch"]
    parts = ("per_device", "accumulation", "processes")
    if not isinstance(old, Mapping) or not all(type(old.get(part)) is int for part in parts):
        return
    sizes = [x["per_device"] * x["accumulation"] * x["processes"] for x in (old, new)]
    if sizes[0] == sizes[1]:
        return  # e.g. more processes, and fewer images for each
    share, rest = divmod(sizes[0], new["accumulation"] * new["processes"])
    typed = _option("per_device_train_batch_size", old["per_device"] if rest else share)
    if rest:
        typed += " " + _option("gradient_accumulation_steps", old["accumulation"])
        if old["processes"] != new["processes"]:
            typed += f", in {old['processes']} processes"
    shown = [" x ".join(str(x[part]) for part in parts) for x in (old, new)]
    yield Contradiction(
        f"a step sees {sizes[0]} images there, {sizes[1]} here (per device x accumulated x "
        f"processes: {shown[0]}, {shown[1]})",
        typed,
    )


def _ema(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[Contradiction]:
    if None in (there["ema_decay"], here["ema_decay"]):  # another decay is a change, and told
        yield from _plain("ema_decay")(there, here)


def _shards(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[Contradiction]:
    typed = {
        "fsdp": "accelerate launch --use_fsdp",
        "deepspeed": "accelerate launch --use_deepspeed",
        None: f"accelerate launch without --use_{here['shards']}",
    }
    old = there["shards"]
    known = old if old in ("fsdp", "deepspeed") else None
    yield Contradiction(_differ("shards", old, here["shards"]), typed[known])


def _plain(name: str) -> Callable[..., Iterator[Contradiction]]:
    """Compare by a fact that an option of its name decides."""

    def compare(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[Contradiction]:
        yield Contradiction(
            _differ(name, there[name], here[name]), _option(name, there[name], here[name])
        )

    return compare


def _update(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[Contradiction]:
    if there.get("ternary") == here["ternary"]:  # else it follows from the method
        yield from _plain("update")(there, here)


def _threshold_optimizer(
    there: Mapping[str, Any], here: Mapping[str, Any]
) -> Iterator[Contradiction]:
    if there.get("update") == here["update"]:
        yield from _plain("threshold_optimizer")(there, here)


_COMPARED: dict[str, Callable[..., Iterator[Contradiction]]] = {
    "model": _model,
    "classes": _classes,
    "ternary": _ternary,
    "layers": _layers,
    "frozen": _frozen,
    "update": _update,
    "optimizer": _optimizer,
    "threshold_optimizer": _threshold_optimizer,
    "schedule": _schedule,
    "batch": _batch,
    "soft_epochs": _plain("soft_epochs"),
    "soft_temperature": _plain("soft_temperature"),
    "ema_decay": _ema,
    "shards": _shards,
}


def _ended(state: Mapping[str, Any], args: Any) -> Iterator[Contradiction]:
    """A run that ends before the checkpoint; one that ends with it has its result to write."""
    step, epoch = state["global_step"], state.get("epoch")
    if args.max_steps > 0:
        if step > args.max_steps:
            yield Contradiction(
                f"it is of step {step}, the run ends at {args.max_steps}",
                f"a larger --max_steps than {step}",
            )
    elif isinstance(epoch, (int, float)) and epoch > args.num_train_epochs + 1e-6:
        yield Contradiction(
            f"it is of epoch {epoch:.4g}, the run ends at {args.num_train_epochs:g}",
            f"more --num_train_epochs than {epoch:.4g}",
        )


def _strange_tensors(directory: Path, model: nn.Module) -> Iterator[Contradiction]:
    """Names and shapes that are not those of the model; loading passes over some of them.

    Of a model of transformers, whose files spell names their own way, those that are the same are
    compared.
    """
    path = directory / WEIGHTS_NAME
    if not path.is_file():
        return
    with safe_open(str(path), framework="pt") as file:
        there = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    state = model.state_dict()
    here = {name: tuple(t.shape) for name, t in state.items() if isinstance(t, Tensor)}
    if not hasattr(model, "save_pretrained"):
        # What shares its memory with another tensor may stand in the file once.
        held = {state[name].data_ptr() for name in there if name in here}
        for name in sorted(here.keys() - there.keys()):
            if state[name].data_ptr() not in held or not state[name].numel():
                yield _tensor(name, "is missing there")
                return
        for name in sorted(there.keys() - here.keys()):
            yield _tensor(name, "is missing here")
            return
    for name in sorted(there.keys() & here.keys()):
        if there[name] != here[name]:
            yield _tensor(name, f"is {there[name]} there, {here[name]} here")
            return


def _tensor(name: str, what: str) -> Contradiction:
    return Contradiction(f"it is of another model: {printable(readable_name(name), _WIDTH)} {what}")


def _strange_scaler(
    directory: Path, there: Mapping[str, Any], here: Mapping[str, Any]
) -> Iterator[Contradiction]:
    """float16 has a state of its own, for which a run without it has no place."""
    if (directory / "scaler.pt").is_file() and not here["fp16"]:
        yield Contradiction(_differ("fp16", there.get("fp16", True), False), _option("fp16", True))


def _strange_schedule(directory: Path, here: Mapping[str, Any]) -> Iterator[Contradiction]:
    """Some schedules take over the state of another one without a word, and go on with neither's.

    (Checkpoints of earlier versions do not say which it is.)
    """
    path = directory / "scheduler.pt"
    if not path.is_file():
        return
    with foreign(path):
        state = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(state, dict) and ("lr_lambdas" in state) != (here["schedule"] == "LambdaLR"):
        kinds = "a function of the step", "none"
        old, new = kinds if "lr_lambdas" in state else reversed(kinds)
        yield Contradiction(f"the schedule is {old} there, {new} here (give its lr_scheduler_type)")


def _line(directory: Path, found: list[Contradiction]) -> str:
    parts = [one.text for one in found[:_SHOWN]]
    if len(found) > _SHOWN:
        parts.append(f"and {len(found) - _SHOWN} more")
    typed = list(dict.fromkeys(one.typed for one in found[:_SHOWN] if one.typed))
    # Options first: they can be copied at one go.
    options = " ".join(one for one in typed if one.startswith("--"))
    others = [one for one in typed if not one.startswith("--")]
    to_resume = (
        f"to resume it type {', '.join(filter(None, [options, *others]))}; " if typed else ""
    )
    return (
        f"{directory} contradicts this run: {'; '.join(parts)}; {to_resume}to start anew leave "
        "resume_from_checkpoint out"
    )


def _differ(name: str, old: Any, new: Any) -> str:
    return f"{name} is {_short(old)} there, {_short(new)} here"


def _sets(what: str, old: Any, new: list[str]) -> str:
    known = {str(name) for name in old} if isinstance(old, list) else set()
    odd = sorted(known ^ set(new))
    example = printable(readable_name(odd[0]), _WIDTH) if odd else ""
    where = "there" if odd and odd[0] in known else "here"
    return f"{what}: {len(known)} there, {len(new)} here, e.g. {example} only {where}"


def _option(name: str, value: Any, now: Any = None) -> str:
    """An option of the command line that gives it `value`; that it be left out, for none."""
    if value in (None, False, 0, "") and now is not None:
        return f"without --{name}"
    if isinstance(value, Mapping):
        text = _json(value)  # whole, to be copied, or not at all
        return f"--{name} {shlex.quote(text)}" if len(text) < 500 else ""
    words = value if isinstance(value, list) else [value]
    return f"--{name} {' '.join(printable(shlex.quote(_text(word)), _WIDTH) for word in words[:8])}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else _json(value)


def _short(value: Any) -> str:
    """A value from a file, in one line and not long."""
    if value is None:
        return "unset"
    return printable(repr(value) if isinstance(value, str) else _json(value), _WIDTH)


def _json(value: Any) -> str:
    return json.dumps(value)
