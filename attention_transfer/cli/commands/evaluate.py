"""`attention-transfer evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from attention_transfer.cli.flags import takes_settings
from attention_transfer.cli.networks import open_network
from attention_transfer.cli.tables import facts, millions, percent, table
from attention_transfer.errors import DataError
from attention_transfer.files import write_atomically

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.data import DataLoader

    from attention_transfer.config import Config

OF_THE_DATA = (
    "data_dir", "image_size", "resize", "crop_pct", "mean", "std", "pixel_range", "batch_size", "num_workers",
    "split_seed", "val_fraction", "test_fraction",
)  # fmt: skip


@takes_settings("teacher_arch", "teacher_key", "device")
@takes_settings(*OF_THE_DATA, default="the checkpoint's")
def evaluate(
    checkpoint: Annotated[
        str, Parameter(help="a checkpoint that train wrote, or a file of bare weights of a known network")
    ],
    /,
    *,
    split: Annotated[
        Literal["test", "val", "train", "all"] | None,
        Parameter(help="which images; left out: test, but all of a folder without splits that training has not seen"),
    ] = None,
    json_file: Annotated[
        str | None, Parameter(name="--json", help="write all figures there, also the confusion matrix")
    ] = None,
    **settings: Any,
) -> int:
    """Evaluate a trained network on images that it was not trained on.

    attention-transfer evaluate checkpoints/NAME_best.pth
    attention-transfer evaluate student.pth --data-dir photos --json figures.json

    The first line shows which images these are. They are preprocessed as in training, unless a flag below says
    otherwise. Classes are matched by name: a folder may have few of them, in any order.
    """
    network, config = open_network(checkpoint, settings)

    from attention_transfer.cli.trained_on import Training
    from attention_transfer.data.loading.loaders import close_loader, image_settings, open_images
    from attention_transfer.data.loading.workers import explain_lost_workers
    from attention_transfer.data.sources.measured import choose_images
    from attention_transfer.data.sources.split_cut import SplitCut
    from attention_transfer.evaluation import evaluate_model
    from attention_transfer.logs import capture_logs

    check_has_head(network, checkpoint)
    is_learned_from = Training.of(checkpoint).was_on(config)
    measured = choose_images(config.data_dir, split, SplitCut.of(config), is_learned_from=is_learned_from)
    loader = open_images(measured.samples, measured.classes, **image_settings(config))
    try:
        say_found_range(config, loader)
        with explain_lost_workers(), capture_logs() as logged:
            report = evaluate_model(network, loader, config)
    finally:
        close_loader(loader)
    show(f"{checkpoint} on {measured.what}", report)
    for record in logged:
        print(f"\n{record.getMessage()}")
    if json_file is not None:
        write_atomically(json_file, (json.dumps(report, indent=2) + "\n").encode(), setting="--json")
        print(f"\nAll figures are in {Path(json_file)}.")
    return 0


def open_split(config: Config, split: str) -> DataLoader[Any]:
    """The loader of one split: whole images, without augmentation."""
    from attention_transfer.training.setup.data.loaders import open_folder

    return open_folder(config.model_copy(update={"augment": False}), pin_memory=False)[split]


def check_has_head(network: nn.Module, source: str) -> None:
    """Refuse a network without a classification head.

    Raises:
        DataError: its weights have none.
    """
    from attention_transfer.networks.registry import HeadlessCard, card_of

    if isinstance(card_of(network), HeadlessCard):
        raise DataError(f"{source} has no head that can be built from it, so that it cannot classify.")


def say_found_range(config: Config, loader: DataLoader[Any]) -> None:
    """Print the pixel range that 'auto' has found, for a network trained without one."""
    from attention_transfer.data.decoding.depth import in_words

    found = loader.dataset.decoder.pixel_range  # type: ignore[attr-defined]
    if config.pixel_range == "auto" and found is not None:
        print(f"The images have more than 8 bits, and are read with --pixel-range {in_words(found)}, as found on them.")


def show(title: str, report: dict[str, Any]) -> None:
    """Print the figures of `evaluate_model`."""
    facts(
        title,
        {
            "accuracy": percent(report["accuracy"]),
            "balanced accuracy": f"{percent(report['balanced_accuracy'])} (mean recall of the classes)",
            "top-5 accuracy": percent(report["top5_accuracy"]),
            "loss (cross-entropy)": f"{report['loss']:.4f}",
            "calibration error": percent(report["calibration_error"]),
            "parameters": millions(report["parameters"]),
            "multiply-adds": f"{millions(report['multiply_adds'])} an image",
            "images a second": f"{report['images_per_second']:.0f}",
        },
    )
    print()
    rows = [
        [name, percent(row["precision"]), percent(row["recall"]), percent(row["f1"]), str(row["support"])]
        for name, row in report["per_class"].items()
    ]
    table(["class", "precision", "recall", "F1", "images"], rows)
