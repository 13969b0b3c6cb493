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

OF_THE_DATA = ("data_dir", "image_size", "mean", "std", "pixel_range", "batch_size", "num_workers", "split_seed")


@takes_settings("teacher_arch", "teacher_key", "device")
@takes_settings(*OF_THE_DATA, default="the checkpoint's")
def evaluate(
    checkpoint: Annotated[
        str, Parameter(help="a checkpoint that train wrote, or a file of bare weights of a known network")
    ],
    /,
    *,
    split: Annotated[Literal["test", "val", "train"], Parameter(help="which images")] = "test",
    json_file: Annotated[
        str | None, Parameter(name="--json", help="write all figures there, also the confusion matrix")
    ] = None,
    **settings: Any,
) -> int:
    """Measure a trained network on a split of its data.

    attention-transfer evaluate checkpoints/NAME_best.pth
    attention-transfer evaluate student.pth --data-dir photos --json figures.json

    The images are brought to the form that the network was trained with, unless a flag below says otherwise.
    """
    network, config = open_network(checkpoint, settings)

    from attention_transfer.data.loading.loaders import close_loader
    from attention_transfer.data.loading.workers import explain_lost_workers
    from attention_transfer.evaluation import evaluate_model

    loader = open_split(config, split)
    try:
        check_same_classes(network, loader, checkpoint)
        say_found_range(config, loader)
        with explain_lost_workers():
            report = evaluate_model(network, loader, config)
    finally:
        close_loader(loader)
    show(f"{checkpoint} on {report['samples']} images of {config.data_dir} ({split})", report)
    if json_file is not None:
        write_atomically(json_file, (json.dumps(report, indent=2) + "\n").encode(), setting="--json")
        print(f"\nAll figures are in {Path(json_file)}.")
    return 0


def open_split(config: Config, split: str) -> DataLoader[Any]:
    """The loader of one split: whole images, without augmentation."""
    from attention_transfer.training.setup.loaders import open_folder

    return open_folder(config.model_copy(update={"augment": False}))[split]


def check_same_classes(network: nn.Module, loader: DataLoader[Any], source: str) -> None:
    """Bare weights do not tell the names of their classes; their number must be that of the data at least.

    Raises:
        DataError: the numbers differ, or the weights came without a head.
    """
    from attention_transfer.data.loading.user_loaders import classes_of
    from attention_transfer.networks.registry import HeadlessCard, card_of

    if isinstance(card_of(network), HeadlessCard):
        raise DataError(f"{source} has no head that can be built from it, so that it tells no classes apart.")
    card, names = card_of(network), classes_of(loader) or ()
    if card is not None and card.class_names is None and card.num_classes != len(names):
        raise DataError(
            f"{source} tells {card.num_classes} classes apart, but the data have {len(names)} ({', '.join(names[:5])}"
            f"{', ...' if len(names) > 5 else ''}); give the data that it was trained for with --data-dir."
        )


def say_found_range(config: Config, loader: DataLoader[Any]) -> None:
    """Print the range that 'auto' has found for a network that was trained without one."""
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
