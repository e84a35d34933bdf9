"""Packed models in transformers: ``import timm_ternary.hf`` registers the quantization "ternary".

A packed directory states its quantization in config.json, and 2bit loads with or without this
module. With it transformers also knows what it loaded: the model says that it is quantized and
counts its ternary weights, every encoding loads, the file's digests are checked, Trainer refuses to
fine-tune, floats are one argument away, and ``save_pretrained`` writes a file that timm_ternary
checks as its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from . import packing, quantizers
from .checkpoint.config_json import CONFIG_NAME
from .checkpoint.directory import packed_parts
from .checkpoint.pair import CONFIG_DIGEST, check_pair, config_digest
from .checkpoint.rebuild import check_rebuilds
from .checkpoint.weights_file import (
    WEIGHTS_NAME,
    check_digests,
    is_packed_file,
    read_metadata,
)
from .compat.transformers import (
    is_loaded,
    keeping_renamings,
    mark_loaded,
    overridable_when_loading,
)
from .config import TernaryConfig
from .errors.wording import unknown
from .models import register_ternary
from .models.ternary import SKELETON_ENCODINGS
from .names import ternary_name
from .nn.convert import config_of, install_, is_packed, pack_, plain_, ternary_layers
from .nn.packed import PackedWeight
from .nn.state_dict import is_code_key
from .nn.timm_wrapper import QUANT_METHOD, describe, is_wrapper, quantization_dict, unwrap
from .packing.tensors import code_from_tensors

__all__ = ["TernaryHfQuantizer", "TernaryQuantizationConfig"]


@auto.register_quantization_config(QUANT_METHOD)
class TernaryQuantizationConfig(QuantizationConfigMixin):
    """What ``quantization_config`` of a packed directory's config.json holds.

    Pass one to ``from_pretrained``: of a packed directory, with ``dequantize=True``, for plain
    float layers; of a float timm model, to pack it as it is loaded.

    Args:
        method, granularity, exclude, options: As `TernaryConfig`. Of a packed directory, its own
            hold.
        encoding: In which ``save_pretrained`` writes: ``"2bit"``, ``"base3"`` or ``"zstd"``.
        dequantize: Give the decoded weights as float parameters.
        quant_method: ``"ternary"``, as config.json states it.
        **others: None; any other key is refused.

    Raises:
        ValueError: A key is unknown (names the nearest), or a value is not allowed.
    """

    def __init__(
        self,
        method: str = "tga",
        granularity: str | None = None,
        exclude: Sequence[str] = (),
        options: Mapping[str, Any] | None = None,
        encoding: str = "2bit",
        dequantize: bool = False,
        quant_method: str = QUANT_METHOD,
        **others: Any,
    ) -> None:
        allowed = [*quantization_dict(TernaryConfig(), "2bit"), "dequantize"]
        for key in others:
            raise ValueError(unknown("key of the ternary quantization_config", key, allowed))
        if quant_method != QUANT_METHOD:
            raise ValueError(unknown("quant_method", quant_method, [QUANT_METHOD]))
        self.quant_method = QUANT_METHOD
        self.ternary = TernaryConfig(method, granularity, tuple(exclude), options or {})
        quantizers.check(self.ternary)
        packing.check_encoding(encoding)
        self.encoding = encoding
        self.dequantize = dequantize

    def to_dict(self) -> dict[str, Any]:
        """As config.json holds it: without `dequantize`, which is asked for at each loading."""
        return quantization_dict(self.ternary, self.encoding)

    def get_loading_attributes(self) -> dict[str, Any]:
        """What an argument of ``from_pretrained`` overrides in a directory's configuration."""
        return {"dequantize": self.dequantize}


# Else transformers ignores `dequantize` where a directory has a configuration of its own.
overridable_when_loading(TernaryQuantizationConfig)
SKELETON_ENCODINGS.update(packing.ENCODINGS)


@auto.register_quantizer(QUANT_METHOD)
class TernaryHfQuantizer(HfQuantizer):
    """Loads and saves packed models for transformers' wrapper of timm's; called by transformers."""

    quantization_config: TernaryQuantizationConfig
    model: nn.Module
    dtype: torch.dtype

    def param_needs_quantization(self, model: nn.Module, param_name: str, **_: Any) -> bool:
        """Whether a tensor may come in another size than the layer's: `_decode` checks it."""
        return bool(self.pre_quantized) and is_code_key(param_name)

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        name = type(model).__name__
        if not is_wrapper(model):
            raise ValueError(
                f"{name} is no wrapper of a timm model: ternary quantization is for timm's models, "
                "others type timm_ternary.ternarize_(model)"
            )
        if not self.pre_quantized:
            return model
        stated = self.quantization_config.ternary
        held = config_of(model) if is_packed(model) else None
        if held is None:
            raise ValueError(
                "config.json states a ternary quantization_config, but its model_args lack "
                "'packed', without which timm builds no packed model; type timm-ternary pack"
            )
        files = [Path(f) for f in kwargs.get("checkpoint_files") or () if is_packed_file(f)]
        for file in files:
            check_pair(file, read_metadata(file), file.with_name(CONFIG_NAME))
        # Shards are checked together: each states the digests of all.
        whole = [files[0].with_name(WEIGHTS_NAME)] if len(files) > 1 else files
        for config in [held, *map(check_digests, whole)]:
            if config != stated:
                raise ValueError(
                    f"quantization_config says {stated.to_dict()}, but model_args or the "
                    f"weights file {config.to_dict()}"
                )
        layer: Any
        for layer in ternary_layers(model).values():
            # Else transformers asks for the weight, to initialize it, before the codes are decoded.
            mark_loaded(layer)
        self.dtype = model.dtype
        return model

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        self.model = model
        if self.pre_quantized:
            for name, layer in ternary_layers(model).items():
                _decode(name, layer)
            # transformers 5.17 leaves the tensors of a quantized model in the file's dtype.
            model.to(self.dtype)
        else:
            _register(model.config.architecture)
            config = self.quantization_config.ternary
            self._describe(install_(model, config, packed=True), config)
        if self.pre_quantized and self.quantization_config.dequantize:
            return self._dequantize(model)
        model.num_parameters = partial(_num_parameters, model)
        return model

    def _dequantize(self, model: Any, dtype: Any = None) -> Any:
        plain_(pack_(model))
        vars(model).pop("num_parameters", None)
        return model if dtype is None else model.to(dtype)

    def _describe(self, model: Any, config: TernaryConfig) -> None:
        self.quantization_config.ternary = config
        describe(model, config, self.quantization_config.encoding)
        model.config.quantization_config = self.quantization_config

    def remove_quantization_config(self, model: Any) -> None:
        """As transformers'; how the names in the file differ from the model's stays known."""
        with keeping_renamings(model):
            super().remove_quantization_config(model)

    def get_state_dict_and_metadata(
        self, model: Any
    ) -> tuple[dict[str, Tensor] | None, dict[str, str]]:
        """What ``save_pretrained`` writes: the very tensors and metadata of ``save_packed``."""
        if not is_packed(model):  # made trainable since
            return None, {}
        encoding = self.quantization_config.encoding
        parts = packed_parts(unwrap(model), encoding)
        self._describe(model, parts.config)
        said = json.loads(model.config.to_json_string())  # what is about to be written
        said = check_rebuilds(said, unwrap(model), parts.dense(), parts.config)
        model.config.model_args = said.get("model_args")
        # transformers takes the prefix off again.
        prefix = f"{model.base_model_prefix}."
        tensors = {prefix + name: tensor for name, tensor in parts.tensors.items()}
        return tensors, {**parts.metadata, CONFIG_DIGEST: config_digest(said)}

    def is_serializable(self) -> bool:
        """Whether ``save_pretrained`` works: yes."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether the model trains: only Trainer asks, and gets a line of what to type.

        Raises:
            ValueError: The model is packed.
        """
        if is_packed(self.model):
            raise ValueError(
                "a packed model cannot be trained: type timm_ternary.unpack_(model), or "
                "model.dequantize() for plain float layers"
            )
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Whether training is aware of the quantization: in the trainable form, yes."""
        return self.is_trainable


def _register(base: str) -> None:
    """Make sure that timm builds the ternary twin, of a model registered lately too."""
    if timm.is_model(base) and not timm.is_model(ternary_name(base)):
        register_ternary(base)


def _decode(name: str, layer: Any) -> None:
    """Bring the codes that a packed layer was given, in any encoding, into 2bit; all checked."""
    held = {**layer._parameters, **layer._buffers}
    for key, tensor in held.items():
        # transformers would go on with random values.
        if tensor is not None and not is_loaded(tensor):
            raise ValueError(
                f"tensor {name}.{key} is missing in the file, or has another shape; for other "
                "classes type: timm.create_model(..., pretrained=True, num_classes=N)"
            )
    try:
        code = code_from_tensors(layer.weight_packed, layer.weight_scale, layer.weight_shape)
    except ValueError as error:
        raise ValueError(f"tensor {name}.{error}") from None
    layer.weight_packed = packing.pack_2bit(code.codes.flatten(1)).flatten()


def _num_parameters(
    model: Any, only_trainable: bool = False, exclude_embeddings: bool = False
) -> int:
    """``model.num_parameters`` with the ternary weights, which are no parameters but count."""
    count: int = type(model).num_parameters(model, only_trainable, exclude_embeddings)
    layers = [m for m in model.modules() if isinstance(m, PackedWeight)]
    return count + (0 if only_trainable else sum(m.weight_shape.numel() for m in layers))
