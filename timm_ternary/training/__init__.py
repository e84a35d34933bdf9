"""Training: arguments, data, recipes and the Trainer."""

from ..data.arguments import DataArguments
from .arguments.model import ModelArguments
from .arguments.trainer import TernaryTrainingArguments
from .trainer import TernaryTrainer

__all__ = ["DataArguments", "ModelArguments", "TernaryTrainer", "TernaryTrainingArguments"]
