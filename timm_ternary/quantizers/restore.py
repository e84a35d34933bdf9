"""Ways back from a code to latent weights: what `Quantizer.restore` of each method does to rows.

Every function takes codes and scales of one weight and gives rows, ``(groups, n)``, that the
method quantizes to these codes and scales again. Nothing is trained here: no gradient passes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .functional import row_sum
from .gaussian import inverse_mills, row_moments, truncated_scale

__all__ = ["abcnet", "bitnet", "rel", "tga", "tga_sum"]

# Keeps restored weights clear of the thresholds, and covers the rounding of float32 scales.
_MARGIN = 2.0**-20
_NEWTON_STEPS = 8  # to the last bit for S up to its clip at 3 sigma


def tga(codes: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of three levels around mu (0 where S > 0), and the threshold that gives back S.

    The levels ``mu + plus``, ``mu + middle`` and ``mu - minus`` are balanced so that their
    mean is mu: the rarer sign lies farther out; where one sign is missing, the zeros lie
    off the mean instead.

    Args:
        codes: ``(groups, n)``, in the dtype of `scale`.
        scale: S, ``(groups, 1)``, of any sign.

    Returns:
        Rows, ``(groups, n)``, and thresholds >= 0, ``(groups, 1)``, in the dtype of the moments.
    """
    levels, size, threshold, flat = _levels(codes, scale)
    # Around an offset where S <= 0: no threshold gives that around 0.
    unit = truncated_scale(threshold, *row_moments(levels)[:2])[0].to(codes.dtype)
    offset = (scale - size * unit).masked_fill(scale > 0, 0)
    size = torch.where(scale > 0, scale / unit, size)
    rows = torch.where(flat, codes * scale, offset + size * levels)

    mean, std, _ = row_moments(rows)
    threshold = (size * threshold).to(mean.dtype)
    for _ in range(2):  # Newton's method on S = scale: smooth, and close already.
        ratio = inverse_mills(threshold / std)
        slope = ratio * (ratio - threshold / std)
        threshold = threshold + (scale - mean - std * ratio) / slope
    # Rounding it moves S by less than half a unit in the last place: dS/dthreshold < 1, and
    # the threshold is smaller than S (or than |scale|, where S <= 0).
    return rows, threshold.clamp(min=0).masked_fill(flat, 0)


def _levels(codes: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Levels with mean 0, their unit, a threshold in that unit, and which groups are flat."""
    n_plus, n_minus = ((codes == sign).sum(1, keepdim=True).to(codes) for sign in (1, -1))
    n_zero = codes.shape[1] - n_plus - n_minus
    none = (n_zero == codes.shape[1]) & (target != 0)
    flat = torch.stack([n_plus, n_minus, n_zero]).amax(0) == codes.shape[1]
    flat = flat & ~(none & (codes.shape[1] > 1))

    both = (n_plus > 0) & (n_minus > 0)
    plus = torch.where(both, n_minus / n_plus.clamp(min=1), 1).clamp(min=1)
    minus = torch.where(both, n_plus / n_minus.clamp(min=1), 1).clamp(min=1)
    middle = (n_minus * minus - n_plus * plus) / n_zero.clamp(min=1)
    levels = torch.where(codes > 0, plus, torch.where(codes < 0, -minus, middle))
    std = (row_sum(levels.square()) / max(codes.shape[1] - 1, 1)).sqrt().to(codes.dtype)
    # Between the zeros and the rest, and clear of the clip at 3 sigma.
    threshold = torch.minimum((middle.abs() + 1) / 2, torch.maximum(2.5 * std, middle.abs()))
    # Nothing beyond the threshold: a spread of +-0.5 around mu, and a threshold of 0.75.
    spread = torch.full_like(codes[:1], 0.5)
    spread[:, 1::2] = -0.5
    spread[:, codes.shape[1] // 2 * 2 :] = 0
    levels, threshold = torch.where(none, spread, levels), torch.where(none, 0.75, threshold)
    size = torch.where(target == 0, 1.0, target.abs())
    return levels, size, threshold, flat


def tga_sum(rows: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """The decoded weight times c, and the thresholds that give back the scales around it.

    The larger S_k, the larger its threshold: with the scales in order, the levels of the
    decoded weight are ``v_k = S_1 + ... + S_k``. The k-th threshold lies between the levels
    ``c v_(k-1)`` and ``c v_k`` as long as c lies between ``S_k / (mu + sigma l(a))`` at the two
    (mu, sigma and a those of the decoded weight); c is amid what all bases allow. Where they
    allow nothing, the thresholds stay between the levels: the codes return, not the scales.

    Args:
        rows: The decoded weight, ``(groups, n)``.
        scales: ``(bases, groups, 1)``, float64.

    Returns:
        Rows, ``(groups, n)``, and thresholds, ``(bases, groups, 1)``, float64.
    """
    ordered, order = scales.sort(0)
    upper = ordered.cumsum(0).gather(0, order.argsort(0))
    mean, std, flat = row_moments(rows)
    bounds = torch.stack([upper - scales + mean.abs(), upper - mean.abs()])
    alphas = (bounds / std).clamp(0, 3)
    most, least = scales / (mean + std * inverse_mills(alphas))
    factor = (most.amin(0) + least.amax(0)) / 2
    usable = ~flat & torch.isfinite(factor) & (factor > 0)
    factor = torch.where(usable, factor, torch.ones_like(factor))
    rows = (factor * rows).to(rows.dtype)

    mean, std, _ = row_moments(rows)
    ratio = (scales - mean) / std
    alpha = ratio.clamp(min=0)
    for _ in range(_NEWTON_STEPS):  # from above, where a convex function converges
        value = inverse_mills(alpha)
        alpha = (alpha - (value - ratio) / (value * (value - alpha))).clamp(min=0)
    gap = (1 - _MARGIN) * factor * bounds[1], (1 + _MARGIN) * factor * bounds[0]
    threshold = torch.maximum(torch.minimum(std * alpha, gap[0]), gap[1])
    return rows, threshold.masked_fill(~usable, 0)


def bitnet(codes: Tensor, scale: Tensor) -> Tensor:
    """One magnitude wherever the code is not 0, larger than S, so that the mean is S.

    The magnitude ``S n / nonzeros`` has rounding errors that add up; the first nonzero weight
    takes them, or the zeros where it is alone.

    Args:
        codes: ``(groups, n)``, in the dtype of `scale`.
        scale: S, ``(groups, 1)``.

    Returns:
        Rows, ``(groups, n)``.
    """
    target = row_sum(scale) * codes.shape[1]
    count = row_sum(codes.abs())
    size = (target / count.clamp(min=1)).to(codes.dtype)
    above = size.abs() * count > target.abs()
    size = torch.where(above, torch.nextafter(size, torch.zeros_like(size)), size)
    rest = target - size * count
    alone = count == 1
    small = torch.where(alone, rest / (codes.shape[1] - count).clamp(min=1), 0)
    rows = torch.where(codes == 0, small.to(codes.dtype), size).broadcast_to(codes.shape).clone()
    first = codes.abs().argmax(1, keepdim=True)
    added = torch.where(alone, 0, rest).to(codes.dtype)
    rows.scatter_add_(1, first, added.masked_fill(count == 0, 0))
    return torch.where(codes < 0, -rows, rows)


def rel(signs: Tensor, depth: Tensor, scales: Sequence[Tensor], factors: Sequence[float]) -> Tensor:
    """One magnitude a level: the weights between two thresholds, and those beyond the last.

    With N_k weights beyond D_k, those between D_k and D_(k+1) sum up to
    ``N_k S_k - N_(k+1) S_(k+1)``. The largest weight sets the thresholds: it lies where they
    separate all levels. The scales come back to the last bit, but where a level holds so few
    of the weights that its sum is lost in the rounding of S_k: there to 1e-6.

    Args:
        signs: Of the weights, ``(groups, n)``: codes of the first term.
        depth: Number of terms whose threshold a weight exceeds, ``(groups, n)``.
        scales: S_k, each ``(groups, 1)``, float64, >= 0.
        factors: f_k, with ``D_k = f_k * max|w|``.

    Returns:
        Rows, ``(groups, n)``, in the dtype of `signs`.
    """
    bases = len(scales)
    masks = [depth == k for k in range(1, bases + 1)]
    counts = [row_sum(mask) for mask in masks]
    largest = _largest(counts, scales, factors)

    rows = torch.zeros_like(signs)
    total = torch.zeros_like(largest)
    for k in reversed(range(bases)):
        beyond = sum(counts[k:], torch.zeros_like(largest))
        low = factors[k] * largest * (1 + _MARGIN)
        free = masks[k].to(rows.dtype)
        target = beyond * scales[k] - total
        if k == bases - 1:
            # The largest itself stands apart.
            first = free.argmax(1, keepdim=True)
            top = torch.where(counts[k] > 1, largest, scales[k]).to(rows.dtype)
            top = top * free.gather(1, first)
            free = free.scatter(1, first, 0)
            rows = rows.scatter_add(1, first, top)
            total = total + top
            target, high = target - top, largest
        else:
            high = factors[k + 1] * largest * (1 - _MARGIN)
        rows = rows + _fill(free, target, low, high)
        total = row_sum(rows)
    return rows * signs


def _largest(
    counts: Sequence[Tensor], scales: Sequence[Tensor], factors: Sequence[float]
) -> Tensor:
    """A maximum whose thresholds separate the levels, ``(groups, 1)``, all in float64.

    Between bounds from every level's mean, each wider by what the rounding of S_k leaves open.
    """
    count, scale = counts[-1], scales[-1]
    low = scale
    others = (count - 1).clamp(min=0)
    high = torch.where(count > 1, count * scale / (1 + others * factors[len(counts) - 1]), scale)
    beyond, above = count, count * scale
    for k in reversed(range(len(counts) - 1)):
        beyond = beyond + counts[k]
        sums = beyond * scales[k]
        mean = (sums - above) / counts[k].clamp(min=1)
        slack = 2.0**-24 * (sums + above) / counts[k].clamp(min=1)
        some = counts[k] > 0
        low = torch.where(some, torch.maximum(low, (mean - slack) / factors[k + 1]), low)
        high = torch.where(some, torch.minimum(high, (mean + slack) / factors[k]), high)
        above = sums
    return torch.where(count > 1, (low + high) / 2, scale)


def _fill(free: Tensor, target: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Equal values from low to high where `free` is 1, whose sum is `target` as nearly as can be.

    The first one takes the rounding errors of the others.
    """
    count = row_sum(free)
    value = torch.clamp(target / count.clamp(min=1), low, high).to(free.dtype)
    rest = torch.clamp(target - value * (count - 1), low, high).to(free.dtype)
    first = free.argmax(1, keepdim=True)
    return (value * free).scatter(1, first, torch.where(count > 0, rest, 0).to(free.dtype))


def abcnet(rows: Tensor, depth: Tensor, bases: int) -> Tensor:
    """The decoded weight, its two outermost levels moved until the mean is where it was.

    A level holds the weights between two neighbouring thresholds. What adds d / n_0 to the
    n_0 lowest weights and d / n_M to the n_M highest is orthogonal to every B_i: the least
    squares scales stay. d puts the mean amid the innermost levels, as the thresholds are.

    Args:
        rows: The decoded weight, ``(groups, n)``.
        depth: Number of binary tensors that are +1 there, ``(groups, n)``.
        bases: M > 1.

    Returns:
        Rows, ``(groups, n)``.
    """
    masks = {k: depth == k for k in (0, bases // 2, (bases + 1) // 2, bases)}
    counts = {k: row_sum(mask) for k, mask in masks.items()}
    inner = [row_sum(rows * masks[k]) / counts[k] for k in list(masks)[1:-1]]
    centre = sum(inner, torch.zeros_like(counts[0])) / len(inner)
    shift = (centre * rows.shape[1] - row_sum(rows)) / 2
    # Levels without a weight: the division gave no number.
    usable = torch.isfinite(shift) & (counts[0] > 0) & (counts[bases] > 0)
    for k in (0, bases):
        rows = rows + masks[k] * torch.where(usable, shift / counts[k], 0).to(rows.dtype)
    return rows
