"""Going on where a checkpoint stopped: what it carries for that, whether it is whole, and fits."""

__all__: list[str] = []
