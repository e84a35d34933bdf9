"""S(threshold) and its derivative, of methods that train the threshold (He & Fan, Figure 3)."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..nn.convert import quantizers_of
from ..nn.trainable import latent_weight
from ..quantizers.scale_curve import ScaleCurve
from .drawing import evenly, grid

__all__ = ["MOST_LAYERS", "curves", "figure"]

MOST_LAYERS = 4


def curves(model: nn.Module) -> dict[str, ScaleCurve]:
    """The curve of each trainable layer that has one, by name; of its first group of weights."""
    found = {}
    for name, quantizer in quantizers_of(model).items():
        curve = quantizer.scale_curve(latent_weight(model.get_submodule(name)))
        if curve is not None:
            found[name] = curve
    return found


def figure(found: dict[str, ScaleCurve]) -> Any:
    """Draw up to `MOST_LAYERS` of `found`, in units of the latent weights; dots: the present."""
    chosen = evenly(list(found), MOST_LAYERS)
    drawing, axes = grid(len(chosen), 2, 1.8)
    for axis, name in zip(axes, chosen, strict=True):
        curve = found[name]
        points = curve.threshold.cpu().numpy()
        axis.plot(points, curve.scale.cpu(), color="tab:blue", linewidth=1.2, label="S")
        slope = axis.twinx()
        slope.plot(points, curve.slope.cpu(), color="tab:orange", linewidth=1, label="dS/dδ")
        slope.tick_params(labelsize=7, labelcolor="tab:orange")
        axis.tick_params(axis="y", labelcolor="tab:blue")
        axis.plot(curve.present.cpu(), curve.present_scale.cpu(), "o", color="black", markersize=4)
        for present in curve.present.tolist():
            axis.axvline(present, color="black", linestyle="--", linewidth=0.8)
        axis.set_title(f"{name}\nmean {curve.mean:.2g}, std {curve.std:.2g}", fontsize=8)
    drawing.supxlabel("threshold δ", fontsize=8)
    drawing.supylabel("S (blue), dS/dδ (orange)", fontsize=8)
    return drawing
