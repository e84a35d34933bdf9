"""Whatever foreign code raises over a file is one line of ours."""

from __future__ import annotations

import json

import pytest
import yaml

from timm_ternary.errors.foreign import FileError, foreign
from timm_ternary.errors.wording import parse_json


def raised(error: BaseException, **kwargs) -> str:
    with pytest.raises(FileError) as caught, foreign("net/config.json", **kwargs):
        raise error
    assert caught.value.__cause__ is error
    return str(caught.value)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("bad\n  value"), "net/config.json: bad value"),
        (KeyError("architecture"), "net/config.json: KeyError: 'architecture'"),
        (AttributeError("no x"), "net/config.json: AttributeError: no x"),
        (AssertionError(), "net/config.json: AssertionError"),
        (NotImplementedError("Float8"), "net/config.json: NotImplementedError: Float8"),
        (RecursionError("maximum"), "net/config.json: it is nested too deeply"),
        (MemoryError(), "net/config.json: it asks for more memory than there is"),
        (OSError(13, "Permission denied"), "net/config.json: [Errno 13] Permission denied"),
        (yaml.YAMLError("x"), "net/config.json: YAMLError: x"),
        (OverflowError("\x1b[2J"), "net/config.json: OverflowError: \\x1b[2J"),
    ],
)
def test_every_class_ends_in_one_line(error: Exception, line: str) -> None:
    assert raised(error) == line


def test_hint_and_explanation() -> None:
    line = raised(OSError("down"), hint="type: again", explain=lambda error: f"no net ({error})")
    assert line == "net/config.json: no net (down); type: again"
    assert raised(OSError("down"), explain=lambda error: None).endswith("config.json: down")


def test_what_names_its_file_already_passes() -> None:
    inner = FileError("other.json: no such file")
    with pytest.raises(FileError) as caught, foreign("net/config.json"):
        raise inner
    assert caught.value is inner


def test_an_interrupt_is_no_error_of_a_file() -> None:
    with pytest.raises(KeyboardInterrupt), foreign("net/config.json"):
        raise KeyboardInterrupt


def test_a_line_of_half_a_megabyte() -> None:
    line = raised(ValueError("x\x1b" * 250_000), hint="type: this")
    assert len(line) < 1000 and line.isprintable() and line.endswith("type: this")


def test_nested_json_of_the_command_line() -> None:
    with pytest.raises(ValueError, match=r"ternary: .* is not valid JSON: it is nested too deeply"):
        parse_json("ternary", '{"a":' * 100_000)
    assert parse_json("ternary", json.dumps({"method": "tga"})) == {"method": "tga"}
