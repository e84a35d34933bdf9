"""The wording of errors: what was got, the nearest valid name, what is allowed."""

import pytest

from timm_ternary.errors.wording import nearest, unknown


@pytest.mark.parametrize(
    ("name", "allowed", "expected"),
    [
        ("tgaa", ["tga", "ttq", "twn"], "tga"),
        ("TTQ", ["tga", "ttq", "twn"], "ttq"),
        ("chanel", ["layer", "channel"], "channel"),
        ("ADMM", ["Admm", "bwn"], "Admm"),
        ("zzzzzz", ["tga", "ttq"], None),
        ("anything", [], None),
    ],
)
def test_nearest(name, allowed, expected):
    assert nearest(name, allowed) == expected


def test_unknown_says_all_three():
    line = unknown("method", "tgq", ["ttq", "tga"])
    assert line == "unknown method 'tgq'; did you mean 'ttq'? Allowed: tga, ttq."


def test_unknown_without_a_guess():
    assert unknown("method", "zzzz", ["ttq", "tga"]) == "unknown method 'zzzz'. Allowed: tga, ttq."


def test_unknown_with_nothing_allowed():
    assert unknown("option", "x", []).endswith("Allowed: none.")


def test_a_long_list_is_not_printed():
    allowed = [f"model_{i}" for i in range(21)]
    assert (
        unknown("model", "model_3x", allowed) == "unknown model 'model_3x'; did you mean 'model_3'?"
    )
    assert "Allowed" in unknown("model", "model_3x", allowed[:20])
