"""TernaryCode: decoding against a formula in numpy, and what it refuses."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from timm_ternary import TernaryCode
from timm_ternary.code import fold_batch_norm

SHAPES = [(5, 7), (4, 3, 2, 2), (6, 2, 3), (5,), (1, 1)]


def make(bases=1, shape=(4, 3), scales=1, *, two_scales=False, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-1, 2, (bases, *shape), generator=generator, dtype=torch.int8)
    pos = torch.randn(bases, scales, generator=generator, dtype=dtype)
    neg = (
        torch.randn(bases, scales, generator=generator, dtype=dtype) if two_scales else pos.clone()
    )
    return TernaryCode(codes, pos, neg)


def numpy_decode(code):
    """w = sum_b pos_b [c = +1] - neg_b [c = -1], base by base in the scales' precision."""
    codes, pos, neg = code.codes.numpy(), code.pos.numpy(), code.neg.numpy()
    weight = np.zeros(codes.shape[1:], pos.dtype)
    for index in np.ndindex(*weight.shape):
        for base in range(codes.shape[0]):
            channel = index[0] if pos.shape[1] > 1 else 0
            value = codes[(base, *index)]
            if value == 1:
                weight[index] += pos[base, channel]
            elif value == -1:
                weight[index] -= neg[base, channel]
    return weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("two_scales", [False, True])
@pytest.mark.parametrize("granularity", ["layer", "channel"])
@pytest.mark.parametrize("bases", [1, 2, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_decode_is_the_formula(shape, bases, granularity, two_scales, dtype):
    scales = 1 if granularity == "layer" else shape[0]
    code = make(bases, shape, scales, two_scales=two_scales, dtype=dtype)
    weight = code.decode()
    assert weight.dtype == dtype
    np.testing.assert_array_equal(weight.numpy(), numpy_decode(code))
    assert (code.bases, tuple(code.shape)) == (bases, shape)
    assert code.granularity == (granularity if shape[0] > 1 else "layer")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_decode_in_another_dtype_rounds_the_scales_first(dtype):
    code = make(shape=(6, 5), scales=6, two_scales=True)
    rounded = TernaryCode(code.codes, code.pos.to(dtype), code.neg.to(dtype))
    assert code.decode(dtype).dtype == dtype
    assert torch.equal(code.decode(dtype), rounded.decode())


def test_zeros_counts_codes():
    codes = torch.tensor([[[0, 1, -1, 0], [0, 0, 1, 1]]], dtype=torch.int8)
    one = torch.ones(1, 1)
    assert TernaryCode(codes, one, one).zeros == 0.5
    assert TernaryCode(codes * 0, one, one).zeros == 1.0
    assert TernaryCode(codes[:, :, 1:3] * 0 + 1, one, one).zeros == 0.0


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_an_empty_weight_has_no_zeros_and_decodes(shape):
    code = TernaryCode(torch.zeros(1, *shape, dtype=torch.int8), torch.ones(1, 1), torch.ones(1, 1))
    assert code.zeros == 0.0
    assert code.decode().shape == shape


def test_to_moves_all_three_tensors():
    moved = make(2, (4, 3), 4).to("meta")
    assert {moved.codes.device.type, moved.pos.device.type, moved.neg.device.type} == {"meta"}
    assert (moved.codes.shape, moved.pos.shape) == ((2, 4, 3), (2, 4))


def test_it_is_frozen():
    code = make()
    with pytest.raises(dataclasses.FrozenInstanceError):
        code.pos = torch.zeros(1, 1)


CODES = torch.zeros(2, 4, 3, dtype=torch.int8)
SCALE = torch.ones(2, 4)


@pytest.mark.parametrize(
    ("codes", "pos", "neg", "message"),
    [
        (
            CODES.float(),
            SCALE,
            SCALE,
            r"codes must be int8.*got torch.float32 of shape \(2, 4, 3\)",
        ),
        (CODES[0, 0], SCALE, SCALE, r"codes must be int8 of shape \(bases, .*got .*shape \(3,\)"),
        (CODES, torch.ones(2, 3), SCALE, r"pos must be .*\(2, 1\) or \(2, 4\), got .*\(2, 3\)"),
        (CODES, SCALE, torch.ones(1, 4), r"neg must be .*\(2, 1\) or \(2, 4\), got .*\(1, 4\)"),
        (CODES, SCALE, SCALE.int(), "neg must be floating point.*got torch.int32"),
        (CODES, torch.ones(2), torch.ones(2), r"pos must be .*got .*\(2,\)"),
        (CODES, SCALE, torch.ones(2, 1), r"one shape, got \(2, 4\) and \(2, 1\)"),
    ],
)
def test_wrong_shapes_and_dtypes_raise(codes, pos, neg, message):
    with pytest.raises(ValueError, match=message):
        TernaryCode(codes, pos, neg)


def test_a_code_knows_its_rows_of_scales():
    one, two = make(), make(two_scales=True)
    assert two.scale_rows == one.scale_rows == 2  # equal by chance, but told apart
    shared = TernaryCode(one.codes, one.pos, one.pos)
    assert shared.scale_rows == shared.to("cpu").scale_rows == 1
    assert shared.scaled(torch.arange(1.0, 5)).scale_rows == 1
    assert TernaryCode(one.codes, one.pos, one.pos, 2).scale_rows == 2
    with pytest.raises(ValueError, match="scale_rows must be 1 or 2, got 3"):
        TernaryCode(one.codes, one.pos, one.pos, 3)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("bases", "scales", "two_scales"), [(1, 1, False), (2, 6, True)])
def test_a_folded_batch_norm_is_that_batch_norm(bases, scales, two_scales, with_bias):
    code = make(bases, (6, 3, 2, 2), scales, two_scales=two_scales, dtype=torch.float64)
    torch.manual_seed(1)
    gamma, beta, mean, bias = torch.randn(4, 6, dtype=torch.float64)
    var = torch.rand(6, dtype=torch.float64)
    images = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    before = F.conv2d(images, code.decode(), bias if with_bias else None)
    expected = F.batch_norm(before, mean, var, gamma, beta, eps=1e-3)
    own = {"bias": bias} if with_bias else {}
    folded, shift = fold_batch_norm(
        code, gamma=gamma, beta=beta, mean=mean, var=var, eps=1e-3, **own
    )
    assert torch.equal(folded.codes, code.codes) and folded.scale_rows == code.scale_rows
    torch.testing.assert_close(F.conv2d(images, folded.decode(), shift), expected)
