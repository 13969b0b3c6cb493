"""Do attention maps follow the image? Checks with a bright patch and with a shift."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attention_transfer.errors import AttentionTransferError
from attention_transfer.features.maps import energy
from attention_transfer.features.stages.choose import Stages
from attention_transfer.features.stages.stage import Stage
from attention_transfer.features.taps import Taps
from attention_transfer.modules import undisturbed

LEAST_CORRELATION = 0.95
LEAST_SIDE = 10
"""Of a map with an interior that the edges of the image hardly reach."""
MIXERS = ("attention", "attn", "mixer", "lstm", "gatingunit", "squeeze", "sequential_se", "ssd")
"""Parts of the names, in small letters, of modules that mix positions in ways in which a convolution does not."""


def tapped(network: nn.Module, stages: Sequence[Stage], images: Tensor) -> list[Tensor]:
    """The features [B, C, H, W] of each stage for images [B, 3, H, W], in eval mode.

    Args:
        network: left unchanged.
        stages: of the network.
        images: on its device.
    """
    with undisturbed(network), Taps(network, stages) as taps:
        network(images)
    return list(taps.features)


Problems = Iterator[tuple[int, str]]
"""The number of a stage, and a sentence."""


def blind_quarters(network: nn.Module, stages: Stages, images: Tensor) -> Problems:
    """Stages whose map changes most in another quarter than that in which a bright patch is put.

    Args:
        network: any.
        stages: that were chosen; those smaller than 2x2 have no quarters.
        images: [B, 3, H, W].
    """
    for i, shares in _shares_of_quarters(network, stages, images):
        for quarter in range(4):
            if int(shares[quarter].argmax()) != quarter:
                words = ", ".join(f"{share:.2f}" for share in shares[quarter].tolist())
                yield i, f"{stages.stages[i].label} changes most elsewhere than in quarter {quarter} ({words})"


def indistinct_quarters(network: nn.Module, stages: Stages, images: Tensor) -> Problems:
    """Stages of which some quarter changes more with a bright patch elsewhere than with one in it.

    This is what can be asked of a network that mixes all positions: its maps change everywhere.

    Args:
        network: any.
        stages: that were chosen; those smaller than 2x2 have no quarters.
        images: [B, 3, H, W].
    """
    for i, shares in _shares_of_quarters(network, stages, images):
        for quarter in range(4):
            if int(shares[:, quarter].argmax()) != quarter:
                yield i, f"{stages.stages[i].label} changes in quarter {quarter} most with a patch elsewhere"


def _shares_of_quarters(network: nn.Module, stages: Stages, images: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The shares [4, 4] of the change of a stage's map: of a patch in each quarter, in each quarter."""
    height, width = images.shape[2:]
    plain = [energy(x) for x in tapped(network, stages.stages, images)]
    shares: list[list[Tensor]] = [[] for _ in plain]
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        patched = images.clone()
        top, left = height // 8 + down * height // 2, width // 8 + right * width // 2
        patched[:, :, top : top + height // 4, left : left + width // 4] = 3.0
        for of_stage, before, x in zip(shares, plain, tapped(network, stages.stages, patched), strict=True):
            change = (energy(x) - before).abs().mean(dim=0, keepdim=True)
            quarters = F.adaptive_avg_pool2d(change.unsqueeze(1), 2).flatten()
            of_stage.append(quarters / quarters.sum())
    for i, (before, of_stage) in enumerate(zip(plain, shares, strict=True)):
        if min(before.shape[1:]) >= 2:
            yield i, torch.stack(of_stage)


def unmoved(network: nn.Module, stages: Stages, images: Tensor) -> Problems:
    """Stages whose map does not move by one cell when the image moves by one stride.

    Where it does not, as in a network that adds what its coarser branches see, it must move by as many cells as make
    one of the coarsest stage. Interior cells are compared, where neither padding nor what comes in at the edge reaches
    far.

    Args:
        network: any.
        stages: that were chosen; those smaller than 10x10 have too small an interior.
        images: [B, 3, H, W].
    """
    width = images.shape[3]
    plain = [energy(x) for x in tapped(network, stages.stages, images)]
    strides = [width // x.shape[2] for x in plain]
    for i, before in enumerate(plain):
        if min(before.shape[1:]) < LEAST_SIDE or width % before.shape[2]:
            continue
        attempts = []
        for cells in dict.fromkeys((1, max(strides) // strides[i])):
            shifted = tapped(network, stages.stages, torch.roll(images, cells * strides[i], dims=3))[i]
            attempts.append(_correlations(before, energy(shifted), cells))
            if attempts[-1].is_moved:
                break
        else:
            yield i, f"{stages.stages[i].label} moves with correlation {' and '.join(map(str, attempts))}"


class _Correlations(NamedTuple):
    """Of a map with the map before the shift: moved along, not moved, and the best of the cells beside."""

    moved: float
    still: float
    beside: float

    @property
    def is_moved(self) -> bool:
        return self.moved >= LEAST_CORRELATION and self.moved > max(self.still, self.beside)

    def __str__(self) -> str:
        return f"{self.moved:.2f} (unmoved {self.still:.2f})"


def _correlations(before: Tensor, after: Tensor, cells: int) -> _Correlations:
    moved, still, *beside = (_correlation(before, after, offset) for offset in (cells, 0, cells - 1, cells + 1))
    return _Correlations(moved, still, max(beside))


Check = Callable[[nn.Module, Stages, Tensor], Problems]


def also_in_larger(check: Check, network: nn.Module, stages: Stages, images: Tensor) -> list[str]:
    """What a check finds, and finds at the same stages in images of twice the size if the network takes them.

    In a small map the padding of many layers reaches every cell, and a cell sees the whole image.

    Args:
        check: `blind_quarters`, `indistinct_quarters` or `unmoved`.
        network: any.
        stages: that were chosen.
        images: [B, 3, H, W].
    """
    found = list(check(network, stages, images))
    if found:
        larger = F.interpolate(images[:2], scale_factor=2, mode="bicubic", antialias=True)
        try:
            again = {stage for stage, _ in check(network, stages, larger)}
        except (AssertionError, AttentionTransferError, RuntimeError, ValueError):
            again = {stage for stage, _ in found}  # it takes images of one size
        found = [(stage, problem) for stage, problem in found if stage in again]
    return [problem for _, problem in found]


def mixers(network: nn.Module) -> list[str]:
    """The kinds of modules with which a network mixes positions otherwise than by convolution."""
    kinds = {type(module).__name__ for module in network.modules()}
    return sorted(kind for kind in kinds if any(word in kind.lower() for word in MIXERS))


def _correlation(plain: Tensor, moved: Tensor, offset: int) -> float:
    """Of the interior of `moved` with that of `plain` shifted by `offset` cells to the right; mean over the batch."""
    edge = plain.shape[2] // 4
    inside = moved[:, edge:-edge, edge:-edge].flatten(1)
    shifted = torch.roll(plain, offset, dims=2)[:, edge:-edge, edge:-edge].flatten(1)
    pairs = F.cosine_similarity(inside - inside.mean(1, keepdim=True), shifted - shifted.mean(1, keepdim=True), dim=1)
    return float(pairs.mean())
