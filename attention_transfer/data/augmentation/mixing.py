"""Mixup and CutMix: a view shows a second image, too, and has the labels of both.

Zhang et al., "mixup: Beyond Empirical Risk Minimization" (ICLR 2018); Yun et al., "CutMix" (ICCV 2019). The other
image, the ratio and the box are functions of (seed, view, index), and the other image is seen in a view of its own: the
pixels depend on nothing that is in the same batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from attention_transfer.data.augmentation.numbers import MIXING

PixelBox = tuple[int, int, int, int]
"""Top, left, bottom and right, in pixels."""


class Mix(NamedTuple):
    """How a view is mixed with another.

    Attributes:
        partner: position of the other image in the data set.
        ratio: share of the view's own image, in [0, 1].
        box: the part that shows the other image; None: both are blended.
    """

    partner: int
    ratio: float
    box: PixelBox | None = None


def draw_mix(
    alphas: tuple[float, float], seed: int, view: int, index: int, partners: range, size: tuple[int, int]
) -> Mix:
    """The mix of one view of one image, a pure function of the arguments.

    Args:
        alphas: of mixup and CutMix: ratios are drawn from Beta(alpha, alpha); 0 is off, of two each has half of the
            images.
        seed: of the views.
        view: number of the view.
        index: position of the image in the data set.
        partners: the positions among which the other image is drawn; it is another one where there are two.
        size: (H, W) of a view in pixels.
    """
    generator = np.random.default_rng(np.random.SeedSequence((seed, view, index), spawn_key=(MIXING,)))
    which, step, y, x = generator.random(4)
    mixup, cutmix = alphas
    others = max(1, len(partners) - 1)
    partner = partners[(index - partners.start + 1 + int(step * others)) % len(partners)]
    is_cut = cutmix > 0 and (mixup == 0 or which < 0.5)
    alpha = cutmix if is_cut else mixup
    ratio = float(generator.beta(alpha, alpha))
    if not is_cut:
        return Mix(partner, ratio)
    box = _box(ratio, float(y), float(x), size)
    top, left, bottom, right = box
    return Mix(partner, 1 - (bottom - top) * (right - left) / (size[0] * size[1]), box)


def _box(ratio: float, y: float, x: float, size: tuple[int, int]) -> PixelBox:
    """CutMix's box: of the area 1 - ratio where it lies inside, centred anywhere, and cut at the edges."""
    (height, width), share = size, (1 - ratio) ** 0.5
    rows, columns = int(height * share), int(width * share)
    top, left = int(y * height) - rows // 2, int(x * width) - columns // 2
    return max(0, top), max(0, left), min(height, top + rows), min(width, left + columns)


def mixed(images: Tensor, partners: Tensor, mixes: Sequence[Mix]) -> Tensor:
    """Normalised images [B, 3, H, W] mixed with the views [B, 3, H, W] of their partners, as [B, 3, H, W]."""
    result = torch.empty_like(images)
    for one, image, partner, mix in zip(result, images, partners, mixes, strict=True):
        if mix.box is None:
            torch.lerp(partner, image, mix.ratio, out=one)
        else:
            top, left, bottom, right = mix.box
            one.copy_(image)[:, top:bottom, left:right] = partner[:, top:bottom, left:right]
    return result


def mixed_shown(shown: Tensor, partners: Tensor, mixes: Sequence[Mix]) -> Tensor:
    """Where mixed images show something of one image or the other: bool [B, H, W], from those of both."""
    result = shown.clone()
    for one, partner, mix in zip(result, partners, mixes, strict=True):
        if mix.box is None:
            one.logical_or_(partner)
        else:
            top, left, bottom, right = mix.box
            one[top:bottom, left:right] = partner[top:bottom, left:right]
    return result
