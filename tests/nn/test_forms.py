"""The two forms of a layer: exact in both directions, for every host, under every loader."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import timm
import torch
from samples import MATRIX, config
from timm.layers import Conv2dSame, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import Tensor, nn

from timm_ternary import TernaryCode, TernaryConfig
from timm_ternary.nn.forms import layer_code, make_packed, make_plain, make_trainable
from timm_ternary.nn.packed import PackedConv2d, PackedLinear, PackedWeight
from timm_ternary.nn.trainable import quantizer_of
from timm_ternary.packing.encodings import ENCODINGS, encode
from timm_ternary.packing.tensors import code_from_tensors, scale_tensor

HOSTS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(7, 5), (2, 7)),
    "one weight": (lambda: nn.Linear(1, 1), (2, 1)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, groups=2), (2, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(3, 6, 3, padding=1), (2, 3, 9, 9)),
    "reflect": (lambda: nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect"), (2, 3, 9, 9)),
    "depthwise": (lambda: nn.Conv2d(6, 6, 3, groups=6, bias=False), (2, 6, 9, 9)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 3), (2, 2, 5, 5, 5)),
    "same": (lambda: Conv2dSame(3, 6, 3, stride=2), (2, 3, 33, 33)),
    "standardized": (lambda: StdConv2d(3, 6, 3, stride=2), (2, 3, 33, 33)),
    "standardized same": (lambda: StdConv2dSame(3, 6, 3, stride=2), (2, 3, 33, 33)),
    "scaled": (lambda: ScaledStdConv2d(3, 6, 3, stride=2), (2, 3, 33, 33)),
    "scaled same": (lambda: ScaledStdConv2dSame(3, 6, 3, stride=2), (2, 3, 33, 33)),
}


def trainable(host: str, ternary: TernaryConfig, *, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A trainable layer whose quantizer has moved, and an input."""
    torch.manual_seed(seed)
    make, shape = HOSTS[host]
    layer = make()
    make_trainable(layer, ternary)
    with torch.no_grad():
        for parameter in quantizer_of(layer).parameters():
            parameter.mul_(1 + 0.3 * torch.rand_like(parameter))
    return layer.eval(), torch.randn(shape)


def packed(layer: nn.Module, ternary: TernaryConfig) -> nn.Module:
    """A packed copy."""
    code, layer = layer_code(layer), copy.deepcopy(layer)
    make_plain(layer)
    make_packed(layer, ternary, code)
    return layer


class TestForms:
    """Trainable to packed and back."""

    @pytest.mark.parametrize(("method", "granularity"), MATRIX)
    @pytest.mark.parametrize("host", HOSTS)
    def test_the_same_outputs(self, host: str, method: str, granularity: str) -> None:
        ternary = config(method, granularity)
        layer, x = trainable(host, ternary)
        expected, weight = layer(x), layer.weight.detach()
        made = packed(layer, ternary)
        assert isinstance(made, PackedWeight) and isinstance(made, type(HOSTS[host][0]()))
        assert type(made).forward is type(HOSTS[host][0]()).forward
        assert torch.equal(made.weight, weight)
        assert torch.equal(made(x), expected) and made(x).shape == expected.shape
        assert not list(n for n, _ in made.named_parameters() if n != "bias" and n != "gain")

        code = made.weight_code
        make_plain(made)
        make_trainable(made, ternary, code)
        assert torch.equal(made.weight, weight)
        assert torch.equal(made(x), expected)

    def test_the_host_comes_back(self) -> None:
        for host, (make, _) in HOSTS.items():
            for ternary in (config("tga"), config("ttq", "channel")):
                torch.manual_seed(0)
                plain = make()
                original, kind = plain.weight.detach().clone(), type(plain)
                keys = list(plain.state_dict())
                make_trainable(plain, ternary)
                make_plain(plain)
                assert type(plain) is kind and torch.equal(plain.weight, original), host
                make_packed(plain, ternary)
                weight = plain.weight
                make_plain(plain)
                assert type(plain) is kind and torch.equal(plain.weight, weight), host
                assert sorted(plain.state_dict()) == sorted(keys)
                assert isinstance(plain.weight, nn.Parameter) and plain.weight.requires_grad
                assert not hasattr(plain, "ternary_config")
                assert not plain._load_state_dict_pre_hooks

    def test_the_exact_types(self) -> None:
        for host, kind in (("conv2d", PackedConv2d), ("linear", PackedLinear)):
            layer, _ = trainable(host, config())
            assert type(packed(layer, config())) is kind
        layer, _ = trainable("same", config())
        assert not isinstance(packed(layer, config()), PackedConv2d)  # its forward pads
        assert isinstance(packed(layer, config()), Conv2dSame)

    def test_padding_as_the_host_does(self) -> None:
        layer, x = trainable("same", config())
        assert packed(layer, config())(x).shape == (2, 6, 17, 17)

    def test_what_is_stored(self) -> None:
        for method, granularity in MATRIX:
            layer, _ = trainable("conv2d", config(method, granularity))
            made = packed(layer, config(method, granularity))
            assert made.weight_packed.dtype == torch.uint8
            bases = 2 if method == "rel" else 1
            assert made.weight_packed.shape == (bases * -(-6 * 3 * 9 // 4),)
            assert made.weight_scale.dtype == torch.float32
            rows, groups = (2 if method == "ttq" else 1), (6 if granularity == "channel" else 1)
            assert made.weight_scale.shape == (bases, rows, groups)

    def test_no_gradient_and_no_new_parameters(self) -> None:
        layer, x = trainable("conv2d", config())
        made = packed(layer, config())
        x.requires_grad_()
        made(x).sum().backward()
        assert x.grad is not None and made.bias.grad is not None
        assert not made.weight.requires_grad

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    @pytest.mark.parametrize(("method", "granularity"), MATRIX)
    def test_other_dtypes(self, method: str, granularity: str, dtype: torch.dtype) -> None:
        ternary = config(method, granularity)
        layer, x = trainable("linear", ternary)
        layer, x = layer.to(dtype), x.to(dtype)
        expected = layer(x)
        assert expected.dtype == dtype
        made = packed(layer, ternary)
        assert made.weight.dtype == dtype and torch.equal(made.weight, layer.weight)
        assert torch.equal(made(x), expected)

    def test_several_bases(self) -> None:
        torch.manual_seed(0)
        layer = nn.Linear(7, 5)
        codes = torch.randint(-1, 2, (3, 5, 7), dtype=torch.int8)
        code = TernaryCode(codes, torch.rand(3, 5), torch.rand(3, 5))
        make_packed(layer, config("ttq", "channel"), code)
        assert torch.equal(layer.weight_code.codes, codes)
        assert torch.equal(layer.weight, code.decode())

    def test_not_ternary(self) -> None:
        with pytest.raises(ValueError, match="Linear is not ternary; type: ternarize_"):
            layer_code(nn.Linear(2, 2))
        assert quantizer_of(nn.Linear(2, 2)) is None


class TestDeepcopy:
    """Copies share nothing."""

    @pytest.mark.parametrize("form", ["trainable", "packed"])
    def test_loading_into_a_copy_leaves_the_original(self, form: str) -> None:
        ternary = config("ttq", "channel")
        first, second = (trainable("conv2d", ternary, seed=seed)[0] for seed in (0, 1))
        if form == "packed":
            first = packed(first, ternary)
        before = {name: value.clone() for name, value in first.state_dict().items()}
        weight = first.weight.detach().clone()
        for state in (second.state_dict(), packed(second, ternary).state_dict()):
            copied = copy.deepcopy(first)
            copied.load_state_dict(state)
            assert torch.equal(copied.weight, second.weight)
            assert torch.equal(first.weight, weight)
            assert all(torch.equal(value, before[n]) for n, value in first.state_dict().items())

    def test_state_dicts_that_are_loaded_stay_as_they_are(self) -> None:
        layer, _ = trainable("conv2d", config())
        other, _ = trainable("conv2d", config(), seed=1)
        for state in (layer.state_dict(), packed(layer, config()).state_dict()):
            before = {name: value.clone() for name, value in state.items()}
            for target in (other, packed(other, config())):
                target.load_state_dict(state)
                assert torch.equal(target.weight, layer.weight)
                with torch.no_grad():
                    for tensor in [*target.parameters(), *target.buffers()]:
                        tensor.zero_()
                assert state.keys() == before.keys()
                assert all(torch.equal(value, before[name]) for name, value in state.items())
                target.load_state_dict(state)


class TestStateDicts:
    """Float, trained and packed ones load into either form."""

    @pytest.mark.parametrize("target", ["trainable", "packed"])
    @pytest.mark.parametrize("source", ["float", "trained", "packed"])
    @pytest.mark.parametrize(("method", "granularity"), MATRIX)
    def test_any_into_either(self, method: str, granularity: str, source: str, target: str) -> None:
        ternary = config(method, granularity)
        layer, x = trainable("conv2d", ternary)
        if source == "float":
            plain = copy.deepcopy(layer)
            make_plain(plain)
            state = plain.state_dict()
            make_trainable(plain, ternary)  # a float file starts the method anew
            layer = plain
        else:
            state = (packed(layer, ternary) if source == "packed" else layer).state_dict()
        into, _ = trainable("conv2d", ternary, seed=1)
        if target == "packed":
            into = packed(into, ternary)
        keys = into.load_state_dict(state)
        assert not keys.missing_keys and not keys.unexpected_keys
        assert torch.equal(into.weight, layer.weight)
        assert torch.equal(into(x), layer(x))

    @pytest.mark.parametrize("encoding", ENCODINGS)
    def test_tensors_of_a_file_in_any_encoding(self, encoding: str) -> None:
        layer, _ = trainable("conv2d", config())
        state = packed(layer, config()).state_dict()
        code = layer_code(layer)
        state["weight_packed"] = encode(code.codes.flatten(1), encoding)
        for into in (trainable("conv2d", config(), seed=1)[0], packed(layer, config())):
            into.load_state_dict(state)
            assert torch.equal(into.weight, layer.weight)
        assert into.weight_packed.shape == (-(-code.codes.numel() // 4),)  # 2bit in memory

    @pytest.mark.parametrize("form", ["trainable", "packed"])
    @pytest.mark.parametrize("missing", ["bias", "weight"])
    def test_missing_keys_are_missed(self, missing: str, form: str) -> None:
        layer, _ = trainable("conv2d", config())
        into = packed(layer, config()) if form == "packed" else layer
        for given in (copy.deepcopy(layer), packed(layer, config())):
            state = {n: v for n, v in given.state_dict().items() if missing not in n}
            with pytest.raises(RuntimeError, match=f"Missing key.*{missing}"):
                into.load_state_dict(state)

    @pytest.mark.parametrize("form", ["trainable", "packed"])
    def test_half_of_a_packed_weight_is_not_enough(self, form: str) -> None:
        layer, _ = trainable("conv2d", config())
        into = packed(layer, config()) if form == "packed" else layer
        for key in ("weight_packed", "weight_scale"):
            state = packed(layer, config()).state_dict()
            del state[key]
            with pytest.raises(RuntimeError, match="Missing key"):
                into.load_state_dict(state)

    @pytest.mark.parametrize("form", ["trainable", "packed"])
    def test_other_shapes_are_refused(self, form: str) -> None:
        layer, _ = trainable("conv2d", config())
        into = packed(layer, config()) if form == "packed" else layer
        other = nn.Conv2d(3, 8, 3)
        state = other.state_dict()
        with pytest.raises((RuntimeError, ValueError), match="weight"):
            into.load_state_dict(state)
        make_packed(other, config())
        with pytest.raises((RuntimeError, ValueError), match="weight_packed"):
            into.load_state_dict(other.state_dict())

    def test_unexpected_keys_are_told(self) -> None:
        layer, _ = trainable("conv2d", config())
        state = packed(layer, config()).state_dict() | {"ghost": torch.zeros(1)}
        with pytest.raises(RuntimeError, match=r"Unexpected key.*ghost"):
            layer.load_state_dict(state)


class TestTensors:
    """`scale_tensor` and `code_from_tensors` are inverse."""

    @pytest.mark.parametrize("encoding", ENCODINGS)
    @pytest.mark.parametrize(("method", "granularity"), MATRIX)
    def test_round_trip(self, method: str, granularity: str, encoding: str) -> None:
        layer, _ = trainable("conv3d", config(method, granularity))
        code = layer_code(layer)
        data = encode(code.codes.flatten(1), encoding)
        if encoding == "zstd":
            data = encode(code.codes.flatten(1), "2bit")
        back = code_from_tensors(data, scale_tensor(code), code.shape)
        assert torch.equal(back.codes, code.codes)
        assert torch.equal(back.pos, code.pos) and torch.equal(back.neg, code.neg)
        assert back.scale_rows == code.scale_rows == quantizer_of(layer).scale_rows

    def test_names_the_tensor(self) -> None:
        shape, scale = torch.Size([2, 4]), torch.ones(1, 1, 1)
        data = torch.zeros(2, dtype=torch.uint8)
        assert torch.equal(code_from_tensors(data, scale, shape).decode(), torch.zeros(2, 4))
        with pytest.raises(ValueError, match=r"^weight_packed: "):
            code_from_tensors(data[:1], scale, shape)
        for wrong in (
            scale * float("nan"),
            scale.int(),
            scale[0],
            scale.expand(1, 3, 1),
            scale[:0],
        ):
            with pytest.raises(ValueError, match=r"^weight_scale: "):
                code_from_tensors(data, wrong, shape)


@pytest.mark.parametrize("host", HOSTS)
def test_a_packed_layer_can_be_pickled(host: str) -> None:
    layer, x = trainable(host, config("ttq", "channel"))
    made = packed(layer, config("ttq", "channel"))
    for protocol in (0, pickle.HIGHEST_PROTOCOL):
        back = pickle.loads(pickle.dumps(made, protocol))
        assert type(back) is type(made) and torch.equal(back(x), made(x))
        back.load_state_dict(layer.state_dict())  # the hook came along
        make_plain(back)
        assert torch.equal(back(x), made(x))


class TestMeta:
    """Skeletons without memory."""

    @pytest.mark.parametrize(("method", "granularity"), MATRIX)
    @pytest.mark.parametrize("host", HOSTS)
    def test_shapes(self, host: str, method: str, granularity: str) -> None:
        ternary = config(method, granularity)
        real = HOSTS[host][0]()
        with torch.device("meta"):
            meta = HOSTS[host][0]()
        make_packed(meta, ternary)
        make_packed(real, ternary)
        ours = {n: (t.shape, t.dtype) for n, t in meta.state_dict().items()}
        assert ours == {n: (t.shape, t.dtype) for n, t in real.state_dict().items()}
        assert all(tensor.is_meta for tensor in meta.state_dict().values())

    @pytest.mark.parametrize("source", ["float", "trainable", "packed"])
    @pytest.mark.parametrize("form", ["trainable", "packed"])
    def test_any_file_fills_it(self, form: str, source: str) -> None:
        layer, x = trainable("conv2d", config("ttq"))
        if source == "float":
            make_plain(layer)
        given = packed(layer, config("ttq")) if source == "packed" else layer
        with torch.device("meta"):
            meta = HOSTS["conv2d"][0]()
        (make_packed if form == "packed" else make_trainable)(meta, config("ttq"))
        meta.load_state_dict(given.state_dict(), assign=True)
        if source == "float":
            make_trainable(given, config("ttq"))
        assert torch.equal(meta(x), given(x))

    def test_whole_model_fits_the_file(self) -> None:
        for packed_ in (False, "2bit"):
            with torch.device("meta"):
                meta = timm.create_model("test_resnet_tern", packed=packed_)
            real = timm.create_model("test_resnet_tern", packed=packed_)
            ours = {n: (t.shape, t.dtype) for n, t in meta.state_dict().items()}
            assert ours == {n: (t.shape, t.dtype) for n, t in real.state_dict().items()}
            meta.load_state_dict(real.state_dict(), assign=True)
            x = torch.randn(1, 3, 32, 32)
            assert torch.equal(meta.eval()(x), real.eval()(x))
