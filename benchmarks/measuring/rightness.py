"""Is attention read from the right tensors? Checks of a network's stages that do not share code with their choice."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from attention_transfer.features.stages.choose import Stages, choose_stages
from attention_transfer.features.taps import Taps
from attention_transfer.losses.attention import attention_loss
from attention_transfer.modules import undisturbed
from benchmarks.measuring.following import also_in_larger, blind_quarters, indistinct_quarters, mixers, tapped, unmoved

FALLS_TO = 0.8
STEPS = 20
TAUGHT = 2
"""Photos of the batch that is learnt."""
OPENED = ("gamma", "layer_scale", "skipinit_gain")
"""Parts of the names of what scales a residual branch."""
OPENED_BY = 0.25


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
            parameter.data.fill_(OPENED_BY)
    for module in network.modules():
        if "norm" not in type(module).__name__.lower():
            continue
        for name, parameter in module.named_parameters(recurse=False):
            noise = 0.25 * torch.randn(parameter.shape, generator=generator)
            is_closed = name == "weight" and not parameter.data.any()
            parameter.data.copy_(noise + 1.0 if name == "weight" else noise)
            if is_closed:
                parameter.data.mul_(OPENED_BY)
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
        # as it is built, or else as if trained: with closed residual branches there is little that can learn
        if untaught := list(unteachable(network, other, batch)):
            untaught = list(unteachable(trained, other, batch))
        wrong += (f"as a student: {problem}" for problem in untaught)
        wrong += (f"as a teacher: {problem}" for problem in unteachable(other, trained, batch))
    return Verdict(stages, tuple(wrong), tuple(notes))
