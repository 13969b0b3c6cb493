"""`attention-transfer layers`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from attention_transfer.catalogue import is_path
from attention_transfer.cli.flags import takes_settings
from attention_transfer.cli.tables import facts, heading, percent, table
from attention_transfer.config import Config, resolve_config

if TYPE_CHECKING:
    from torch import Tensor, nn

    from attention_transfer.features.stages.choose import Stages
    from attention_transfer.training.setup.comparison import Comparison

IMAGES = 8
CLASSES = 10


@takes_settings("layers", "image_size", "teacher_arch", "teacher_key", "teacher_image_size", "device")
def layers(
    model: Annotated[str, Parameter(help="a network's name, timm/NAME, torchvision/NAME, or a file with its weights")],
    /,
    *,
    teacher: Annotated[str | None, Parameter(help="the network that it is to learn from, likewise")] = None,
    **settings: Any,
) -> int:
    """Show which modules of a network are compared, how their outputs are read, and how they pair with a teacher's.

    attention-transfer layers timm/resnet18d
    attention-transfer layers ResNet18 --teacher timm/vit_small_patch14_reg4_dinov2 --image-size 224

    A name stands for the network with random weights: nothing is fetched. What each pair weighs in the initial loss is
    measured on smooth random images; a run tells it for its own.
    """
    config = resolve_config({"layers": None, **settings})
    student = open_by_name_or_file(model, config, is_teacher=False)
    images = smooth_images(config)

    from attention_transfer.features.stages.choose import choose_stages, split_layers
    from attention_transfer.networks.input_shapes import TEACHER, refusing_misfits
    from attention_transfer.networks.preprocessing import preprocessing_of

    mine, theirs = split_layers(config.layers)
    with refusing_misfits(student, images, "network"):
        show_stages(model, choose_stages(student, images, mine))
    if teacher is None:
        return 0
    network = open_by_name_or_file(teacher, config, is_teacher=True)
    seen = preprocessing_of(network, config, images)(images)
    print()
    with refusing_misfits(network, seen, TEACHER):
        show_stages(teacher, choose_stages(network, seen, theirs))
    print()
    return show_pairs(student, network, images, config)


def open_by_name_or_file(name: str, config: Config, *, is_teacher: bool) -> nn.Module:
    """A network by its name, with random weights, or with those of a file.

    Args:
        name: in the catalogue, of timm or torchvision, or a path.
        config: uses image_size and device; teacher_arch and teacher_key for the file.
        is_teacher: it keeps its own image size, if it has only one.
    """
    import torch

    from attention_transfer.cli.networks import open_network
    from attention_transfer.data.frame import as_frame
    from attention_transfer.devices import resolve_device
    from attention_transfer.networks.preprocessing import size_to_build_for
    from attention_transfer.networks.registry import create_model

    if is_path(name):
        of_file = {"teacher_arch": config.teacher_arch, "teacher_key": config.teacher_key, "device": config.device}
        return open_network(name, of_file)[0].eval()
    torch.manual_seed(0)
    size = size_to_build_for(config) if is_teacher else as_frame(config.image_size).size
    return create_model(name, CLASSES, image_size=size).eval().to(resolve_device(config.device))


def smooth_images(config: Config) -> Tensor:
    """A few smooth random images [B, 3, H, W], the same in every call."""
    import torch
    from torch.nn import functional as F

    from attention_transfer.data.frame import as_frame
    from attention_transfer.devices import resolve_device

    noise = torch.randn(IMAGES, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images = F.interpolate(noise, as_frame(config.image_size).size, mode="bicubic")
    return images.to(resolve_device(config.device))


def show_stages(name: str, stages: Stages) -> None:
    """Print the candidates of a network, and which of them are its stages."""
    chosen = set(stages.names)
    rows = [
        [
            stage.name,
            stage.readout.name,
            "" if stage.size is None else f"{stage.size[0]}x{stage.size[1]}",
            _mark(stage.name in chosen),
        ]
        for stage in stages.candidates or stages.stages
    ]
    heading(f"{name}: {len(stages.stages)} stages, from {stages.source}")
    table(["module", "readout", "size", ""], rows)


def _mark(is_chosen: bool) -> str:
    return "compared" if is_chosen else ""


def show_pairs(student: nn.Module, teacher: nn.Module, images: Tensor, config: Config) -> int:
    """Print the pairs of stages that AT compares, and what each weighs in the initial loss.

    Args:
        student: on the device.
        teacher: likewise.
        images: [B, 3, H, W].
        config: uses layers and the kind of attention.
    """
    from attention_transfer.distributed import Runtime
    from attention_transfer.losses.total import default_terms
    from attention_transfer.training.setup.comparison import compare

    comparison = compare(config, default_terms(config), student, teacher, images, Runtime(images.device))
    if comparison is None:
        facts("pairs", {"none": "no pair of stages is larger than 1x1"})
        return 1
    heading("pairs")
    table(["student", "teacher", "compared at", "of the initial loss"], _pair_rows(comparison))
    for sentence in comparison.warnings():
        print(f"\nwarning: {sentence}")
    return 0


def _pair_rows(comparison: Comparison) -> list[list[str]]:
    shares = comparison.shares or (0.0,) * len(comparison.pairs)
    return [
        [
            comparison.student.stages[pair.student].name,
            comparison.teacher.stages[pair.teacher].name,
            f"{pair.size[0]}x{pair.size[1]}",
            percent(share),
        ]
        for pair, share in zip(comparison.pairs, shares, strict=True)
    ]
