"""Training: arguments, data, recipes and the Trainer."""

from .arguments import DataArguments, ModelArguments
from .trainer import TernaryTrainer
from .training_arguments import TernaryTrainingArguments

__all__ = ["DataArguments", "ModelArguments", "TernaryTrainer", "TernaryTrainingArguments"]
