"""Batches: pairs and dicts are taken, everything else is refused in one line that says why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate
from trainer_models import CLASSES, Images, arguments, assert_same_state, losses, small_net
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ResNetConfig,
    ResNetForImageClassification,
)

from timm_ternary.config import TernaryConfig
from timm_ternary.nn.convert import ternarize_
from timm_ternary.training import TernaryTrainer
from timm_ternary.training.batches import check_labels, collate_images


class Items(Dataset):
    """The images of `Images`, each as `make` gives it."""

    def __init__(self, make: Callable[[Tensor, Tensor], Any], count: int = 8) -> None:
        self.images, self.make = Images(count), make

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.make(self.images.pixels[index], self.images.labels[index])


def run(output: Path, data: Any, model: Any = None, **options: Any) -> TernaryTrainer:
    kept = {key: options.pop(key) for key in ("data_collator",) if key in options}
    model = small_net() if model is None else model
    args = arguments(output, **{"num_train_epochs": 1, **options})
    return TernaryTrainer(model, args, train_dataset=data, eval_dataset=data, **kept)


def refusal(output: Path, data: Any, model: Any = None, **options: Any) -> str:
    with pytest.raises(ValueError) as caught:
        run(output, data, model, **options).train()
    assert "\n" not in str(caught.value)
    return str(caught.value)


PAIRS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tensors": lambda image, label: (image, label),
    "numbers": lambda image, label: (image, int(label)),
    "numpy": lambda image, label: (image.numpy().astype(np.float64), np.int32(label)),
    "lists": lambda image, label: [image, int(label)],
    "one-hot": lambda image, label: (image, np.eye(CLASSES)[label]),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_pairs_train_as_dicts_do(tmp_path: Path, kind: str) -> None:
    expected = run(tmp_path, Items(lambda image, label: {"pixel_values": image, "labels": label}))
    expected.train()
    found = run(tmp_path, Items(PAIRS[kind]))
    found.train()
    assert losses(found) == pytest.approx(losses(expected), rel=1e-6)
    if kind != "one-hot":
        assert_same_state(found.model, expected.model)
        assert found.evaluate()["eval_accuracy"] == expected.evaluate()["eval_accuracy"]
        assert found.predict(Items(PAIRS[kind])).predictions.shape == (8, CLASSES)


def test_data_sets_of_torchvision_and_timm(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label in range(CLASSES):
        (tmp_path / "images" / f"c{label}").mkdir(parents=True)
        for k in range(2):
            image = Image.fromarray(rng.integers(0, 256, (10, 10, 3), dtype=np.uint8))
            image.save(tmp_path / "images" / f"c{label}" / f"{k}.png")
    transform = timm.data.create_transform((3, 8, 8), is_training=False)
    folder = torchvision.datasets.ImageFolder(tmp_path / "images", transform)
    own = timm.data.create_dataset("", str(tmp_path / "images"), transform=transform)
    for data in (folder, own):
        trainer = run(tmp_path / "out", data)
        trainer.train()
        assert 0 <= trainer.evaluate()["eval_accuracy"] <= 1
    for data in (
        torchvision.datasets.ImageFolder(tmp_path / "images"),
        timm.data.create_dataset("", str(tmp_path / "images")),
    ):
        message = refusal(tmp_path / "out", data)
        assert "images of a batch are PIL images" in message and "create_transform" in message


NEEDED = "a batch needs pixel_values, float (n, channels, height, width), and labels"


@pytest.mark.parametrize(
    ("make", "options", "parts"),
    [
        (
            lambda i, y: {"image": i, "label": y},
            {},
            [NEEDED, "got labels, image", "rename 'image'"],
        ),
        (lambda i, y: {"pixel_values": i}, {}, [NEEDED, "got pixel_values"]),
        (lambda i, y: {"pixel_values": i, "target": y}, {}, [NEEDED, "got pixel_values, target"]),
        (lambda i, y: {"x": i, "y": y}, {}, [NEEDED, "got x, y", "rename 'x'"]),
        (lambda i, y: {"a": object()}, {}, [NEEDED, "items with a make none"]),
        (lambda i, y: (i, y, 3), {}, ["pairs (image, label), got 3 entries"]),
        (lambda i, y: i, {}, ["pairs (image, label), or dicts", "got Tensor"]),
        (lambda i, y: ((i * 9).byte(), y), {}, [NEEDED, "got pixel_values of uint8"]),
        (lambda i, y: (i[0], y), {}, [NEEDED, "got pixel_values (4, 8, 8)"]),
        (lambda i, y: (i[:, int(y) :], y), {}, ["images of a batch have different shapes"]),
        (lambda i, y: (i, str(y)), {}, ["labels must be integers", "got str"]),
        (lambda i, y: (i, None), {}, ["labels must be integers", "got NoneType"]),
        (lambda i, y: (i, float(y)), {}, [NEEDED, "got labels of float32 (4,)"]),
        (lambda i, y: (i, [0.5, 0.5]), {}, ["labels have the shape (4, 2), and the logits (4, 3)"]),
        (
            lambda i, y: (i, y),
            {"data_collator": default_collate},
            [NEEDED, "leave data_collator o"],
        ),
        (lambda i, y: (i, y), {"label_names": ["y"]}, ["label_names must hold 'labels'", "['y']"]),
        (
            lambda i, y: {"image": i, "label": y},
            {"mixup": 0.2},
            [NEEDED, "got labels, image"],
        ),
        (lambda i, y: {"image": i, "label": y}, {"threshold_fraction": 0.5}, [NEEDED]),
    ],
)
def test_what_is_no_batch_is_refused(
    tmp_path: Path, make: Any, options: dict[str, Any], parts: list[str]
) -> None:
    model = small_net()
    model.num_classes = CLASSES
    message = refusal(tmp_path, Items(make), model, **options)
    for part in parts:
        assert part in message


def test_text_is_refused(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=8,
    )  # fmt: skip
    model = ternarize_(BertForSequenceClassification(config), TernaryConfig.of("tga"))
    words = {"input_ids": torch.arange(4), "attention_mask": torch.ones(4).long()}
    data = [{**words, "labels": k % 2} for k in range(4)]
    message = refusal(tmp_path, data, model)
    assert NEEDED in message and "got input_ids, attention_mask, labels" in message
    assert "only classifiers of images" in message
    with pytest.raises(ValueError, match="a batch needs pixel_values"):
        run(tmp_path, data, model).evaluate()
    with pytest.raises(ValueError, match="a batch needs pixel_values"):
        run(tmp_path, data, model).predict([words] * 2)


def test_label_names_may_be_unset_and_columns_removed(tmp_path: Path) -> None:
    def item(image: Tensor, label: Tensor) -> dict[str, Any]:
        return {"pixel_values": image, "label": label, "path": "a.png", "extra": 3}

    trainer = run(tmp_path, Items(item), label_names=None, remove_unused_columns=True)
    trainer.train()
    assert "eval_accuracy" in trainer.evaluate()


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("label", "number"), [(CLASSES, 3), (-1, -1), (10_000_000, 10_000_000)])
def test_labels_out_of_range(tmp_path: Path, known: bool, label: int, number: int) -> None:
    model = small_net()
    if known:
        model.num_classes = CLASSES
    data = Items(lambda image, found: (image, label if found == 0 else found))
    message = refusal(tmp_path, data, model)
    assert str(number) in message and "0 … 2" in message
    with pytest.raises(ValueError, match=r"0 … 2"):
        run(tmp_path, data, model).evaluate()


def test_labels_out_of_range_of_a_model_of_transformers(tmp_path: Path) -> None:
    config = ResNetConfig(
        num_channels=3, embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic",
        num_labels=2,
    )  # fmt: skip
    model = ternarize_(ResNetForImageClassification(config), TernaryConfig.of("tga"))
    message = refusal(tmp_path, Items(lambda image, label: (image, label)), model)
    assert "label 2 in a batch, but the model has 2 classes" in message


def test_the_label_that_cross_entropy_ignores_is_kept(tmp_path: Path) -> None:
    check_labels({"labels": torch.tensor([0, -100, 2])}, 3)
    check_labels({"labels": torch.tensor([[0.5, 0.5]])}, 2)
    check_labels({"labels": torch.tensor([900])}, None)
    check_labels({"labels": torch.tensor([0.5])}, 1, needed=False)
    run(tmp_path, Items(lambda image, label: (image, -100 if label == 0 else label))).train()


class Pooled(nn.Module):
    """A batch norm behind the pooling: one value a channel and image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.after = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.after(self.norm(self.conv(x)).mean((2, 3))))


@pytest.mark.parametrize(
    ("images", "batch", "advice"),
    [
        (9, 4, "the last batch of an epoch would hold 1 of 9 training images, and the batch norm "
         "after then has one value a channel, which has no variance: type "
         "--per_device_train_batch_size 5, or --dataloader_drop_last true"),
        (4, 1, "a batch would hold 1 of 4 training images"),
        (1, 4, "give more training images"),
        (13, 12, "--per_device_train_batch_size 13, or"),
    ],
)  # fmt: skip
def test_a_last_batch_of_one_is_refused_before_the_first_step(
    tmp_path: Path, images: int, batch: int, advice: str
) -> None:
    model = ternarize_(Pooled(), TernaryConfig.of("tga"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options = {"per_device_train_batch_size": batch}
    trainer = run(tmp_path, Images(images), model, **options)
    random = torch.get_rng_state()
    with pytest.raises(ValueError) as caught:
        trainer.train()
    assert advice in str(caught.value) and "\n" not in str(caught.value)
    assert trainer.state.global_step == 0
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("model", "images", "options"),
    [
        (Pooled, 9, {"dataloader_drop_last": True}),
        (Pooled, 9, {"max_steps": 2}),
        (Pooled, 10, {}),
        (small_net, 9, {}),  # its norms see whole maps
        (lambda: small_net(norm=nn.GroupNorm), 9, {}),
    ],
)
def test_what_can_be_trained_is(
    tmp_path: Path, model: Any, images: int, options: dict[str, Any]
) -> None:
    network = model()
    if model is Pooled:
        ternarize_(network, TernaryConfig.of("tga"))
    trainer = run(tmp_path, Images(images), network, **options)
    trainer.train()
    assert trainer.state.global_step == 2 if options else trainer.state.global_step == 3


def test_the_advised_batch_size_fits(tmp_path: Path) -> None:
    for images, batch in ((9, 4), (4, 1), (13, 12), (7, 2), (7, 3)):
        message = refusal(tmp_path, Images(images), Pooled(), per_device_train_batch_size=batch)
        advised = int(message.split("--per_device_train_batch_size ")[1].split(",")[0])
        run(tmp_path, Images(images), Pooled(), per_device_train_batch_size=advised).train()


def test_a_batch_that_the_data_set_made_is_passed_on() -> None:
    batch = {"pixel_values": torch.zeros(2, 3, 4, 4), "labels": torch.zeros(2)}
    assert collate_images(batch) == batch
