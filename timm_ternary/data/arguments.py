"""DataArguments: which images are read, and how they are augmented."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..errors.wording import parse_json

__all__ = ["TIMM", "DataArguments"]

TIMM = "timm:"
"""What the name of a data set begins with that one of timm's readers is to read."""


def _interval(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        raise ValueError(f"{name} must lie between {low:g} and {high:g}, got {value:g}")


def _at_least(name: str, value: int | None, low: int) -> None:
    if value is not None and value < low:
        raise ValueError(f"{name} must be at least {low}, got {value}")


@dataclass
class DataArguments:
    """Which images are read, and how they are augmented.

    Raises (on construction):
        ValueError: A value is missing or not allowed.
    """

    dataset: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "digits (bundled with scikit-learn), a directory of images or of parquet "
            'files, a .parquet file, {"train": FILE, "test": FILE}, a Hub name, timm:ROOT (a '
            "directory or tar files, read by timm) or timm:torch/NAME:ROOT (torchvision's NAME)."
        },
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration of a Hub data set."}
    )
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str | None = field(
        default=None,
        metadata={
            "help": "Split to evaluate on. Default: test, validation or val; where there is the "
            "train split alone, held-out: a fifth of the images of each class."
        },
    )
    image_column: str | None = field(
        default=None, metadata={"help": "Column of images. Default: found by its type or name."}
    )
    label_column: str | None = field(
        default=None, metadata={"help": "Column of labels. Default: found by its type or name."}
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read the images as they come, without a download or a copy (parquet, image "
            "folders, webdataset tars, the Hub); needs --max_steps, which counts all passes."
        },
    )
    shuffle_buffer: int = field(
        default=1000,
        metadata={
            "help": "Images among which a streamed image is drawn; files are shuffled as a whole."
        },
    )
    num_classes: int | None = field(
        default=None,
        metadata={"help": "Number of classes of a stream whose labels are bare numbers."},
    )
    in_memory: bool | None = field(
        default=None,
        metadata={
            "help": "Decode all images once into memory (fast; pad-crop and flip only). "
            "Default: yes for images up to 64 pixels when no other augmentation is asked for."
        },
    )
    image_size: int | None = field(
        default=None,
        metadata={
            "help": "Height and width in pixels. Default: that of the starting weights, else "
            "of the images where these are small and alike, else of the model."
        },
    )
    mean: list[float] | None = field(
        default=None,
        metadata={
            "help": "Mean of each channel, pixels in [0, 1]. Default: that of the starting "
            "weights, else measured on the training images in memory, else the model's."
        },
    )
    std: list[float] | None = field(
        default=None, metadata={"help": "Standard deviation of each channel; as mean."}
    )
    padding: int = field(
        default=4,
        metadata={"help": "Pixels of black padding before the random crop; 0 turns it off."},
    )
    hflip: float | None = field(
        default=None,
        metadata={"help": "Probability of a mirrored image. Default: 0.5, and 0 for digits."},
    )
    random_resized_crop: list[float] | None = field(
        default=None,
        metadata={
            "help": "Smallest and largest share of the area that a random resized crop takes. "
            "Default: 0.08 1.0 for images above 64 pixels, else pad-and-crop instead."
        },
    )
    color_jitter: float = field(default=0.0, metadata={"help": "timm's color_jitter."})
    auto_augment: str | None = field(
        default=None, metadata={"help": "timm's auto_augment, e.g. rand-m9-mstd0.5."}
    )
    re_prob: float = field(default=0.0, metadata={"help": "Probability of random erasing."})
    max_train_samples: int | None = field(
        default=None,
        metadata={
            "help": "Train on this many images, spread evenly over the split; the first ones of "
            "a stream."
        },
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Evaluate on this many images; as max_train_samples."}
    )

    def __post_init__(self) -> None:
        self.dataset = parse_json("dataset", self.dataset)
        if not self.dataset:
            raise ValueError(
                "dataset is missing: name one, e.g. dataset: digits, or the path of a directory"
            )
        for name in ("hflip", "re_prob"):
            _interval(name, getattr(self, name), 0.0, 1.0)
        for name in ("image_size", "max_train_samples", "max_eval_samples", "shuffle_buffer"):
            _at_least(name, getattr(self, name), 1)
        _at_least("num_classes", self.num_classes, 2)
        _at_least("padding", self.padding, 0)
        self._check_lists()
        self._check_streaming()
        if self.in_memory and self.heavy:
            raise ValueError(
                f"in_memory augments by pad-crop and flip only, but {self.heavy[0]} is set: "
                f"say in_memory: false, or remove {self.heavy[0]}"
            )

    def _check_lists(self) -> None:
        crop = self.random_resized_crop
        if crop is not None and (len(crop) != 2 or not 0 < crop[0] <= crop[1] <= 1):
            raise ValueError(
                f"random_resized_crop must be two shares of the area, e.g. [0.08, 1.0], got {crop}"
            )
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std go together: give both or neither")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}")

    def _check_streaming(self) -> None:
        if not self.streaming:
            if self.num_classes is not None:
                raise ValueError(
                    "num_classes is for streams, other data are searched for their classes: "
                    "leave it out, or type --streaming true"
                )
            return
        if self.in_memory:
            raise ValueError("streaming and in_memory exclude each other: give one of them")
        if self.dataset == "digits" or str(self.dataset).startswith(TIMM):
            raise ValueError(
                f"dataset {self.dataset!r} cannot be streamed, only parquet files, image folders, "
                "webdataset tars and Hub names: leave streaming out"
            )

    @property
    def heavy(self) -> list[str]:
        """The augmentations asked for that only the one-image-at-a-time path can do."""
        names = ("random_resized_crop", "color_jitter", "auto_augment", "re_prob")
        return [name for name in names if getattr(self, name)]
