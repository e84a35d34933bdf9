"""What a number is, and how a refusal reads."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest

from timm_ternary import TernaryConfig, quantizers
from timm_ternary.errors.numbers import check_number, check_whole, is_number, is_whole, plain

NUMBERS = [0, 1.5, -2, np.float32(0.5), np.float64(0.5), np.int64(3), Fraction(1, 2)]
NONE = [True, False, np.bool_(True), None, "1", "1e-4", [1], float("nan"), float("inf"), 1j]


@pytest.mark.parametrize("value", NUMBERS, ids=repr)
def test_numbers(value: object) -> None:
    assert is_number(value)
    found = check_number("x", value)
    assert type(found) is float and found == value


@pytest.mark.parametrize("value", NONE, ids=repr)
def test_no_numbers(value: object) -> None:
    assert not is_number(value)
    with pytest.raises(ValueError, match=r"^x must be a finite number, got"):
        check_number("x", value)


@pytest.mark.parametrize(
    ("limits", "inside", "outside", "words"),
    [
        ({"low": 0}, [0, 7], [-1e-9], "a finite number >= 0,"),
        ({"above": 0}, [1e-9], [0], "a finite number > 0,"),
        ({"low": 0, "below": 1}, [0, 0.99], [1], "a number from 0 to below 1,"),
        ({"above": 0, "high": 1}, [0.1, 1], [0, 1.1], "a number above 0 to 1,"),
        ({"high": 1}, [-5, 1], [1.1], "a number up to 1,"),
        ({"low": 0, "example": 0.1}, [0], [-1], "a finite number >= 0, e.g. 0.1;"),
    ],
)
def test_ranges(limits: dict, inside: list, outside: list, words: str) -> None:
    for value in inside:
        assert check_number("x", value, **limits) == value
    for value in outside:
        with pytest.raises(ValueError) as caught:
            check_number("x", value, **limits)
        assert str(caught.value) == f"x must be {words} got {value!r}"


def test_text_that_looks_like_a_number() -> None:
    with pytest.raises(ValueError, match=r"got '1e-4' \(a number in quotes is text: leave"):
        check_number("x", "1e-4")
    with pytest.raises(ValueError, match=r"got 'fast'$"):
        check_number("x", "fast")


def test_whole_numbers() -> None:
    assert check_whole("x", np.int64(3), low=1) == 3 and is_whole(-2)
    for value in (2.0, True, "2", 0):
        with pytest.raises(ValueError, match=f"x must be a whole number >= 1, got {value!r}"):
            check_whole("x", value, low=1)
    with pytest.raises(ValueError, match="x must be a whole number from 1 to 8, got 9"):
        check_whole("x", 9, low=1, high=8)


def test_plain_values_are_those_that_json_holds() -> None:
    for value in (np.float32(0.5), np.int64(3), 1, 2.5, True, None, "x"):
        assert json.loads(json.dumps(plain(value))) == value


@pytest.mark.parametrize(
    ("method", "option"),
    [("tga", "init_factor"), ("ttq", "t"), ("ttq", "sparsity"), ("admm", "rho")],
)
def test_every_method_means_the_same_by_a_number(method: str, option: str) -> None:
    for value in (False, True, "0.1", "1e-4", [], float("nan"), -0.1):
        with pytest.raises(ValueError, match=f"{option} must be .*number"):
            quantizers.check(TernaryConfig(method, options={option: value}))
    for value in (0.1, np.float32(0.1), 0):
        config = TernaryConfig(method, options={option: value})
        quantizers.check(config)
        assert TernaryConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_whole_options_take_numpys_numbers() -> None:
    for method, option in (("rel", "expansions"), ("abcnet", "bases")):
        quantizers.check(TernaryConfig(method, options={option: np.int64(2)}))
        for value in (2.0, True, "2"):
            with pytest.raises(ValueError, match=f"{option} must be .*got {value!r}"):
                quantizers.check(TernaryConfig(method, options={option: value}))


@pytest.mark.parametrize("value", [10**400, -(10**400), 1 << 100_000], ids=["+", "-", "hex"])
def test_whole_numbers_that_no_float_holds(value: int) -> None:
    with pytest.raises(ValueError, match=r"^t must be a number .* got ") as caught:
        quantizers.check(TernaryConfig("ttq", options={"t": value}))
    assert len(str(caught.value)) < 600
    with pytest.raises(ValueError, match=r"^x must be a whole number >= 1, got "):
        check_whole("x", value, low=1)
