"""Recipes: a YAML file whose keys are dataclass fields, overridden by the command line."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from ...compat.transformers import add_parser_field
from ...errors.foreign import FileError, foreign
from ...errors.printable import shown
from ...files import read_stream, read_text
from .hints import allows, describe_hint, members
from .spelling import unknown_field

__all__ = ["check", "load_yaml", "parse"]


def parse(argv: Sequence[str], *dataclass_types: type) -> tuple[Any, ...]:
    """Build one object of each dataclass from ``RECIPE.yaml [--field value]...``.

    The recipe's keys are the fields of all the dataclasses. The command line overrides the recipe;
    both are typed in the same way. Mappings are given there as JSON, lists as several words.

    Args:
        argv: The words of the command line, the program's name left out; the recipe is optional.

    Returns:
        One object of each type, in their order.

    Raises:
        ValueError: The file cannot be read, a key is unknown, given twice or of the wrong type, or
            a dataclass refuses its value. One line, which names the file or the option.
    """
    typer = _Typer(dataclass_types)
    recipe, values = _read(argv, typer)
    return typer.build(values, where=recipe)


def check(argv: Sequence[str], *dataclass_types: type) -> None:
    """Raise the ValueError of `parse` for keys and types, without building anything.

    For a command that hands the words on to other processes: building TrainingArguments would
    claim their devices.
    """
    _read(argv, _Typer(dataclass_types))


def _read(argv: Sequence[str], typer: _Typer) -> tuple[str | None, dict[str, Any]]:
    """The recipe's path, if there is one, and all fields with their values."""
    argv = list(argv)
    recipe = argv.pop(0) if argv and not argv[0].startswith("--") else None
    values: dict[str, Any] = {}
    if recipe is not None:
        for spelled, value in load_yaml(recipe).items():
            key = typer.aliases.get(spelled, spelled)
            if key in values:
                names = sorted({key, *(a for a, field in typer.aliases.items() if field == key)})
                raise FileError(f"{recipe}: {' and '.join(names)} are one field: give it once")
            values[key] = typer.from_yaml(key, value, where=recipe)
    for option, words in _options(argv):
        key, value = typer.from_words(option, words)
        values[key] = value
    return recipe, values


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that occurs twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise ValueError(f"a key must be a word, not a {key_node.id}, in line {line}")
            if key_node.value in seen:
                raise ValueError(
                    f"key {shown(key_node.value)} is given twice, again in line {line}"
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


# The largest recipe of this project has 2 kB; a list of a thousand parquet files 100.
_BYTES = 1 << 18
_PIPES = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")
"""What a shell puts in the place of ``<(command)``: a pipe, and meant to be read."""


# YAML 1.1 takes 1e-3 for text; YAML 1.2, JSON and people for a number.
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+")


def _resolve_numbers(root: yaml.Node) -> None:
    """Let unquoted 1e-3 be numbers within mappings; fields themselves give values their types."""
    waiting = [value for _, value in root.value] if isinstance(root, yaml.MappingNode) else []
    waiting = [value for value in waiting if isinstance(value, yaml.MappingNode)]
    seen: set[int] = set()  # an alias is the same node once more
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if not isinstance(node, yaml.ScalarNode):
            waiting += [entry[1] if isinstance(entry, tuple) else entry for entry in node.value]
        elif node.style is None and _NUMBER.fullmatch(node.value):
            node.tag = "tag:yaml.org,2002:float"


def load_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ValueError: The file is none, cannot be read, is larger than 256 kB, is empty, is no
            mapping, or holds a key twice. One line that names it.
    """
    recipe = f"recipe {shown(str(path))}"
    if not os.path.exists(path):
        raise FileError(f"{recipe} does not exist")
    read = read_stream if str(path).startswith(_PIPES) else read_text
    text = read(path, _BYTES)
    with foreign(f"{recipe} is not valid YAML"):
        loader = _UniqueKeyLoader(text)
        node = loader.get_single_node()
        if node is not None:
            _check_aliases(node)
            _resolve_numbers(node)
        content = None if node is None else loader.construct_document(node)
    if content is None:
        raise FileError(f"{recipe} is empty: write at least model and dataset")
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise FileError(f"{recipe} must hold 'field: value' lines, got {type(content).__name__}")
    return content


def _check_aliases(node: yaml.Node) -> None:
    """Refuse a few lines whose aliases stand for billions of values, or for themselves."""
    sizes: dict[int, float] = {}

    def size(node: yaml.Node) -> float:
        if id(node) not in sizes:
            sizes[id(node)] = math.inf  # until it is known: it may hold itself
            parts: Any = node.value
            if isinstance(node, yaml.MappingNode):
                parts = [part for pair in node.value for part in pair]
            known = len(parts) if isinstance(node, yaml.ScalarNode) else sum(map(size, parts))
            sizes[id(node)] = known + 1
        return sizes[id(node)]

    if size(node) > 8 * _BYTES:
        raise ValueError("its aliases (*name) stand for more than a recipe can hold")


def _options(argv: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each option of a command line with the words that follow it."""
    words: list[str] = []
    option: str | None = None
    for word in argv:
        if word.startswith("--"):
            if option is not None:
                yield option, words
            option, equals, value = word.partition("=")
            words = [value] if equals else []
        elif option is None:
            raise FileError(
                f"expected --field value, got {shown(word)}; a run takes one recipe, first"
            )
        else:
            words.append(word)
    if option is not None:
        yield option, words


class _Refused(Exception):
    """argparse's message about a value."""


class _Parser(HfArgumentParser):
    """transformers' parser, whose refusals are exceptions."""

    def error(self, message: str) -> NoReturn:
        raise _Refused(message)

    @staticmethod
    def _parse_dataclass_field(parser: Any, field: dataclasses.Field[Any]) -> None:
        # transformers 5.23 takes text for a union only where it stands in certain places: it
        # fails on `str | list[str] | None`. What is not text, `from_yaml` passes on as it is.
        if len(members(field.type)) > 2 and allows(field.type, str):
            field.type = str | None
        add_parser_field(parser, field)


class _Typer:
    """Gives values the types of dataclass fields, as transformers' argument parser does."""

    def __init__(self, dataclass_types: Sequence[type]) -> None:
        self.parser = _Parser(dataclass_types, allow_abbrev=False, add_help=False)
        self.hints: dict[str, Any] = {}
        for cls in dataclass_types:
            known = typing.get_type_hints(cls)
            self.hints |= {f.name: known[f.name] for f in dataclasses.fields(cls) if f.init}
        self.aliases = dict(_aliases(dataclass_types))

    def from_yaml(self, key: str, value: Any, *, where: str) -> Any:
        """A value of the recipe `where`, typed."""
        if key not in self.hints:
            raise FileError(f"{where}: " + unknown_field("key", key, self.hints))
        hint, words = self.hints[key], [value]
        if value is None and allows(hint, type(None)):
            return None
        if isinstance(value, dict):
            if not allows(hint, dict):
                raise FileError(f"{where}: " + self._mismatch(key, value))
            return value
        if isinstance(value, list):
            if allows(hint, str) and allows(hint, list):
                return value
            words = value
            if not allows(hint, list):
                raise FileError(f"{where}: " + self._mismatch(key, value))
        # YAML reads a bare no as false; for a field that takes no truth value it is the word.
        plain = {True: "yes", False: "no"} if not allows(hint, bool) else {}
        try:
            texts = [plain[w] if isinstance(w, bool) and plain else _text(w) for w in words]
            return self._typed(key, texts)
        except _Refused as error:
            raise FileError(f"{where}: " + self._mismatch(key, value)) from error

    def from_words(self, option: str, words: list[str]) -> tuple[str, Any]:
        """The field and the value of one option of the command line."""
        key = option[2:].replace("-", "_")
        key = self.aliases.get(key, key)
        bare = key.removeprefix("no_")
        if key not in self.hints and allows(self.hints.get(bare), bool) and not words:
            return bare, False
        if key not in self.hints:
            raise FileError("command line: " + unknown_field("option", option, self.hints))
        text = " ".join(words)
        if len(words) == 1 and allows(self.hints[key], type(None)) and text in ("None", "null"):
            return key, None
        if len(words) > 1 and allows(self.hints[key], str) and allows(self.hints[key], list):
            return key, words
        if text.lstrip().startswith("{") and allows(self.hints[key], dict):
            return key, self._json(option, text)
        try:
            return key, self._typed(key, words)
        except _Refused as error:
            what = text if words else "nothing"
            raise FileError(
                "command line: " + self._mismatch(option, what, hint=self.hints[key])
            ) from error

    def build(self, values: dict[str, Any], *, where: str | None) -> tuple[Any, ...]:
        """The dataclass objects; their own refusals, in one line."""
        with foreign(where or ""):
            return self.parser.parse_dict(values, allow_extra_keys=False)

    def _typed(self, key: str, words: list[str]) -> Any:
        # One `--key=value` word where there is one value, or a value such as -1e-3 reads as an
        # option.
        given = [f"--{key}={words[0]}"] if len(words) == 1 else [f"--{key}", *words]
        namespace, extra = self.parser.parse_known_args(given)
        if extra:
            raise _Refused(f"too many values: {extra}")
        return getattr(namespace, key)

    def _json(self, option: str, text: str) -> dict[str, Any]:
        with foreign(f"command line: {option} is not valid JSON", hint=f"got {shown(text)}"):
            values: dict[str, Any] = json.loads(text)
        return values

    def _mismatch(self, key: str, value: Any, hint: Any = None) -> str:
        expected = describe_hint(hint if hint is not None else self.hints[key])
        return f"{key} must be {expected}, got {shown(value)}"


def _aliases(dataclass_types: Sequence[type]) -> Iterator[tuple[str, str]]:
    """Each other spelling of a field that its metadata name, and the field."""
    for cls in dataclass_types:
        for field in dataclasses.fields(cls):
            for option in field.metadata.get("aliases", ()):
                yield option.lstrip("-").replace("-", "_"), field.name


def _text(value: Any) -> str:
    """A value as it would be typed."""
    if isinstance(value, int) and value.bit_length() > 1 << 10:  # in hexadecimal YAML knows no end
        raise _Refused("no number of that size")
    return str(value)
