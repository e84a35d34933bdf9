"""Errors in one line: what was got, what is allowed, what to type."""

__all__: list[str] = []
