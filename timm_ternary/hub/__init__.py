"""Publishing on the Hub: the card, what is compared before, and the upload."""

__all__: list[str] = []
