"""Inner parts of other libraries that this package leans on: one function each, and no others.

tests/compat has a canary for each, which fails by name when a library moves; pyproject's upper
bounds are the minor versions with which they passed.
"""

__all__: list[str] = []
