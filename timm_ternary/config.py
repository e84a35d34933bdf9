"""TernaryConfig: what to ternarize, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from .errors.numbers import plain
from .errors.wording import unknown

__all__ = ["GRANULARITIES", "TernaryConfig"]

GRANULARITIES = ("layer", "channel")


@dataclass(frozen=True)
class TernaryConfig:
    """How a model is made ternary. Frozen; ``to_dict`` and ``from_dict`` are inverse.

    Attributes:
        method: Name in the method registry, e.g. ``"tga"`` (default; He & Fan 2019), ``"ttq"``.
        granularity: ``"layer"``: one scale a layer, ``"channel"``: one an output channel, or None:
            what the method's paper has (``Quantizer.default_granularity``).
        exclude: Layers left in float: ``"first"`` and ``"last"`` (timm's ``first_conv`` and
            ``classifier``), ``"depthwise"``, or glob patterns on module names. Default: none, the
            first paper ternarizes all layers.
        options: Options of the method, e.g. ``{"init_factor": 0.05}``; see the method's class.
    """

    method: str = "tga"
    granularity: str | None = None
    exclude: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Normalize sequences and check types.

        Raises:
            ValueError: A field's value is not allowed. (Method and option names are checked
                against the registry by `timm_ternary.quantizers.check`.)
        """
        if not isinstance(self.method, str):
            raise ValueError(f"method must be a name such as 'tga', got {self.method!r}")
        if self.granularity is not None and self.granularity not in GRANULARITIES:
            raise ValueError(unknown("granularity", self.granularity, GRANULARITIES))
        exclude = (self.exclude,) if isinstance(self.exclude, str) else self.exclude
        if not isinstance(exclude, Sequence) or not all(isinstance(e, str) for e in exclude):
            raise ValueError(
                f"exclude must be a list of names, e.g. ['first', 'last'], got {self.exclude!r}"
            )
        if not isinstance(self.options, Mapping):
            raise ValueError(
                f"options must be a mapping, e.g. {{'init_factor': 0.1}}, got {self.options!r}"
            )
        object.__setattr__(self, "exclude", tuple(exclude))
        object.__setattr__(self, "options", _plain(self.options))

    def to_dict(self) -> dict[str, Any]:
        """A plain dict that JSON and YAML can hold."""
        return {
            "method": self.method,
            "granularity": self.granularity,
            "exclude": list(self.exclude),
            "options": _plain(self.options),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TernaryConfig:
        """The inverse of `to_dict`; missing keys take their defaults.

        Raises:
            ValueError: A key is unknown (names the nearest), or a value is not allowed.
        """
        allowed = [f.name for f in fields(cls)]
        for key in values:
            if key not in allowed:
                raise ValueError(
                    unknown("key of the ternary configuration", key, allowed)
                    + " Options of a method go under 'options'."
                )
        return cls(**values)

    @classmethod
    def of(cls, value: TernaryConfig | Mapping[str, Any] | str | None) -> TernaryConfig:
        """Accept what users type: a method's name, a dict, a config, or None for the default.

        Raises:
            ValueError: As `from_dict`; or `value` is of another type.
        """
        if value is None:
            return cls()
        if isinstance(value, TernaryConfig):
            return value
        if isinstance(value, str):
            return cls(method=value)
        if isinstance(value, Mapping):
            return cls.from_dict(value)
        raise ValueError(
            f"ternary must be a method's name, a dict or a TernaryConfig, "
            f"got {type(value).__name__}"
        )


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with lists for tuples and Python's numbers for numpy's, as JSON and YAML give them.

    Equal ones must compare equal.
    """
    return {
        key: [plain(entry) for entry in value] if isinstance(value, (list, tuple)) else plain(value)
        for key, value in options.items()
    }
