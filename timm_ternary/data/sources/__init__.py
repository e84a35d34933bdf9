"""Where images come from: what each source offers is a Split or a Stream."""

__all__: list[str] = []
