"""Training: arguments, data, recipes and the Trainer."""

from ..data.arguments import DataArguments
from .arguments.model import ModelArguments
from .arguments.trainer import TernaryTrainingArguments
from .image_trainer import ImageTrainer
from .trainer import TernaryTrainer

__all__ = [
    "DataArguments",
    "ImageTrainer",
    "ModelArguments",
    "TernaryTrainer",
    "TernaryTrainingArguments",
]
