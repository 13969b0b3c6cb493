"""`attention-transfer visualize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from attention_transfer.cli.flags import takes_settings
from attention_transfer.cli.networks import open_network
from attention_transfer.errors import DataError

OF_A_FOLDER = 4


@takes_settings("teacher_arch", "teacher_key", "device")
@takes_settings("layers", "image_size", "resize", "crop_pct", "mean", "std", "pixel_range", default="the checkpoint's")
def visualize(
    checkpoint: Annotated[
        str, Parameter(help="a checkpoint that train wrote, or a file of bare weights of a known network")
    ],
    /,
    *images: Annotated[
        str, Parameter(help=f"image files, or folders, of each of which {OF_A_FOLDER} images are taken")
    ],
    teacher: Annotated[str | None, Parameter(help="a teacher to compare with")] = None,
    output: Annotated[str, Parameter(help="the figure's file: .png, .pdf, .svg")] = "attention.png",
    **settings: Any,
) -> int:
    """Draw where a network looks: each image, overlaid with the attention of every stage.

    attention-transfer visualize checkpoints/NAME_best.pth ant.jpg bees
    attention-transfer visualize student.pth photos --teacher teacher.pth

    Colours range from the least attention in an image (dark) to the most (bright).
    """
    files = find_images(images)
    network, config = open_network(checkpoint, settings)

    import numpy as np

    from attention_transfer.data.decoding.images import decode_image
    from attention_transfer.data.frame import as_frame
    from attention_transfer.data.rendering import render_whole
    from attention_transfer.teacher.loading import load_teacher_model
    from attention_transfer.visualization import attention_figure, save_figure

    teacher_network = None
    if teacher is not None:
        teacher_network = load_teacher_model(
            teacher, device=config.device, teacher_arch=config.teacher_arch, teacher_key=config.teacher_key
        )
    # 'auto' is found on a data set, which these images are not
    pixel_range = None if config.pixel_range == "auto" else config.pixel_range
    pictures = [np.asarray(decode_image(file, pixel_range)) for file in files]
    frame = as_frame(config.image_size, config.resize, config.crop_pct)
    figure = attention_figure(
        network,
        render_whole(pictures, frame, config.mean, config.std),
        config,
        teacher=teacher_network,
        titles=[file.name for file in files],
        max_images=len(files),
    )
    save_figure(figure, output)
    print(f"{output} shows where {checkpoint} looks in {len(files)} image{'s' if len(files) > 1 else ''}.")
    return 0


def find_images(paths: tuple[str, ...]) -> list[Path]:
    """The given files, and a few of each given folder, evenly spaced in the order of their names.

    Raises:
        DataError: no path is given, a path does not exist, or a folder has no images.
    """
    if not paths:
        raise DataError("there is no image to draw; name image files or folders behind the checkpoint.")
    return [file for path in paths for file in _images_at(Path(path))]


def _images_at(path: Path) -> list[Path]:
    from attention_transfer.data.sources.image_files import image_suffixes, suffix_of

    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path} is neither an image file nor a folder.")
    suffixes = image_suffixes()
    found = sorted(
        file
        for file in path.rglob("*")
        if suffix_of(file.name) in suffixes and file.is_file() and not file.name.startswith(".")
    )
    if not found:
        raise DataError(f"{path} holds no image ({', '.join(sorted(suffixes))}).")
    return found[:: max(1, len(found) // OF_A_FOLDER)][:OF_A_FOLDER]
