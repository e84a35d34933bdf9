"""Accuracy of a model on a data set, and its predictions for single images."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from timm.data import ImageNetInfo, create_transform, resolve_data_config
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .confusion import Confusion
from .data.images import BROKEN, to_mode
from .errors.foreign import FileError, foreign
from .errors.printable import printable
from .files import check_regular

__all__ = [
    "Accuracy",
    "Prediction",
    "accuracy",
    "check_classes",
    "class_names",
    "label_names",
    "predict",
]


@dataclass(frozen=True)
class Accuracy:
    """Result of `accuracy`.

    Attributes:
        top1, top5: Fractions of the images, 0 to 1 (top5 is 1 for five classes or fewer).
        images: Their number.
        seconds: Wall time of the forward passes and the loading.
        counts: Images by label and predicted class.
    """

    top1: float
    top5: float
    images: int
    seconds: float
    counts: Mapping[tuple[int, int], int] = field(default_factory=dict, repr=False)

    def confusion(self, names: Sequence[str]) -> Confusion:
        """The counts with the names of the classes; those beyond `names` are called by number.

        Args:
            names: By label.
        """
        most = max((max(key) for key in self.counts), default=-1) + 1
        return Confusion((*names, *map(str, range(len(names), most))), self.counts)


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one image, best first.

    Attributes:
        path: The image's file.
        classes: Labels.
        names: Their names.
        probabilities: Softmax of the logits.
    """

    path: str
    classes: tuple[int, ...]
    names: tuple[str, ...]
    probabilities: tuple[float, ...]


@torch.inference_mode()
def accuracy(
    model: nn.Module,
    batches: Iterable[dict[str, Tensor]],
    *,
    device: torch.device | str = "cpu",
    progress: Callable[[int], object] | None = None,
) -> Accuracy:
    """Top-1 and top-5 accuracy over `batches` of pixel_values and labels; `model` is moved.

    Args:
        progress: Called with the number of images of each batch.

    Raises:
        ValueError: There is no image, or a label is beyond the model's classes.
    """
    model = model.to(device).eval()
    hits5 = images = 0
    counts: Counter[tuple[int, int]] = Counter()
    start = time.perf_counter()
    # Trainable layers quantize at every read of their weight: once is enough here.
    with parametrize.cached():
        for batch in batches:
            labels = batch["labels"].to(device)
            logits = model(batch["pixel_values"].to(device))
            low, high = labels.aminmax()
            if low < 0 or high >= logits.shape[1]:
                raise ValueError(
                    f"the data have label {int(low if low < 0 else high)}, the model "
                    f"{logits.shape[1]} classes"
                )
            best = logits.topk(min(5, logits.shape[1]), dim=1).indices
            predicted, best = best[:, 0], best == labels[:, None]
            found = torch.stack([labels, predicted], 1).unique(dim=0, return_counts=True)
            for (label, guess), count in zip(found[0].tolist(), found[1].tolist(), strict=True):
                counts[label, guess] += count
            hits5 += int(best.any(1).sum())
            images += len(labels)
            if progress is not None:
                progress(len(labels))
    if not images:
        raise ValueError("the data set holds no image")
    hits1 = sum(count for (label, guess), count in counts.items() if label == guess)
    seconds = time.perf_counter() - start
    return Accuracy(hits1 / images, hits5 / images, images, seconds, dict(counts))


def check_classes(model: nn.Module, names: Sequence[str]) -> None:
    """Refuse data whose labels mean other classes than those of `model`.

    Args:
        model: A timm model; one that does not know the names of its classes takes any data.
        names: Names of the data's classes, by label; numbers where the data have none.

    Raises:
        ValueError: The names differ.
    """
    config = getattr(model, "pretrained_cfg", None) or {}
    own, given = [str(name) for name in config.get("label_names") or ()], list(names)
    unnamed = given == _numbers(len(given)) and len(given) <= len(own)
    if not own or given == own or unnamed or own == _numbers(len(given)):
        return
    raise ValueError(
        f"the data have the classes {_some(given)}, the model {_some(own)}: "
        f"evaluate it on data with the classes it was trained on"
    )


def _numbers(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def _some(names: list[str]) -> str:
    first = ", ".join(printable(name, 60) for name in names[:5])
    return f"{first}{', ...' if len(names) > 5 else ''} ({len(names)})"


def class_names(model: nn.Module, names: Sequence[str]) -> Sequence[str]:
    """Names of the classes as the data call them; where those are numbers, as the model does."""
    given = list(map(str, names))
    return label_names(model) if given == _numbers(len(given)) else given


def label_names(model: nn.Module) -> Sequence[str]:
    """Names of a timm model's classes: of its configuration, ImageNet-1k's, or the numbers."""
    config = getattr(model, "pretrained_cfg", None) or {}
    names = config.get("label_names")
    count = int(getattr(model, "num_classes", 0))
    if isinstance(names, (list, tuple)) and len(names) == count:
        return tuple(map(str, names))
    if count == 1000:
        info = ImageNetInfo()
        return [info.index_to_description(index) for index in range(count)]
    return _numbers(count)


@torch.inference_mode()
def predict(
    model: nn.Module,
    paths: Iterable[str | Path],
    *,
    top: int = 5,
    skipped: Callable[[str, str], object],
) -> Iterator[Prediction]:
    """Classify image files with the preprocessing of the model's configuration.

    Args:
        model: A timm model in evaluation mode.
        top: Number of classes to report, at most all of them.
        skipped: Called with the path and the reason for each file that is no readable image.

    Raises:
        ValueError: The model's pretrained_cfg names no preprocessing.
    """
    with foreign("the model's pretrained_cfg, of its config.json, names no preprocessing"):
        config = resolve_data_config({}, model=model)
        transform = create_transform(**config, is_training=False)
    mode = "L" if config["input_size"][0] == 1 else "RGB"
    names = label_names(model)
    for path in paths:
        try:
            check_regular(path)  # a pipe would be waited for
            with Image.open(path) as image:
                pixels = transform(to_mode(image, mode))
        except UnidentifiedImageError:
            skipped(str(path), "not an image")
            continue
        except FileError as error:
            skipped(str(path), str(error).removeprefix(f"{path}: "))
            continue
        except BROKEN as error:
            skipped(str(path), getattr(error, "strerror", None) or str(error))
            continue
        probabilities = model(pixels.unsqueeze(0)).softmax(1)[0]
        values, classes = probabilities.topk(min(top, len(probabilities)))
        chosen = [int(label) for label in classes]
        yield Prediction(
            str(path), tuple(chosen), tuple(names[k] for k in chosen), tuple(values.tolist())
        )
