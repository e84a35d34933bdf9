"""Whole models: ternary in place, packed, trainable again, and everything torch does with them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import timm
import torch
from samples import MATRIX, config, image, outputs, trained
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.utils import parametrize

import timm_ternary
from timm_ternary import TernaryConfig, quantizers
from timm_ternary.nn.convert import (
    config_of,
    install_,
    is_packed,
    pack_,
    plain_,
    quantizers_of,
    ternarize_,
    ternary_layers,
    unpack_,
)
from timm_ternary.nn.forms import layer_code
from timm_ternary.nn.trainable import latent_weight
from timm_ternary.quantizers import registry


def net() -> nn.Sequential:
    """One layer of each kind."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(2),
        nn.Conv1d(8, 4, 3),
        nn.Unflatten(2, (2, 7, 7)),
        nn.Conv3d(4, 4, 2),
        nn.Flatten(),
        nn.Linear(144, 5),
    ).eval()


def int8_layer() -> nn.Module:
    """A layer as other libraries quantize them."""
    layer = nn.Linear(3, 3)
    layer.weight = nn.Parameter(torch.ones(3, 3, dtype=torch.int8), requires_grad=False)
    return layer


def complex_layer() -> nn.Module:
    """A layer for complex inputs."""
    return nn.Linear(3, 3, dtype=torch.complex64)


def net_input() -> Tensor:
    """What `net` takes: 10 * 10 positions after the first convolution, 98 after the second."""
    return torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(3))


class TestTernarize:
    """Floats to the trainable form."""

    def test_every_kind_of_layer(self) -> None:
        model = net()
        assert ternarize_(model) is model
        assert [name for name in ternary_layers(model)] == ["0", "4", "6", "8"]
        assert quantizers_of(model).keys() == ternary_layers(model).keys()
        assert config_of(model) == TernaryConfig() and not is_packed(model)
        for layer in ternary_layers(model).values():
            assert layer.weight.unique().numel() <= 3

    def test_the_latent_weight_is_the_former_parameter(self) -> None:
        model = net()
        weights = [module.weight for module in (model[0], model[4], model[6], model[8])]
        ternarize_(model, "twn")
        layers = ternary_layers(model).values()
        for layer, weight in zip(layers, weights, strict=True):
            assert layer.parametrizations.weight.original is weight
        model(net_input()).sum().backward()
        assert all(weight.grad is not None for weight in weights)

    def test_what_users_type(self) -> None:
        for given in (None, "tga", {}, {"method": "tga"}, TernaryConfig()):
            assert config_of(ternarize_(nn.Linear(3, 3), given)) == TernaryConfig()

    def test_a_layer_alone(self) -> None:
        layer = ternarize_(nn.Linear(3, 3))
        assert list(ternary_layers(layer)) == [""]
        y = layer(torch.ones(1, 3))
        assert torch.equal(pack_(layer)(torch.ones(1, 3)), y)
        assert torch.equal(unpack_(layer)(torch.ones(1, 3)), y)

    def test_tied_weights_stay_tied(self) -> None:
        first, second = nn.Linear(4, 4), nn.Linear(4, 4)
        second.weight = first.weight
        model = ternarize_(nn.Sequential(first, second))
        latent = first.parametrizations.weight.original
        assert latent is second.parametrizations.weight.original
        y = outputs(model, torch.ones(1, 4))
        assert torch.equal(outputs(pack_(model), torch.ones(1, 4)), y)

    @pytest.mark.parametrize("method", ["tga", "ttq", "bwn"])
    def test_tied_weights_stay_tied_through_packing(self, method: str) -> None:
        """One weight is one weight in every form: in memory, in training, and in a copy."""
        model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
        model[1].weight = model[2].weight = model[0].weight
        ternarize_(model, method)
        thresholds = len(
            list(quantizers.create(TernaryConfig(method), torch.ones(4, 4)).parameters())
        )
        assert len(list(model.parameters())) == 4 + 2 * (1 + thresholds)
        assert list(quantizers_of(model)) == ["0", "3"]
        y = outputs(model, torch.ones(1, 4))
        for _ in range(2):
            pack_(model)
            assert model[0].weight_packed is model[1].weight_packed is model[2].weight_packed
            assert model[3].weight_packed is not model[0].weight_packed
            model = copy.deepcopy(model)
            # As a model that moves to another device does.
            model._apply(lambda tensor: tensor.clone())
            assert torch.equal(outputs(unpack_(model), torch.ones(1, 4)), y)
            assert latent_weight(model[0]) is latent_weight(model[1]) is latent_weight(model[2])
            assert latent_weight(model[3]) is not latent_weight(model[0])
            assert len(list(model.parameters())) == 4 + 2 * (1 + thresholds)
        plain_(pack_(model))
        assert model[0].weight is model[1].weight is model[2].weight
        assert torch.equal(outputs(model, torch.ones(1, 4)), y)

    def test_layers_that_are_equal_by_chance_are_not_tied(self) -> None:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        model[1].load_state_dict(model[0].state_dict())
        pack_(ternarize_(model))
        assert model[0].weight_packed is not model[1].weight_packed
        unpack_(model)
        assert latent_weight(model[0]) is not latent_weight(model[1])

    def test_tied_layers_that_were_loaded_with_others_are_not_tied(self) -> None:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        other = pack_(ternarize_(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))))
        model[1].weight = model[0].weight
        pack_(ternarize_(model)).load_state_dict(other.state_dict())
        assert torch.equal(
            outputs(unpack_(model), torch.ones(1, 4)), outputs(other, torch.ones(1, 4))
        )

    def test_one_layer_in_two_places(self) -> None:
        layer = nn.Linear(4, 4)
        model = ternarize_(nn.Sequential(layer, nn.ReLU(), layer))
        y = outputs(model, torch.ones(1, 4))
        assert torch.equal(outputs(pack_(model), torch.ones(1, 4)), y)
        assert torch.equal(outputs(unpack_(model), torch.ones(1, 4)), y)
        assert model[0] is model[2]


class TestErrors:
    """Each leaves the model as it was."""

    def refused(self, model: nn.Module, match: str, config: object = None) -> None:
        before = {name: value.clone() for name, value in model.state_dict().items()}
        kinds = [type(module) for module in model.modules()]
        with pytest.raises(ValueError, match=match) as caught:
            ternarize_(model, config)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
        after = model.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(value, after[name]) for name, value in before.items())
        assert kinds == [type(module) for module in model.modules()]

    @pytest.mark.parametrize(
        ("make", "match"),
        [
            (lambda: nn.LazyLinear(3), "layer '1' has no weight yet .*run the model on one batch"),
            (lambda: int8_layer(), r"layer '1' has weights of torch\.int8, .*exclude=\['1'\]"),
            (lambda: nn.Linear(3, 3).to(torch.float8_e4m3fn), "layer '1' .*float8_e4m3fn"),
            (lambda: complex_layer(), "layer '1' has weights of torch.complex64"),
        ],
    )
    def test_weights_that_are_no_floats(self, make: Callable[[], nn.Module], match: str) -> None:
        for method in ("tga", "bwn"):
            model = nn.Sequential(nn.Linear(3, 3), make())
            kinds = [type(module) for module in model.modules()]
            keys = list(model.state_dict())
            with pytest.raises(ValueError, match=match) as caught:
                ternarize_(model, method)
            assert "\n" not in str(caught.value)
            assert list(model.state_dict()) == keys
            assert kinds == [type(module) for module in model.modules()]
            ternarize_(model, TernaryConfig(method, exclude=("1",)))

    def test_a_packed_model_whose_method_is_not_installed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = pack_(ternarize_(net()))
        kinds = [type(module) for module in model.modules()]
        monkeypatch.delitem(registry._methods, "tga")
        with pytest.raises(ValueError, match="'tga'"):
            unpack_(model)
        assert kinds == [type(module) for module in model.modules()]

    def test_unknown_method(self) -> None:
        self.refused(net(), "unknown method 'tgaa'; did you mean 'tga'", "tgaa")

    def test_unknown_option(self) -> None:
        given = {"method": "tga", "options": {"init_facto": 0.1}}
        self.refused(net(), "unknown option of method 'tga' 'init_facto'; did you mean", given)

    def test_unknown_key(self) -> None:
        self.refused(net(), "did you mean 'granularity'", {"granularty": "layer"})

    def test_value_of_an_option(self) -> None:
        self.refused(net(), "t must be a number", {"method": "ttq", "options": {"t": 2}})

    def test_another_type(self) -> None:
        self.refused(net(), "ternary must be a method's name, a dict or a TernaryConfig", 3)

    def test_ternary_already(self) -> None:
        match = "the model is ternary already"
        self.refused(ternarize_(net()), match, "ttq")
        self.refused(pack_(ternarize_(net())), match, "ttq")

    def test_nothing_to_make_ternary(self) -> None:
        self.refused(nn.Sequential(nn.ReLU()), "Sequential has no convolution or linear layer")
        self.refused(net(), r"no convolution or linear layer .*exclude=\['\*'\]", {"exclude": "*"})

    def test_pack_a_float_model(self) -> None:
        with pytest.raises(ValueError, match=r"the model is not ternary; type: .*ternarize_"):
            pack_(net())

    def test_unpack_what_is_not_packed(self) -> None:
        for model in (net(), ternarize_(net())):
            with pytest.raises(ValueError, match=r"the model is not packed; type: .*pack_"):
                unpack_(model)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    @pytest.mark.parametrize("key", ["weight.original", "weight.0.scale_neg"])
    def test_pack_what_is_not_finite(self, key: str, value: float) -> None:
        model = ternarize_(net(), "ttq")
        model.state_dict()[f"8.parametrizations.{key}"].view(-1)[0] = value
        with pytest.raises(ValueError, match="layer '8' holds weights or scales"):
            pack_(model)
        assert not is_packed(model) and len(quantizers_of(model)) == 4


class TestPack:
    """Packed, and trainable again: the same outputs to the last bit."""

    @pytest.mark.parametrize(("method", "granularity"), MATRIX)
    def test_exact(self, method: str, granularity: str) -> None:
        model = trained(ternary=config(method, granularity))
        expected = outputs(model)
        codes = {name: layer_code(layer) for name, layer in ternary_layers(model).items()}
        assert pack_(model) is model and is_packed(model)
        assert torch.equal(outputs(model), expected)
        assert unpack_(model) is model and not is_packed(model)
        assert torch.equal(outputs(model), expected)
        for name, layer in ternary_layers(model).items():
            assert torch.equal(layer_code(layer).codes, codes[name].codes)
            assert torch.equal(layer_code(layer).pos, codes[name].pos)
        assert torch.equal(outputs(pack_(model)), expected)

    @pytest.mark.parametrize("name", ["test_vit_tern", "test_nfnet_tern", "test_efficientnet_tern"])
    def test_other_families(self, name: str) -> None:
        model, x = trained(name), image(size=160)
        expected = outputs(model, x)
        assert torch.equal(outputs(pack_(model), x), expected)
        assert torch.equal(outputs(unpack_(model), x), expected)

    def test_packing_twice_is_packing_once(self) -> None:
        model = pack_(trained())
        before = outputs(model)
        assert torch.equal(outputs(pack_(model)), before)

    def test_only_float_parameters_are_left(self) -> None:
        model = pack_(trained())
        names = {name for name, _ in model.named_parameters()}
        assert not any("parametrizations" in name for name in names)
        assert "fc.bias" in names and "fc.weight" not in names

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, dtype: torch.dtype) -> None:
        for method, granularity in MATRIX:
            model = trained(ternary=config(method, granularity)).to(dtype)
            x = image().to(dtype)
            expected = outputs(model, x)
            assert expected.dtype == dtype and expected.isfinite().all()
            got = outputs(pack_(model).to(dtype), x)
            if method == "rel":  # the sum of two scales is rounded once, or they and their sum
                torch.testing.assert_close(got, expected, rtol=0, atol=0.02 * expected.abs().max())
            else:
                assert torch.equal(got, expected)

    def test_training_goes_on(self) -> None:
        model = unpack_(pack_(trained(ternary="ttq"))).train()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        before = outputs(model)
        model.train()(image()).square().sum().backward()
        grads = [p.grad for q in quantizers_of(model).values() for p in q.parameters()]
        assert grads and all(g is not None and g.abs().sum() > 0 for g in grads)
        optimizer.step()
        assert not torch.equal(outputs(model), before)

    def test_copies_are_independent(self) -> None:
        model = trained()
        expected = outputs(model)
        packed = pack_(copy.deepcopy(model))
        assert torch.equal(outputs(model), expected)  # its class is shared with the copy's
        again = pack_(copy.deepcopy(model))
        trainable = unpack_(copy.deepcopy(packed))
        for made in (packed, again, trainable):
            assert torch.equal(outputs(made), expected)
        with torch.no_grad():
            for made in (packed, again, trainable):
                for tensor in made.state_dict().values():
                    tensor.zero_()
        assert torch.equal(outputs(model), expected)

    def test_other_parametrizations_stay(self) -> None:
        class Twice(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return 2 * x

        layer = nn.Linear(3, 3)
        parametrize.register_parametrization(layer, "bias", Twice())
        ternarize_(layer)
        y = layer(torch.ones(1, 3))
        pack_(layer)
        assert torch.equal(layer(torch.ones(1, 3)), y)
        assert torch.equal(layer.bias, 2 * layer.parametrizations.bias.original)
        unpack_(layer)
        assert torch.equal(layer(torch.ones(1, 3)), y)

    def test_install_with_codes(self) -> None:
        source = trained(ternary="ttq")
        codes = {name: layer_code(layer) for name, layer in ternary_layers(source).items()}
        for packed in (True, False):
            base = timm.create_model("test_resnet", num_classes=5)
            install_(base, config("ttq"), packed=packed, codes=codes)
            assert is_packed(base) is packed
            for name, layer in ternary_layers(base).items():
                assert torch.equal(layer.weight, source.get_submodule(name).weight)


class TestStateDict:
    """Whole models across the three forms."""

    @pytest.mark.parametrize("source", ["float", "trained", "packed"])
    @pytest.mark.parametrize("target", ["trained", "packed"])
    def test_any_into_either(self, source: str, target: str) -> None:
        given = trained(ternary="ttq")
        if source == "float":
            given = timm.create_model("test_resnet", num_classes=5)
            state = given.state_dict()
            ternarize_(given, "ttq")
        else:
            state = (given if source == "trained" else pack_(copy.deepcopy(given))).state_dict()
        into = trained(ternary="ttq", seed=7)
        if target == "packed":
            pack_(into)
        into.load_state_dict(state, strict=True)
        assert torch.equal(outputs(into), outputs(given))
        state = dict(state)
        del state["bn1.weight"]
        with pytest.raises(RuntimeError, match=r"Missing key\(s\).*bn1.weight"):
            into.load_state_dict(state)


@pytest.mark.parametrize("packed", [False, True])
class TestTorch:
    """Graph capture: the same outputs."""

    @pytest.fixture
    def model(self, packed: bool) -> nn.Module:
        model = trained(ternary=config("ttq", "channel"))
        return pack_(model) if packed else model

    def test_trace(self, model: nn.Module) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            warnings.simplefilter("ignore", FutureWarning)
            traced = torch.jit.trace(model, image())
        assert torch.equal(traced(image(seed=4)), outputs(model, image(seed=4)))

    def test_export(self, model: nn.Module) -> None:
        exported = torch.export.export(model, (image(),)).module()
        assert torch.equal(exported(image(seed=4)), outputs(model, image(seed=4)))

    def test_compile(self, model: nn.Module) -> None:
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        with torch.no_grad():
            assert torch.equal(compiled(image()), outputs(model))

    def test_channels_last(self, model: nn.Module) -> None:
        expected = outputs(model)
        found = outputs(model.to(memory_format=torch.channels_last), image())
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_model_ema() -> None:
    """timm's moving average copies the model, and averages latent weights and thresholds."""
    model = trained()
    ema = ModelEmaV3(model, decay=0.5)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    assert torch.equal(outputs(ema.module), outputs(model))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    ema.update(model)
    for key in ("original", "0.threshold"):
        name = f"fc.parametrizations.weight.{key}"
        assert torch.allclose(ema.module.state_dict()[name], start[name] + 0.5)
    pack_(ema.module)
    assert is_packed(ema.module) and not is_packed(model)
    assert outputs(model).isfinite().all()


def test_public_names() -> None:
    for name in timm_ternary.__all__:
        assert getattr(timm_ternary, name) is not None
    assert {"ternarize_", "pack_", "unpack_", "summarize"} < set(timm_ternary.__all__)
