"""What every registered method promises, whatever it is."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from timm_ternary import TernaryConfig, quantizers
from timm_ternary.quantizers import Quantizer, registry

SHAPES = {
    "linear": (8, 20),
    "conv": (6, 4, 3, 3),
    "depthwise": (7, 1, 3, 3),
    "1x1": (5, 9, 1, 1),
    "one": (1, 1),
    "depthwise_1x1": (4, 1, 1, 1),
    "conv1d": (5, 4, 3),
    "conv3d": (3, 2, 2, 2, 2),
}
METHODS = quantizers.names()
TWO_BASES = "tga of two bases"
CASES = {name: (name, {}) for name in METHODS} | {TWO_BASES: ("tga", {"init_factor": [0.05, 0.2]})}
OPTIONS = {
    "ttq": [{}, {"sparsity": 0.5}],
    "tga": [{}, {"init_factor": 0.5}, {"init_factor": [0.1]}, {"init_factor": [0.4, 0.1, 0.1]}],
    "rel": [{"expansions": k} for k in (1, 2, 3, 4)],
    "abcnet": [{"bases": k} for k in (1, 2, 3, 5)],
}
every_method = pytest.mark.parametrize("method", CASES)
every_granularity = pytest.mark.parametrize("granularity", ["layer", "channel"])
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def draw(shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (0.2 * torch.randn(shape, generator=generator) + 0.01).to(dtype)


def make(method, weight, granularity="layer", **options):
    """In evaluation mode: some methods train on other weights than their ternary ones."""
    name, own = CASES[method]
    config = TernaryConfig(name, granularity, options=own | options)
    return quantizers.create(config, weight).eval()


def moved(quantizer, seed=1):
    """`quantizer` with parameters as after some training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in quantizer.parameters():
            parameter.mul_(0.5 + torch.rand(parameter.shape, generator=generator))
    return quantizer


def assert_restored(quantizer, code):
    """`restore` keeps what the method promises."""
    restored = quantizer.restore(code)
    got = quantizer.encode(restored)
    if quantizer.restore_tolerance == 0:
        assert_same_code(got, code)
    elif quantizer.restore_tolerance < 1:
        assert torch.equal(got.codes, code.codes)
        torch.testing.assert_close(got.pos, code.pos, rtol=quantizer.restore_tolerance, atol=0)
        torch.testing.assert_close(got.neg, code.neg, rtol=quantizer.restore_tolerance, atol=0)
    else:
        assert restored.shape == code.shape and torch.isfinite(got.decode()).all()


def assert_same_code(got, expected):
    assert torch.equal(got.codes, expected.codes)
    assert torch.equal(got.pos, expected.pos)
    assert torch.equal(got.neg, expected.neg)


@every_shape
@every_granularity
@every_method
def test_forward_equals_the_decoded_codes_bit_for_bit(method, granularity, shape):
    weight = draw(shape)
    quantizer = moved(make(method, weight, granularity))
    code = quantizer.encode(weight)
    quantized = quantizer(weight)
    assert torch.equal(quantized, code.decode())
    assert quantized.shape == weight.shape and quantized.dtype == weight.dtype
    assert code.codes.unique().tolist() in ([-1], [0], [1], [-1, 0], [-1, 1], [0, 1], [-1, 0, 1])
    assert code.bases == quantizer.bases
    groups = quantized.view(quantizer.groups, -1)
    assert max(len(group.unique()) for group in groups) <= 3**quantizer.bases
    assert tuple(code.pos.shape) == (quantizer.bases, quantizer.groups)
    assert quantizer.scale_rows == 2 or torch.equal(code.pos, code.neg)


@every_granularity
@every_method
def test_arguments_are_not_modified(method, granularity):
    weight = draw((6, 4, 3, 3))
    original = weight.clone()
    quantizer = make(method, weight, granularity)
    before = copy.deepcopy(quantizer.state_dict())
    quantizer(weight)
    code = quantizer.encode(weight)
    assert torch.equal(weight, original)
    assert all(torch.equal(value, before[key]) for key, value in quantizer.state_dict().items())
    saved = copy.deepcopy(code)
    restored = quantizer.restore(code)
    restored.add_(1)
    with torch.no_grad():
        for parameter in quantizer.parameters():
            parameter.add_(1)
    assert_same_code(code, saved)


@pytest.mark.parametrize("training", [True, False])
@every_granularity
@every_method
def test_parameters_have_one_entry_a_group_and_all_get_a_gradient(method, granularity, training):
    weight = draw((6, 4, 3, 3)).requires_grad_()
    quantizer = make(method, weight, granularity).train(training)
    (quantizer(weight) * draw((6, 4, 3, 3), seed=1)).sum().backward()
    assert torch.isfinite(weight.grad).all() and torch.count_nonzero(weight.grad) > 0
    for parameter in quantizer.parameters():
        assert parameter.shape == (quantizer.bases * quantizer.groups,)
        assert torch.isfinite(parameter.grad).all() and torch.count_nonzero(parameter.grad) > 0


@every_shape
@every_granularity
@every_method
def test_a_restored_weight_has_the_same_code(method, granularity, shape):
    weight = draw(shape)
    for options in OPTIONS.get(method, [{}]):
        code = moved(make(method, weight, granularity, **options)).encode(weight)
        fresh = make(method, torch.zeros(shape), granularity, **options)
        assert_restored(fresh, code)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_weight_survives_encode_and_restore(data):
    method = data.draw(st.sampled_from(list(CASES)))
    granularity = data.draw(st.sampled_from(["layer", "channel"]))
    options = data.draw(st.sampled_from(OPTIONS.get(method, [{}])))
    shape = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 12)))
    kind = data.draw(st.sampled_from(["normal", "uniform", "integers", "sparse", "constant"]))
    shift = data.draw(st.sampled_from([0.0, 0.3, -1.0, 3.0, -5.0, 100.0]))
    scale = data.draw(st.sampled_from([1.0, 1e-4, 1e3]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    weight = {
        "normal": lambda: torch.randn(shape, generator=generator) + shift,
        "uniform": lambda: torch.rand(shape, generator=generator) + shift,
        "integers": lambda: torch.randint(-2, 3, shape, generator=generator).float(),
        "sparse": lambda: torch.randn(shape, generator=generator).clamp(min=1) - 1,
        "constant": lambda: torch.full(shape, shift),
    }[kind]() * scale
    quantizer = make(method, weight, granularity, **options)
    code = quantizer.encode(weight)
    assert torch.isfinite(code.decode()).all()
    assert torch.equal(quantizer(weight), code.decode())
    fresh = make(method, torch.zeros(shape), granularity, **options)
    assert_restored(fresh, code)


@pytest.mark.parametrize("restored_into", ["layer", "channel"])
@every_method
def test_a_foreign_code_restores_to_finite_parameters(method, restored_into):
    weight = draw((6, 20))
    for other in CASES:
        code = make(other, weight, "channel").encode(weight)
        quantizer = make(method, torch.zeros(6, 20), restored_into)
        restored = quantizer.restore(code)
        assert restored.shape == weight.shape
        assert torch.isfinite(quantizer(restored)).all()


@every_shape
@every_granularity
@every_method
def test_codes_are_steps_at_the_thresholds(method, granularity, shape):
    for options in OPTIONS.get(method, [{}]):
        for weight in (draw(shape), draw(shape).round(decimals=1), torch.zeros(shape)):
            quantizer = moved(make(method, weight, granularity, **options))
            rows = quantizer.rows(weight)
            for found in quantizer.quantize_bases(rows):
                assert (found.thresholds is not None) == quantizer.has_thresholds
                if found.thresholds is None:
                    continue
                high, low = found.thresholds
                assert high.shape == low.shape == (quantizer.groups, 1) and (high >= low).all()
                assert torch.equal(found.codes, (rows > high).float() - (rows < low).float())


@every_granularity
@every_method
def test_soft_in_training_and_hard_otherwise(method, granularity):
    weight = draw((6, 40)).requires_grad_()
    quantizer = make(method, weight, granularity).train()
    if not quantizer.has_thresholds:
        with pytest.raises(ValueError, match=f"method {method!r} has no thresholds to soften"):
            quantizer.soften(5.0)
        return
    code, hard = quantizer.encode(weight), quantizer(weight)
    quantizer.soften(5.0)
    soft = quantizer(weight)
    assert (soft - hard).abs().max() > 0.01
    (soft * draw((6, 40), seed=1)).sum().backward()
    for tensor in (weight, *quantizer.parameters()):
        assert torch.isfinite(tensor.grad).all() and torch.count_nonzero(tensor.grad) > 0
    assert_same_code(quantizer.encode(weight), code)
    assert torch.equal(quantizer.eval()(weight), code.decode())
    quantizer.train().soften(None)
    assert torch.equal(quantizer(weight), hard)


@every_method
def test_deepcopy_is_independent(method):
    weight = draw((6, 20))
    quantizer = moved(make(method, weight))
    expected = quantizer(weight).detach().clone()
    twin = copy.deepcopy(quantizer)
    assert torch.equal(twin(weight), expected)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    assert torch.equal(quantizer(weight), expected)


@every_granularity
@every_method
def test_state_dict_round_trip(method, granularity):
    weight = draw((6, 20))
    quantizer = moved(make(method, weight, granularity))
    other = make(method, torch.zeros(6, 20), granularity)
    other.load_state_dict(quantizer.state_dict())
    assert torch.equal(other(weight), quantizer(weight))


@every_method
def test_the_hooks_of_training_keep_what_they_promise(method):
    weight = draw((6, 4, 3, 3)).requires_grad_()
    quantizer = make(method, weight).train()
    before, latent = quantizer.encode(weight), weight.detach().clone()
    penalty = quantizer.penalty(weight)
    if penalty is not None:
        assert penalty.shape == () and penalty >= 0
        penalty.backward()
        assert torch.isfinite(weight.grad).all() and torch.count_nonzero(weight.grad) > 0
    assert_same_code(quantizer.encode(weight), before)
    quantizer.refresh(weight)
    assert torch.equal(weight, latent) and torch.isfinite(quantizer(weight)).all()


@every_granularity
@every_method
def test_autocast_changes_nothing(method, granularity):
    results = []
    for enabled in (False, True):
        weight = draw((6, 20)).requires_grad_()
        quantizer = make(method, weight, granularity)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            quantized = quantizer(weight)
        (quantized * draw((6, 20), seed=1)).sum().backward()
        assert quantized.dtype == torch.float32
        results.append([quantized, weight.grad, *(p.grad for p in quantizer.parameters())])
    for plain, cast in zip(*results, strict=True):
        assert torch.equal(plain, cast)


@every_method
def test_double_weights_stay_double(method):
    weight = draw((6, 20), dtype=torch.float64)
    quantizer = make(method, weight)
    assert all(p.dtype == torch.float64 for p in quantizer.parameters())
    code = quantizer.encode(weight)
    assert quantizer(weight).dtype == code.pos.dtype == torch.float64
    assert torch.equal(quantizer(weight), code.decode())
    single = make(method, weight.float()).encode(weight.float())
    assert torch.equal(single.codes, code.codes)
    torch.testing.assert_close(single.pos.double(), code.pos, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_granularity
@every_method
def test_half_weights_are_quantized_in_float32(method, granularity, dtype):
    weight = draw((6, 40), dtype=dtype)
    quantizer = make(method, weight, granularity)
    single = make(method, weight.float(), granularity)
    assert all(p.dtype == torch.float32 for p in quantizer.parameters())
    assert_same_code(quantizer.encode(weight), single.encode(weight.float()))
    assert torch.equal(quantizer(weight), single(weight.float()).to(dtype))


@pytest.mark.parametrize("training", [True, False])
@every_method
def test_compiles_without_a_graph_break(method, training):
    results = []
    for compiled in (False, True):
        torch._dynamo.reset()
        weight = draw((6, 20)).requires_grad_()
        quantizer = make(method, weight, "channel").train(training)
        run = (
            torch.compile(quantizer, fullgraph=True, backend="aot_eager") if compiled else quantizer
        )
        quantized = run(weight)
        (quantized * draw((6, 20), seed=1)).sum().backward()
        results.append([quantized, weight.grad, *(p.grad for p in quantizer.parameters())])
    for eager, graph in zip(*results, strict=True):
        assert torch.equal(eager, graph)


@every_method
def test_repr_names_the_method_and_its_options(method):
    quantizer = make(method, draw((6, 20)), "channel")
    shown = repr(quantizer)
    assert quantizer.name in shown and "granularity='channel'" in shown
    for option in registry.option_defaults(type(quantizer)):
        assert f"{option}=" in shown


@every_method
def test_a_weight_must_be_floating_point_with_channels(method):
    cls = quantizers.get(CASES[method][0])
    with pytest.raises(ValueError, match=r"floating point of shape .*got torch.int64"):
        cls(torch.ones(2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"got torch.float32 of shape \(\)"):
        cls(torch.tensor(1.0))
    with pytest.raises(ValueError, match="'chanel'; did you mean 'channel'"):
        cls(torch.ones(2, 2), granularity="chanel")


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(ValueError, match="unknown method 'tgaa'; did you mean 'tga'"):
        quantizers.get("tgaa")
    config = TernaryConfig("tga", options={"init_facto": 0.1})
    with pytest.raises(ValueError, match=r"option of method 'tga' 'init_facto'.*'init_factor'"):
        quantizers.check(config)
    for reserved in ("weight", "granularity", "self"):
        with pytest.raises(ValueError, match=f"option of method 'twn' '{reserved}'"):
            quantizers.check(TernaryConfig("twn", options={reserved: 1}))


def test_check_finds_values_out_of_range():
    with pytest.raises(ValueError, match=r"sparsity must be .*got 2"):
        quantizers.check(TernaryConfig("ttq", options={"sparsity": 2}))
    quantizers.check(TernaryConfig("ttq", options={"sparsity": 0.2}))


def test_a_name_is_registered_once(monkeypatch):
    monkeypatch.setattr(registry, "_methods", dict(registry._methods))

    class Mine(Quantizer):
        name = "mine"

    assert quantizers.register(Mine) is Mine
    assert quantizers.get("mine") is Mine and "mine" in quantizers.names()
    with pytest.raises(ValueError, match=r"'mine' is registered already, by .*Mine"):
        quantizers.register(Mine)
    with pytest.raises(ValueError, match=r"'tga' is registered already, by .*TGA"):
        quantizers.register(type("Other", (Quantizer,), {"name": "tga"}))


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("granularity", ["layer", "channel"])
@pytest.mark.parametrize("method", quantizers.names())
def test_compiled_it_gives_the_same(method, granularity, gradients):
    """With and without gradients, torch.compile calls an autograd function in different ways."""
    weight = torch.randn(6, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    quantizer = quantizers.get(method)(weight, granularity=granularity).eval()
    torch._dynamo.reset()
    compiled = torch.compile(quantizer, backend="eager", fullgraph=True)
    with torch.set_grad_enabled(gradients):
        assert torch.equal(compiled(weight), quantizer(weight))


LAYOUTS = {
    "channels_last": lambda w: w.to(memory_format=torch.channels_last),
    "transposed": lambda w: w.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    "strided": lambda w: w.repeat_interleave(2, 3)[..., ::2],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@every_granularity
@every_method
def test_a_weight_of_another_layout_is_the_same_weight(method, granularity, layout):
    weight = draw((6, 4, 3, 3))
    other = LAYOUTS[layout](weight)
    assert torch.equal(other, weight) and not other.is_contiguous()
    code = make(method, weight, granularity).encode(weight)
    quantizer = make(method, other, granularity)
    assert_same_code(quantizer.encode(other), code)
    assert torch.equal(quantizer(other), code.decode())
    quantizer.train()
    quantizer.refresh(other)
    penalty = quantizer.penalty(other)
    assert penalty is None or torch.isfinite(penalty)
    assert quantizer(other).shape == weight.shape
    # And one that was made for the other layout, as after `model.to(memory_format=...)`.
    assert_same_code(make(method, other, granularity).encode(weight), code)
    assert_same_code(make(method, weight, granularity).encode(other), code)


@pytest.mark.parametrize("power", [-110, -73, -60, 60, 63, 110])  # squares: beyond +-64
@every_granularity
@every_method
def test_the_unit_of_a_weight_is_of_no_matter(method, granularity, power):
    """A weight times a power of two has the same codes, and scales times that, to the last bit."""
    weight, unit = draw((6, 4, 3, 3)), 2.0**power
    reference = make(method, weight, granularity)
    code = reference.encode(weight)
    quantizer = make(method, weight * unit, granularity)
    got = quantizer.encode(weight * unit)
    assert torch.equal(got.codes, code.codes)
    torch.testing.assert_close(got.pos / unit, code.pos, rtol=1e-6, atol=0)
    torch.testing.assert_close(got.neg / unit, code.neg, rtol=1e-6, atol=0)
    latent = (weight * unit).requires_grad_()
    (quantizer.train()(latent) * draw(weight.shape, seed=1)).sum().backward()
    for tensor in (latent, *quantizer.parameters()):
        assert torch.isfinite(tensor.grad).all()
        # bwn's gradient is 0 beyond |w| = 1: a unit that its paper gives.
        assert torch.count_nonzero(tensor.grad) > 0 or (method == "bwn" and power > 0)
    if quantizer.has_thresholds:
        for softened in (quantizer, reference.train()):
            softened.soften(5.0)
        values = quantizer(weight * unit) / unit, reference(weight)
        torch.testing.assert_close(*values, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@every_granularity
@pytest.mark.parametrize("method", [*CASES, "sparse ttq"])
def test_a_weight_that_is_not_finite_shows(method, granularity, value):
    weight = draw((6, 4, 3, 3))
    bad = weight.clone()
    bad[2, 1, 0, 0] = value
    for start in (weight, bad):  # it came in training, or was there before
        if method == "sparse ttq":
            quantizer = make("ttq", start, granularity, sparsity=0.5)
        else:
            quantizer = make(method, start, granularity)
        assert not torch.isfinite(quantizer(bad)).all()
