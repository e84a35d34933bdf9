"""Batches of images: made of a data set's items, and refused in one line where they are none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image as PILImage
from torch import Tensor, nn
from transformers import default_data_collator

__all__ = [
    "IGNORED",
    "check_images",
    "check_label_names",
    "check_labels",
    "check_lone_image",
    "collate_images",
]

IGNORED = -100
"""Label of an image that torch's cross entropy passes over."""

_NEEDED = (
    "a batch needs pixel_values, float (n, channels, height, width), and labels, integers (n,) or "
    "probabilities (n, classes)"
)
_TRANSFORM = (
    "give the data set a transform that makes float tensors, e.g. "
    "timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))"
)


def collate_images(items: Any) -> dict[str, Any]:
    """A batch of the items of a data set.

    Args:
        items: Pairs ``(image, label)`` as of torchvision and timm, or dicts as of transformers. An
            image is a float tensor or array ``(channels, height, width)``; a label is a class, or
            probabilities ``(classes,)``. What is a dict already is a batch that the data set made.

    Returns:
        ``pixel_values`` and ``labels``; of dicts, whatever else they hold too.

    Raises:
        ValueError: An item is something else, an image is not transformed, or sizes differ.
    """
    if isinstance(items, Mapping):
        return dict(items)
    first = items[0]
    if isinstance(first, (tuple, list)):
        sizes = {len(item) for item in items}
        if sizes != {2}:
            raise ValueError(
                f"items of a data set must be pairs (image, label), got {max(sizes)} entries: "
                'return a pair, or a dict {"pixel_values": image, "labels": label}'
            )
        return {
            "pixel_values": _images([image for image, _ in items]),
            "labels": _labels([label for _, label in items]),
        }
    if not isinstance(first, Mapping):
        raise ValueError(
            "items of a data set must be pairs (image, label), or dicts with pixel_values and "
            f"labels, got {type(first).__name__}"
        )
    return _merged(items)


def check_images(batch: Any, *, plain: bool) -> None:
    """Refuse a batch without images.

    Args:
        plain: The model takes images alone, not the whole batch.

    Raises:
        ValueError: See above; says what is needed, and what the batch holds.
    """
    if not isinstance(batch, Mapping):
        raise ValueError(
            f"{_NEEDED}, got {type(batch).__name__}: leave data_collator out, or let it return a "
            "dict (pairs (image, label) of a data set become one by themselves)"
        )
    images = batch.get("pixel_values")
    if images is None:
        raise ValueError(f"{_NEEDED}, got {_keys(batch)}: {_renaming(batch)}")
    if not plain:
        return
    if not isinstance(images, Tensor) or images.ndim != 4:
        found = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"{_NEEDED}, got pixel_values {found}: {_TRANSFORM}")
    if not images.is_floating_point():
        raise ValueError(f"{_NEEDED}, got pixel_values of {_name(images.dtype)}: {_TRANSFORM}")


def check_labels(batch: Mapping[str, Any], classes: int | None, *, needed: bool = True) -> None:
    """Refuse a batch whose labels are no classes of the model.

    Args:
        classes: Of the model; None or 0: unknown.
        needed: Whether nothing but such labels will do; the models of transformers take others.

    Raises:
        ValueError: There are none, or one lies beyond the classes.
    """
    labels = batch.get("labels")
    whole = isinstance(labels, Tensor) and labels.ndim == 1 and not labels.is_floating_point()
    if not needed and not (whole and classes != 1):
        return
    if not isinstance(labels, Tensor):
        found = _keys(batch) if labels is None else f"labels as {type(labels).__name__}"
        raise ValueError(f"{_NEEDED}, got {found}")
    if labels.ndim < 2 and not whole:
        shape = tuple(labels.shape)
        raise ValueError(f"{_NEEDED}, got labels of {_name(labels.dtype)} {shape}")
    if labels.ndim > 1 or not classes or not labels.numel():
        return
    known = labels[labels != IGNORED]
    wrong = known[(known < 0) | (known >= classes)]
    if len(wrong):
        raise ValueError(
            f"label {int(wrong[0])} in a batch, but the model has {classes} classes, 0 … "
            f"{classes - 1}: renumber the labels, or build the model with num_classes="
            f"{max(int(known.max()) + 1, classes)}"
        )


def check_label_names(names: Sequence[str] | None) -> list[str]:
    """``label_names`` of a Trainer: the key of the labels must be among them.

    Raises:
        ValueError: It is not.
    """
    if not names:
        return ["labels"]
    if "labels" not in names:
        raise ValueError(
            f"label_names must hold 'labels', the key under which a batch has them, got "
            f"{list(names)}: leave label_names out, and name that key of the data set labels"
        )
    return list(names)


def check_lone_image(
    model: nn.Module, forward: Callable[[], object], images: int, batch: int
) -> None:
    """Refuse a training whose batch of one image a batch norm could not be trained on.

    Args:
        model: Its modules are in any mode, and keep it.
        forward: Runs the model on one image.
        images: Training images.
        batch: Images of a batch; the last one, or each, has one.

    Raises:
        ValueError: Some batch norm sees one value a channel; names it, and a batch size that fits.
    """
    name = _lone_norm(model, forward)
    if name is None:
        return
    if images == 1:
        advice = "give more training images"
    else:
        sizes = (size for step in range(1, images + 2) for size in (batch + step, batch - step))
        fitting = next(size for size in sizes if size > 1 and images % size != 1)
        advice = f"type --per_device_train_batch_size {fitting}"
        if batch > 1:
            advice += ", or --dataloader_drop_last true"
    which = "the last batch of an epoch" if batch > 1 else "a batch"
    raise ValueError(
        f"{which} would hold 1 of {images:,} training images, and the batch norm {name} then has "
        f"one value a channel, which has no variance: {advice}"
    )


@torch.no_grad()
def _lone_norm(model: nn.Module, forward: Callable[[], object]) -> str | None:
    """The first batch norm that gets a single value a channel from one image."""
    found: list[str] = []

    def look(name: str) -> Callable[[Any, Any], None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            if args and args[0].numel() == args[0].shape[1]:
                found.append(name)

        return hook

    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    norms = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    if not norms:
        return None
    modes = [(module, module.training) for module in model.modules()]
    handles = [module.register_forward_pre_hook(look(name)) for name, module in norms.items()]
    try:
        model.eval()
        forward()
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    return found[0] if found else None


def _images(images: Sequence[Any]) -> Tensor:
    if not all(isinstance(image, (Tensor, np.ndarray)) for image in images):
        wrong = next(image for image in images if not isinstance(image, (Tensor, np.ndarray)))
        kind = "PIL images" if isinstance(wrong, PILImage) else type(wrong).__name__
        raise ValueError(f"images of a batch are {kind}: {_TRANSFORM}")
    tensors = [
        image if isinstance(image, Tensor) else torch.from_numpy(_single(image)) for image in images
    ]
    shapes = sorted({tuple(image.shape) for image in tensors})
    if len(shapes) > 1:
        raise ValueError(
            f"images of a batch have different shapes, {shapes[0]} and {shapes[1]}: resize them in "
            f"the transform of the data set"
        )
    return torch.stack(tensors)


def _single(image: NDArray[Any]) -> NDArray[Any]:
    """numpy computes in float64 where nobody asks for it; networks take float32."""
    return image.astype(np.float32) if image.dtype == np.float64 else image


def _labels(labels: Sequence[Any]) -> Tensor:
    try:
        found = torch.stack([torch.as_tensor(label) for label in labels])
    except (TypeError, ValueError, RuntimeError) as error:  # torch's, for text, None, tuples
        kinds = ", ".join(sorted({type(label).__name__ for label in labels}))
        raise ValueError(
            f"labels must be integers or probabilities (classes,), one an image, got {kinds}: "
            "give the data set a target_transform"
        ) from error
    if found.dtype == torch.float64:
        return found.float()
    return found if found.is_floating_point() else found.long()


def _merged(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What transformers' collator makes of dicts; they are of one data set, and may hold text."""
    try:
        batch: dict[str, Any] = default_data_collator(list(items))
    except (TypeError, ValueError, RuntimeError, KeyError) as error:  # torch's, for what it holds
        raise ValueError(
            f"{_NEEDED}; items with {_keys(items[0])} make none ({error}): {_renaming(items[0])}"
        ) from error
    return batch


def _renaming(batch: Mapping[str, Any]) -> str:
    """What to do about the keys of a batch without pixel_values."""
    for name in ("image", "images", "img", "x", "inputs", "input"):
        if name in batch:
            return f"rename {name!r} to 'pixel_values'; {_TRANSFORM}"
    return "only classifiers of images are trained here"


def _keys(batch: Iterable[Any]) -> str:
    return ", ".join(map(str, batch)) or "nothing"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
