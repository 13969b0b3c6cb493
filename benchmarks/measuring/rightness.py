"""Is attention read from the right tensors? Checks of a network's stages that do not share code with their choice."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.feature_extraction import create_feature_extractor

from attention_transfer.errors import AttentionTransferError
from attention_transfer.features.maps import energy
from attention_transfer.features.stages.choose import Stages, choose_stages
from attention_transfer.features.stages.stage import Stage
from attention_transfer.features.taps import Taps
from attention_transfer.losses.attention import attention_loss
from attention_transfer.modules import undisturbed

LEAST_CORRELATION = 0.95
FALLS_TO = 0.8
STEPS = 20
TAUGHT = 2
"""Photos of the batch that is learnt."""
OPENED = ("gamma", "layer_scale", "skipinit_gain")
"""Parts of the names of what scales a residual branch."""
MIXERS = ("attention", "attn", "mixer", "lstm", "gatingunit")
"""Parts of the names, in small letters, of modules that mix positions in ways in which a convolution does not."""
LEAST_SIDE = 10
"""Of a map with an interior that the edges of the image hardly reach."""


class Verdict(NamedTuple):
    """What was found wrong with a network's stages.

    Attributes:
        stages: that were chosen.
        wrong: a sentence for each check that failed; empty if all is right.
        notes: what is exempt, and why.
    """

    stages: Stages
    wrong: tuple[str, ...]
    notes: tuple[str, ...] = ()


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


def as_if_trained(network: nn.Module, images: Tensor) -> nn.Module:
    """A copy whose norms have affine parameters as after training, and running statistics of the images [B, 3, H, W].

    At initialisation a layer norm makes the energy of all cells the same, a batch norm scales by statistics that no
    image has, and a residual branch that is scaled by nearly zero (LayerScale, 1e-5 in DINOv2) passes its input on, so
    that all blocks put out the same.
    """
    network = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        if any(word in name for word in OPENED) and bool((parameter.abs() < 0.1).all()):
            parameter.data.fill_(1.0)
    for module in network.modules():
        if "norm" not in type(module).__name__.lower():
            continue
        for name, parameter in module.named_parameters(recurse=False):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_((1.0 + 0.25 * noise) if name == "weight" else 0.25 * noise)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    network.train()
    with torch.no_grad():
        network(images)
    return network.eval()


def unlike_documented(network: nn.Module, stages: Stages, images: Tensor) -> Iterator[str]:
    """Stages whose features are not, to the bit, what the library documents.

    For timm the reference is `forward_intermediates`, on other images than those of the choice; for torchvision its own
    feature extractor, which traces the network and needs no hooks.

    Args:
        network: of a library.
        stages: that were chosen.
        images: [B, 3, H, W].
    """
    references = _documented(network, stages, images)
    for stage, features in zip(stages.stages, tapped(network, stages.stages, images), strict=True):
        if not any(torch.equal(features, reference) for reference in references):
            yield f"{stage.label} is no documented stage"


def _documented(network: nn.Module, stages: Stages, images: Tensor) -> list[Tensor]:
    with undisturbed(network):
        if hasattr(network, "forward_intermediates"):
            method: Any = network.forward_intermediates
            options = {"intermediates_only": True, "output_fmt": "NCHW", "norm": False}
            known = inspect.signature(method).parameters
            return list(method(images, **{key: value for key, value in options.items() if key in known}))
        nodes = create_feature_extractor(network, {name: name for name in stages.names}).eval()(images)
    return [stage.readout(stage.name, nodes[stage.name]) for stage in stages.stages]


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

    Interior cells are compared, where neither padding nor what comes in at the edge reaches far.

    Args:
        network: any.
        stages: that were chosen; those smaller than 10x10 have too small an interior.
        images: [B, 3, H, W].
    """
    before = tapped(network, stages.stages, images)
    for i in range(len(before)):
        height, width = before[i].shape[2:]
        if min(height, width) < LEAST_SIDE or images.shape[3] % width:
            continue
        plain = energy(before[i])
        moved = energy(tapped(network, stages.stages, torch.roll(images, images.shape[3] // width, dims=3))[i])
        by = {offset: _correlation(plain, moved, offset) for offset in (-1, 0, 1, 2)}
        if max(by, key=lambda offset: by[offset]) != 1 or by[1] < LEAST_CORRELATION:
            yield i, f"{stages.stages[i].label} moves with correlation {by[1]:.2f} (unmoved {by[0]:.2f})"


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
        larger = F.interpolate(images[:TAUGHT], scale_factor=2, mode="bicubic", antialias=True)
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


def unteachable(student: nn.Module, teacher: nn.Module, images: Tensor) -> Iterator[str]:
    """What keeps a student from learning the teacher's attention on one fixed batch.

    AT must fall to 0.8 of its start in 20 steps of AdamW at 1e-3, with gradients up to the first layer.

    Args:
        student: a copy of it is trained.
        teacher: left unchanged.
        images: [B, 3, H, W].
    """
    student = copy.deepcopy(student).train()
    stages, theirs = choose_stages(student, images).stages, choose_stages(teacher, images).stages
    wanted = tapped(teacher, theirs, images)
    parameters = [p for p in student.parameters() if p.requires_grad]
    # tokens and tables of positions come before it, and need not take part
    first = next(p for name, p in student.named_parameters() if name.endswith("weight") and p.dim() >= 2)
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    losses = []
    for step in range(STEPS + 1):
        optimizer.zero_grad()
        with Taps(student, stages) as taps:
            student(images)
        loss = attention_loss(taps.features, wanted)
        loss.backward()
        if step == 0 and not _has_gradient(first):
            yield "no gradient reaches the first layer"
        optimizer.step()
        losses.append(float(loss.detach()))
    if not min(losses[-3:]) <= FALLS_TO * losses[0]:
        yield f"AT falls from {losses[0]:.2e} to {losses[-1]:.2e} alone"


def _has_gradient(parameter: nn.Parameter) -> bool:
    return parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)


def disturbed(network: nn.Module, work: Callable[[], object]) -> Iterator[str]:
    """What `work` has changed of a network: its state, modes, hooks, or torch's random state.

    Args:
        network: any.
        work: uses the network.
    """
    state = {key: value.clone() for key, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    random = torch.get_rng_state()
    work()
    if any(not torch.equal(value, network.state_dict()[key]) for key, value in state.items()):
        yield "its state_dict is changed"
    if modes != [module.training for module in network.modules()]:
        yield "its modes are changed"
    if any(module._forward_hooks or module._forward_pre_hooks for module in network.modules()):
        yield "hooks stay on it"
    if not torch.equal(random, torch.get_rng_state()):
        yield "torch's random state is changed"


def judge(network: nn.Module, images: Tensor, other: nn.Module | None = None) -> Verdict:
    """Every check of a library's network, as student and as teacher.

    A network that mixes positions by attention or the like need not shift its maps with the image, and each quarter of
    them must change most with a patch in it, not only there: what is missing is a note.

    Args:
        network: of timm or torchvision, in eval mode.
        images: [B, 3, H, W], of photos; AT is learnt on the first two.
        other: the network that it teaches and learns from; None leaves the training out.

    Raises:
        ConfigError: the library refuses the network.
    """
    chosen: list[Stages] = []
    wrong = list(disturbed(network, lambda: chosen.append(choose_stages(network, images[:1]))))
    [stages] = chosen
    wrong += unlike_documented(network, stages, images[:TAUGHT].flip(3))
    trained = as_if_trained(network, images)
    blind, still = (also_in_larger(check, trained, stages, images) for check in (blind_quarters, unmoved))
    notes = []
    if kinds := mixers(network):
        notes = [f"mixes positions by {', '.join(kinds)}: {problem}" for problem in (*blind, *still)]
        wrong += also_in_larger(indistinct_quarters, trained, stages, images) if blind else []
    else:
        wrong += (*blind, *still)
    if other is not None:
        batch = images[:TAUGHT]
        wrong += (f"as a student: {problem}" for problem in unteachable(trained, other, batch))
        wrong += (f"as a teacher: {problem}" for problem in unteachable(other, trained, batch))
    return Verdict(stages, tuple(wrong), tuple(notes))
