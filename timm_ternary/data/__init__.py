"""Images and labels: which are read, from where, and how they become batches."""

__all__: list[str] = []
