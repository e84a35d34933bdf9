"""Data sets of torch: images held in memory, decoded one by one, or streamed."""

__all__: list[str] = []
