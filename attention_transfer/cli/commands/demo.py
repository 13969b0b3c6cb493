"""`attention-transfer demo`: what attention transfer does, on a small real data set, in a few minutes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from attention_transfer.cli.commands.evaluate import open_split
from attention_transfer.cli.digits import write_digits
from attention_transfer.cli.tables import facts, heading, millions, percent, table
from attention_transfer.config import Config, resolve_config
from attention_transfer.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

TEACHER_EPOCHS, STUDENT_EPOCHS = 4, 8
LEAST_IMAGE_SIZE = 64
DRAWN_DIGITS = (3, 5)
FIGURE_DPI = 110


@dataclass(frozen=True)
class Trained:
    """A trained network of the demo, and its results.

    Attributes:
        name: in the table.
        model: with its best weights, in eval mode.
        seconds: wall time of its run.
        test: the figures of `evaluate_model` on the test images.
        precision: the number format that it was trained in.
    """

    name: str
    model: nn.Module
    seconds: float
    test: dict[str, Any]
    precision: str


def demo(
    *,
    output: Annotated[str, Parameter(help="folder for the images, the runs and the figure")] = "demo",
    image_size: Annotated[int, Parameter(help=f"side of the images in pixels, at least {LEAST_IMAGE_SIZE}")] = 64,
    epochs: Annotated[
        int, Parameter(help=f"epochs of each student; the teacher has {TEACHER_EPOCHS} at most")
    ] = STUDENT_EPOCHS,
    seed: Annotated[int, Parameter(help="seed of the weights and of the order of images")] = 0,
) -> int:
    """Teach a small network the handwritten digits, with and without a teacher.

    A ResNet18 learns scikit-learn's 1,797 digits by cross-entropy. Then a MultiBranchNet learns them twice, from the
    same weights and in the same order: once it also learns to look where the ResNet18 looks, once it does not. All
    three are measured on the same test images, and a figure shows where they look.
    """
    if image_size < LEAST_IMAGE_SIZE:
        raise ConfigError(f"image_size is {image_size}, but the demo's networks need at least {LEAST_IMAGE_SIZE}.")
    began, folder = time.perf_counter(), Path(output)
    config = recipe(folder, image_size=image_size, epochs=epochs, seed=seed)
    count = write_digits(Path(config.data_dir))
    print(f"{count} handwritten digits are in {config.data_dir}")

    teacher = teach("teacher", config, model="ResNet18", epochs=min(epochs, TEACHER_EPOCHS))
    weights = str(Path(config.save_dir) / "teacher_best.pth")
    with_at = teach("student with AT", config, teacher_model=weights)
    # in the number format that was chosen for the first: the teacher is to be the only difference
    without = teach("student without AT", config, precision=with_at.precision)
    networks = [teacher, with_at, without]
    distances = {network.name: distances_to(teacher, network, config) for network in networks}

    picture = draw(folder / "attention.png", teacher, with_at, without, config)
    print(f"\nOn {teacher.test['samples']} test images; AT is the distance to the teacher's attention, in 1e-4:\n")
    show(networks, distances)
    print(f"\n{verdict(with_at, without, distances)}\n")
    facts(
        f"after {time.perf_counter() - began:.0f} s",
        {
            "where they look": picture,
            "checkpoints": config.save_dir,
            "logs": config.log_dir,
            "TensorBoard": f"tensorboard --logdir {config.log_dir}",
        },
    )
    return 0


def recipe(folder: Path, *, image_size: int, epochs: int, seed: int) -> Config:
    """The settings that all three runs share: SGD, whose rate is cut once, before the last quarter.

    Images are not augmented: mirrored digits are other digits. The weight of AT is a tenth of the default, which was
    best on validation images: in so few epochs a greater one leaves cross-entropy too little time.

    Args:
        folder: of images, checkpoints and logs.
        image_size: side of the images in pixels.
        epochs: of each student.
        seed: of weights and order.
    """
    return resolve_config(
        {
            "data_dir": str(folder / "digits"),
            "save_dir": str(folder / "checkpoints"),
            "log_dir": str(folder / "logs"),
            "image_size": image_size,
            "epochs": epochs,
            "num_workers": 0,
            "lr": 0.02,
            "beta": 100.0,
            "seed": seed,
            "overwrite": True,
        }
    )


def teach(name: str, config: Config, **settings: Any) -> Trained:
    """Train a network, and evaluate it on the test images.

    Args:
        name: in the table and of the experiment.
        config: the shared settings.
        settings: of this network, which override them.

    Raises:
        KeyboardInterrupt: Ctrl-C; the demo is of no use with half a run.
    """
    from attention_transfer.training.train import train_at

    began = time.perf_counter()
    heading(f"\n{name}")
    epochs = settings.get("epochs", config.epochs)
    schedule = {"step_size": max(1, epochs * 3 // 4), "experiment_name": name.replace(" ", "-")}
    result = train_at({**config.model_dump(), **schedule, **settings})
    if result["status"] == "stopped":
        raise KeyboardInterrupt
    seconds = time.perf_counter() - began
    return Trained(name, result["model"], seconds, result["test_results"], result["config"]["precision"])


def distances_to(teacher: Trained, network: Trained, config: Config) -> list[float]:
    """AT of each stage on the test images, shallow to deep; also for a student trained without the teacher.

    Args:
        teacher: the reference.
        network: the student.
        config: the shared settings.
    """
    from attention_transfer.training.own_loop import validate

    figures = validate(network.model, teacher.model, open_split(config, "test"), config.device, config)
    return [value for key, value in figures.items() if key.startswith("attention_stage_")]


def draw(path: Path, teacher: Trained, with_at: Trained, without: Trained, config: Config) -> Path:
    """Write the figure, in 256 colours and so below 200 KB: two test images, and the attention of each network.

    Args:
        path: of the PNG file.
        teacher: drawn above the students.
        with_at: the student with attention transfer.
        without: the student without.
        config: the shared settings.

    Returns:
        the path.
    """
    import torch
    from PIL import Image

    from attention_transfer.visualization import attention_figure

    dataset = open_split(config, "test").dataset
    first = {digit: dataset.targets.index(digit) for digit in DRAWN_DIGITS}  # type: ignore[attr-defined]
    figure = attention_figure(
        with_at.model,
        torch.stack([dataset[index][0] for index in first.values()]),
        config,
        teacher=teacher.model,
        others={"without AT": without.model},
        titles=[f"a {digit}" for digit in first],
    )
    png = BytesIO()
    figure.savefig(png, format="png", dpi=FIGURE_DPI)
    with Image.open(png) as image:
        image.convert("RGB").quantize().save(path, optimize=True)
    return path


def show(networks: list[Trained], distances: dict[str, list[float]]) -> None:
    """Print accuracy, cost and distance to the teacher's attention of each network."""
    rows = [
        [
            network.name,
            percent(network.test["accuracy"]),
            millions(network.test["parameters"]),
            f"{network.seconds:.0f}",
            *(f"{1e4 * distance:.2f}" for distance in distances[network.name]),
        ]
        for network in networks
    ]
    stages = range(len(rows[0]) - 4)
    table(["", "accuracy", "parameters", "seconds", *(f"AT stage {stage}" for stage in stages)], rows)


def verdict(with_at: Trained, without: Trained, distances: dict[str, list[float]]) -> str:
    """The effect of attention transfer, in a sentence, whether it helped or not.

    Args:
        with_at: the student with attention transfer.
        without: the student without.
        distances: AT of each stage, by network.
    """
    gain = round((with_at.test["accuracy"] - without.test["accuracy"]) * with_at.test["samples"])
    images = f"{abs(gain)} image{'s' if abs(gain) != 1 else ''}"
    right = f"{images} {'more' if gain > 0 else 'fewer'} right" if gain else "as many images right"
    nearer = sum(distances[without.name]) / sum(distances[with_at.name])
    looks = f"{nearer:.1f} times nearer to" if nearer >= 1 else f"{1 / nearer:.1f} times farther from"
    return f"With attention transfer the student got {right}, and its attention is {looks} the teacher's."
