"""What accompanies a training: one callback a file."""

__all__: list[str] = []
