"""Model cards: README.md of a packed directory, with metadata for the Hub."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any, TypeVar

import yaml
from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.utils import validate_repo_id
from jinja2 import Environment, StrictUndefined

from .. import quantizers
from ..checkpoint.directory import StoredDirectory, open_directory
from ..checkpoint.run_files import TRAINING_NAME
from ..files import atomic_write, bundled
from .card_facts import CardFacts, card_facts, printable

__all__ = ["CARD_NAME", "card_text", "generated_license", "is_generated", "write_card"]

CARD_NAME = "README.md"
_MARK = "Written by `timm-ternary card` from the files beside it"
_TASK = "image-classification"
_TAGS = [_TASK, "timm", "transformers", "timm_ternary", "ternary", "quantized"]
_ACCURACIES = {
    "float": "float base checkpoint",
    "ternary": "ternary, after training",
    "reloaded": "this file, loaded back",
}
_LABELS = {"float": "float32"}
# Names of classes that a card shows.
_MOST_NAMES = 20

_Rows = list[tuple[str, str]]
_T = TypeVar("_T")


def card_text(
    directory: str | Path | StoredDirectory,
    *,
    repo_id: str | None = None,
    license: str | None = None,
) -> str:
    """The model card of a packed directory: Markdown, with the metadata as YAML before it.

    It states what the files in the directory say (model.safetensors, config.json, training.json,
    metrics.json, weights.png, report/) and no more; its last section says what is left out, why.

    Args:
        directory: As a run or `save_packed` writes it, or one that is open already.
        repo_id: ``user/name`` on the Hub, for the snippets; None: they load from the directory.
        license: Of the weights, e.g. ``"apache-2.0"``.

    Raises:
        ValueError: The directory is not packed, a file in it is damaged, or `repo_id` is no such
            name. One line.
    """
    if repo_id is not None:
        validate_repo_id(repo_id)
    opened = open_directory(directory)
    facts = card_facts(opened)
    license = printable(license or "") or None
    if license is None:
        facts.missing["licence of the weights"] = "none was given (--license)"
    name = repo_id or printable(opened.path.resolve().name)
    source = f"hf-hub:{repo_id}" if repo_id else f"local-dir:{name}"
    place = source if repo_id else name
    command = _stated(facts, "evaluation command", facts.run.evaluation)
    if command and not command.startswith("timm-ternary evaluate "):
        command = None
    content = {
        "title": repo_id or facts.architecture,
        "architecture": facts.architecture,
        "timm_name": json.dumps(source, ensure_ascii=False),
        "transformers_name": json.dumps(name, ensure_ascii=False),
        "model": _model(facts),
        "options": [(printable(k), _text(v)) for k, v in facts.ternary.options.items()],
        "data": _data(facts) if facts.training else [],
        "accuracies": [
            (label, f"{100 * facts.accuracies[key]:.2f} %")
            for key, label in _ACCURACIES.items()
            if key in facts.accuracies
        ],
        "evaluation": command and command.replace(" DIR ", f" {shlex.quote(place)} ", 1),
        "sizes": _sizes(facts),
        "layers": [
            (x.name, "x".join(map(str, x.shape)), f"{x.weights:,}", f"{x.zeros:.1%}")
            for x in facts.layers
        ],
        "all_weights": f"{facts.weights:,}",
        "all_zeros": f"{facts.zeros:.1%}",
        "figures": facts.figures,
        "training": _training(facts) if facts.training else [],
        "arguments": [(k, _text(v)) for k, v in facts.run.arguments.items()],
        "license": license,
        "method_line": _method_line(facts),
    }
    body = _template().render(content, missing=list(facts.missing.items()))
    return f"---\n{_metadata(facts, repo_id, license).to_yaml()}\n---\n\n{body}"


def write_card(
    directory: str | Path, repo_id: str | None = None, license: str | None = None
) -> Path:
    """Write `card_text` to README.md in `directory`; an earlier one is replaced.

    Returns:
        The file.

    Raises:
        ValueError: As `card_text`. Nothing is written then.
        OSError: The directory cannot be written.
    """
    text = card_text(directory, repo_id=repo_id, license=license)
    path = Path(directory) / CARD_NAME
    with atomic_write(path, lambda scratch: scratch.write_text(text, encoding="utf-8")):
        pass
    return path


def is_generated(path: Path) -> bool:
    """Whether a README.md is one of `card_text`, which may be made anew, and nobody's own."""
    return path.is_file() and _MARK in path.read_text(encoding="utf-8", errors="replace")


def generated_license(path: Path) -> str | None:
    """The licence that a card of `card_text` was given."""
    text = path.read_text(encoding="utf-8")
    found: Any = yaml.safe_load(text.split("---", 2)[1]).get("license")
    return found if isinstance(found, str) else None


def _metadata(facts: CardFacts, repo_id: str | None, license: str | None) -> ModelCardData:
    dataset, base = facts.run.dataset, facts.run.base
    results: dict[str, Any] = {}
    if dataset.name and "reloaded" in facts.accuracies:
        result = EvalResult(
            task_type=_TASK,
            dataset_type=dataset.name,
            dataset_name=dataset.name,
            dataset_config=dataset.config,
            dataset_split=dataset.eval_split,
            metric_type="accuracy",
            metric_name="Top-1 accuracy",
            metric_value=facts.accuracies["reloaded"],
        )
        name = repo_id.rpartition("/")[2] if repo_id else facts.architecture
        results = {"model_name": name, "eval_results": [result]}
    return ModelCardData(
        library_name="timm",
        pipeline_tag=_TASK,
        tags=_TAGS,
        license=license,
        datasets=[dataset.hub_id] if dataset.hub_id else None,
        base_model=None if base is None else base.hub_id,
        **results,
    )


def _model(facts: CardFacts) -> _Rows:
    config, shape = facts.ternary, "x".join(map(str, facts.input_size))
    rows = [("architecture", facts.architecture)]
    if shape:
        rows.append(("input (channels, height, width)", shape))
    if facts.num_classes is not None:
        shown = ", ".join(facts.label_names[:_MOST_NAMES])
        more = ", ..." if len(facts.label_names) > _MOST_NAMES else ""
        rows.append(("classes", f"{facts.num_classes:,}" + (f": {shown}{more}" if shown else "")))
    base = facts.run.base
    name = _stated(facts, "base checkpoint", None if base is None else base.name)
    if name:
        rows.append(("base checkpoint", name))
    rows.append(("method", _method_line(facts)))
    granularity = quantizers.resolve(config).granularity
    if granularity is not None:
        rows.append(("granularity of the scales", granularity))
    rows.append(("layers left in float", ", ".join(map(printable, config.exclude)) or "none"))
    return rows


def _method_line(facts: CardFacts) -> str:
    """Name and paper of the method: the first line of its class."""
    method = facts.ternary.method
    if not quantizers.is_installed(method):
        return printable(method)
    doc = (quantizers.get(method).__doc__ or "").strip().splitlines()
    return f"{method}, {doc[0].rstrip('.')}" if doc else method


def _data(facts: CardFacts) -> _Rows:
    dataset = facts.run.dataset
    rows = _some(
        ("data set", _stated(facts, "data set", dataset.name)),
        ("configuration", dataset.config),
    )
    for words, split, images in (
        ("trained on", dataset.train_split, dataset.train_images),
        ("evaluated on", dataset.eval_split, dataset.eval_images),
    ):
        count = _stated(facts, f"number of images {words}", images)
        if split is not None:
            rows.append((words, f"split {split}" + (f", {count:,} images" if count else "")))
    return rows


def _training(facts: CardFacts) -> _Rows:
    run, hardware = facts.run, facts.run.hardware
    seconds = _stated(facts, "training time", run.seconds)
    steps = _stated(facts, "optimizer steps", run.steps)
    epochs = _stated(facts, "epochs", run.epochs)
    cpu, cores = _stated(facts, "CPU", hardware.cpu), hardware.cores
    return _some(
        ("time of training", None if seconds is None else f"{seconds:,.1f} s"),
        ("optimizer steps", None if steps is None else f"{steps:,}"),
        ("epochs", None if epochs is None else f"{epochs:g}"),
        ("GPUs", ", ".join(map(_text, hardware.gpus))),
        ("CPU", cpu and cpu + (f", {cores:,} cores" if cores is not None else "")),
        ("processes", _text(_stated(facts, "processes", hardware.processes))),
        ("versions", ", ".join(f"{name} {_text(v)}" for name, v in run.versions.items())),
        ("date", _stated(facts, "date", run.date)),
    )


def _sizes(facts: CardFacts) -> list[tuple[str, str, str]]:
    full = facts.sizes["float"]
    return [
        (
            f"{name} (model.safetensors)" if name == facts.encoding else _LABELS.get(name, name),
            f"{size:,}",
            "" if name == "float" else f"{full / size:.1f}x",
        )
        for name, size in facts.sizes.items()
    ]


def _stated(facts: CardFacts, name: str, value: _T | None) -> _T | None:
    """`value`, an entry of training.json; where it is missing, the card says so."""
    if value is None and facts.training is not None:
        facts.missing.setdefault(name, f"not in {TRAINING_NAME}")
    return value


def _some(*rows: tuple[str, str | None]) -> _Rows:
    return [(name, value) for name, value in rows if value]


def _text(value: Any) -> str:
    """A value of a JSON file as a recipe would show it."""
    if value is None:
        return ""
    return printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


class _Code(str):
    """Text inside a code block, where Markdown has no meaning."""


def _template() -> Any:
    environment = Environment(
        finalize=_escaped,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["code"] = _Code
    return environment.from_string(bundled("model_cards/template.md").read_text(encoding="utf-8"))


def _escaped(value: Any) -> Any:
    """Every value that the template inserts: Markdown and HTML show it as it is."""
    if isinstance(value, _Code):
        return value
    text = re.sub(r"([\\`*\[\]<>|~$#]|&(?=[#\w]+;))", r"\\\1", str(value))
    # An underscore within a word has no meaning; names of architectures stay legible.
    text = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)
    return re.sub(r"^([-+=]|\d+(?=[.)](?:\s|$)))", _escaped_start, text)


def _escaped_start(match: re.Match[str]) -> str:
    """The beginning of what would be a list; a number's point is escaped instead of the number."""
    found = match.group(1)
    return f"\\{found}" if found in "-+=" else f"{found}\\"
