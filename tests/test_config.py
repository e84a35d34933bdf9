"""TernaryConfig: round trips, and errors that name the fix."""

import dataclasses
import json

import pytest

from timm_ternary import TernaryConfig

FULL = {
    "method": "ttq",
    "granularity": "channel",
    "exclude": ["first", "last", "blocks.*.attn"],
    "options": {"sparsity": 0.5},
}


def test_defaults_are_the_first_papers():
    config = TernaryConfig()
    assert (config.method, config.granularity) == ("tga", None)
    assert (config.exclude, config.options) == ((), {})


@pytest.mark.parametrize("values", [{}, {"method": "twn"}, {"exclude": ["last"]}, FULL])
def test_round_trip_through_dict_and_json(values):
    config = TernaryConfig.from_dict(values)
    assert TernaryConfig.from_dict(config.to_dict()) == config
    assert TernaryConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert {key: config.to_dict()[key] for key in values} == values


def test_to_dict_shares_nothing_with_the_config():
    config = TernaryConfig.from_dict(FULL)
    values = config.to_dict()
    values["options"]["t"] = 0.1
    values["exclude"].append("stem")
    assert config.to_dict() == FULL


def test_it_keeps_its_own_copy_of_the_options():
    options = {"sparsity": 0.5}
    config = TernaryConfig("ttq", options=options)
    options["sparsity"] = 0.9
    assert config.options == {"sparsity": 0.5}


def test_lists_and_tuples_of_options_are_the_same_and_its_own():
    factors = [0.05, 0.1]
    config = TernaryConfig(options={"init_factor": factors})
    assert config == TernaryConfig(options={"init_factor": (0.05, 0.1)})
    assert TernaryConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    hash(config)
    factors.append(0.2)
    config.to_dict()["options"]["init_factor"].append(0.3)
    assert config.options == {"init_factor": [0.05, 0.1]}


def test_frozen_hashable_comparable():
    config = TernaryConfig.from_dict(FULL)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.method = "tga"
    assert hash(config) == hash(TernaryConfig.from_dict(FULL))
    assert config != dataclasses.replace(config, options={"sparsity": 0.4})
    assert len({config, TernaryConfig.from_dict(FULL), TernaryConfig()}) == 2


def test_a_single_name_is_a_list_of_one():
    assert TernaryConfig(exclude="first").exclude == ("first",)
    assert TernaryConfig(exclude=["first"]).exclude == ("first",)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, TernaryConfig()),
        ("ttq", TernaryConfig(method="ttq")),
        ({"method": "twn"}, TernaryConfig(method="twn")),
        (TernaryConfig(granularity="channel"), TernaryConfig(granularity="channel")),
    ],
)
def test_of_accepts_what_users_type(value, expected):
    assert TernaryConfig.of(value) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"metod": "tga"}, "unknown key .* 'metod'; did you mean 'method'"),
        ({"granularty": "layer"}, "'granularty'; did you mean 'granularity'"),
        ({"init_factor": 0.1}, "'init_factor'.*Options of a method go under 'options'"),
        ({"granularity": "chanel"}, "'chanel'; did you mean 'channel'"),
        ({"method": 3}, "method must be a name such as 'tga', got 3"),
        ({"exclude": [1]}, r"exclude must be a list of names, .*got \[1\]"),
        ({"exclude": 7}, "exclude must be a list of names, .*got 7"),
        ({"options": [1]}, r"options must be a mapping, .*got \[1\]"),
    ],
)
def test_bad_values_name_the_fix(values, message):
    with pytest.raises(ValueError, match=message):
        TernaryConfig.from_dict(values)


def test_of_refuses_other_types():
    with pytest.raises(ValueError, match="a dict or a TernaryConfig, got int"):
        TernaryConfig.of(3)
