"""What only a CUDA device shows: the same codes as on the CPU, and 16-bit training."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from trainer_models import (
    Images,
    arguments,
    losses,
    small_net,
)

from timm_ternary import packing, quantizers
from timm_ternary.config import TernaryConfig
from timm_ternary.nn.convert import pack_, quantizers_of
from timm_ternary.training.trainer import TernaryTrainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("method", quantizers.names())
def test_codes_are_those_of_the_cpu(method: str) -> None:
    torch.manual_seed(0)
    weight = torch.randn(16, 8, 3, 3)
    quantizer = quantizers.create(TernaryConfig.of(method), weight)
    here = quantizer.encode(weight)
    there = copy.deepcopy(quantizer).cuda().encode(weight.cuda())
    # A weight next to a threshold that is a mean may fall on either side.
    assert (here.codes == there.codes.cpu()).double().mean() > 0.999
    torch.testing.assert_close(there.pos.cpu(), here.pos, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(there.neg.cpu(), here.neg, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [1, 3, 4, 1001])
def test_packing_gives_the_same_bytes(count: int) -> None:
    codes = torch.randint(-1, 2, (2, count), dtype=torch.int8)
    packed = packing.pack_2bit(codes)
    there = packing.pack_2bit(codes.cuda())
    assert there.is_cuda and torch.equal(there.cpu(), packed)
    assert torch.equal(packing.unpack_2bit(there, count).cpu(), codes)


@pytest.mark.parametrize("method", ["tga", "ttq"])
def test_layers_give_the_same_logits(method: str) -> None:
    model = small_net(method).eval()
    images = Images(8).pixels
    with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
        here = model(images)
        there = copy.deepcopy(model).cuda()
        torch.testing.assert_close(there(images.cuda()).cpu(), here, rtol=1e-4, atol=1e-5)
        packed = pack_(there)
        torch.testing.assert_close(packed(images.cuda()).cpu(), here, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["tga", "ttq"])
@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_16_bit_training_follows_that_of_32(tmp_path: Path, method: str, kind: str) -> None:
    runs = []
    for options in ({}, {kind: True}):
        args = arguments(tmp_path, use_cpu=False, learning_rate=0.01, **options)
        args._n_gpu = min(args.n_gpu, 1)
        run = TernaryTrainer(small_net(method, dropout=0.0), args, train_dataset=Images())
        run.train()
        runs.append(run)
    full, half = runs
    assert (half.accelerator.scaler is not None) == (kind == "fp16")
    assert losses(half) == pytest.approx(losses(full), abs=0.1)
    assert losses(half) != losses(full)  # or it was not in 16 bits
    before = quantizers_of(small_net(method))
    for name, quantizer in quantizers_of(half.model).items():
        for value, old in zip(quantizer.parameters(), before[name].parameters(), strict=True):
            assert value.dtype == torch.float32 and torch.isfinite(value).all()
            assert not torch.equal(value.detach().cpu(), old)
