"""Ternary layers and models: both forms, the way between them, and what they are made of."""

__all__: list[str] = []
