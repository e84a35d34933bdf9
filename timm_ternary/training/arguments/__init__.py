"""The fields of a recipe: which model, how it is trained; each checked as it is set."""

from .model import ModelArguments
from .trainer import TernaryTrainingArguments

__all__ = ["ModelArguments", "TernaryTrainingArguments"]
