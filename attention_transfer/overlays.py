"""Drawing attention: denormalised images, overlays of maps, and the page with both."""

from __future__ import annotations

from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PIXELS = 384
"""Approximate height in pixels of a photo with several rows beside it; overlays are half as high."""
COLOURS = "inferno"
OPACITY = 0.6

# a page's measures in inches
CELL = 1.25
GAP = 0.05
GROUP_GAP = 0.2
LABEL = 0.4
LINE = 0.24
MARGIN = 0.12
DPI = 150

INK, FAINT = "#1a1a1a", "#767676"


def denormalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Undo the normalisation of images, on the CPU.

    Images with another number of channels have no known colours: the mean of their channels becomes a grey image from
    black to white.

    Args:
        images: normalised, [B, C, H, W].
        mean: of each channel.
        std: standard deviation of each channel.

    Returns:
        [B, 3, H, W] in [0, 1].
    """
    images = images.cpu().float()
    if images.shape[1] == len(mean):
        colours = images * torch.tensor(std).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1)
        return colours.clamp(0, 1)
    grey = images.mean(dim=1, keepdim=True)
    low, high = grey.amin(dim=(2, 3), keepdim=True), grey.amax(dim=(2, 3), keepdim=True)
    return ((grey - low) / (high - low).clamp(min=1e-12)).expand(-1, 3, -1, -1)


def enlarge(pictures: Tensor, pixels: int = PIXELS) -> Tensor:
    """Resize pictures [B, 3, H, W] to [B, 3, h, w], h about `pixels`; small ones stay blocky, others are smoothed."""
    height, width = pictures.shape[2:]
    if PIXELS // height > 4:
        factor = max(1, pixels // height)
        return pictures.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    size = (pixels, max(1, round(width * pixels / height)))
    return F.interpolate(pictures, size=size, mode="bicubic", antialias=True).clamp(0, 1)


def overlay(picture: Tensor, attention: Tensor) -> Tensor:
    """Overlay a map in colours on a picture in grey.

    Args:
        picture: [3, H, W] in [0, 1].
        attention: [h, w] in [0, 1], enlarged bilinearly to the picture.

    Returns:
        [3, H, W] in [0, 1].
    """
    from matplotlib import colormaps

    height, width = picture.shape[1:]
    attention = F.interpolate(attention[None, None].cpu().float(), size=(height, width), mode="bilinear")[0, 0]
    colours = torch.from_numpy(colormaps[COLOURS](attention.numpy())[..., :3]).float().permute(2, 0, 1)
    luminance = (picture * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(dim=0)
    return (1 - OPACITY) * luminance + OPACITY * colours


class Page:
    """A figure of photos, each with a block of overlays at its right: a row for each network, a column for each size.

    It does not use pyplot, so that there is no global state and nothing to close. Pictures are added to the figure
    itself: making axes for each would take longer than everything else.

    Args:
        photos: number of photos.
        rows: rows of overlays beside each photo, one for each network.
        columns: overlays in a row.
        aspect: width over height of the photos.
        has_titles: whether there is a line above each photo.
    """

    def __init__(self, photos: int, rows: int, columns: int, aspect: float, has_titles: bool) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        block = rows * (CELL + GAP) - GAP
        between = GROUP_GAP + (LINE if has_titles else 0)
        self._aspect = aspect
        self._photo_height = CELL if rows == 1 else 2 * CELL + GAP
        self._pitch = block + between
        self._left_of_overlays = MARGIN + self._photo_height * aspect + (LABEL if rows > 1 else LABEL / 1.5)
        self._width = self._left_of_overlays + columns * (CELL * aspect + GAP) - GAP + MARGIN
        self._height = MARGIN + LINE + photos * self._pitch - between + LINE + MARGIN
        self.figure = Figure(figsize=(self._width, self._height), dpi=DPI, facecolor="white")
        FigureCanvasAgg(self.figure)
        # notebooks display objects with this method, also if pyplot was never imported
        self.figure._repr_png_ = partial(png_of, self.figure)  # type: ignore[attr-defined]

    def photo(self, photo: int, picture: Tensor, title: str | None = None) -> None:
        """Draw a photo, and its title above it.

        Args:
            photo: its number.
            picture: [3, H, W] in [0, 1].
            title: a line of text, or None.
        """
        self._image(picture, MARGIN, self._top_of(photo), self._photo_height)
        if title is not None:
            self._write(title, MARGIN, self._top_of(photo) - 0.07, size=8)

    def overlay(self, photo: int, row: int, column: int, picture: Tensor) -> None:
        """Draw an overlay beside a photo.

        Args:
            photo: number of the photo.
            row: of the network.
            column: of the stage.
            picture: [3, H, W] in [0, 1].
        """
        self._image(picture, self._left_of(column), self._top_of(photo) + row * (CELL + GAP), CELL)

    def heading(self, column: int, text: str) -> None:
        """Write what a column shows."""
        self._write(text, self._left_of(column) + CELL * self._aspect / 2, self._top_of(0) - 0.07, align="center")

    def name(self, photo: int, row: int, role: str, name: str) -> None:
        """Write the network's role and name along a row of overlays.

        Args:
            photo: number of the photo.
            row: of the network.
            role: such as 'teacher'; may be empty.
            name: of the network.
        """
        middle = self._top_of(photo) + row * (CELL + GAP) + CELL / 2
        lines = [(text, colour) for text, colour in ((role, INK), (name, FAINT)) if text]
        for i, (text, colour) in enumerate(reversed(lines)):
            self._write(text, self._left_of_overlays - 0.06 - 0.13 * i, middle, colour=colour, upright=True)

    def scale(self) -> None:
        """Draw the colour scale."""
        length, thickness = CELL * self._aspect, 0.07
        left, top = self._width - MARGIN - length, self._height - MARGIN - thickness
        self._put(torch.linspace(0, 1, 256).view(1, -1).numpy(), left, top, length, thickness, cmap=COLOURS)
        self._write("attention, from least to most", left - 0.08, top + thickness, colour=FAINT, align="right")

    def _top_of(self, photo: int) -> float:
        return MARGIN + LINE + photo * self._pitch

    def _left_of(self, column: int) -> float:
        return self._left_of_overlays + column * (CELL * self._aspect + GAP)

    def _image(self, picture: Tensor, left: float, top: float, height: float) -> None:
        pixels = (picture * 255).round().byte().permute(1, 2, 0).numpy()
        self._put(pixels, left, top, height * self._aspect, height)

    def _put(self, pixels: Any, left: float, top: float, width: float, height: float, **style: Any) -> None:
        from matplotlib.image import BboxImage
        from matplotlib.transforms import Bbox, TransformedBbox

        place = Bbox.from_bounds(left, self._height - top - height, width, height)
        image = BboxImage(TransformedBbox(place, self.figure.dpi_scale_trans), origin="upper", **style)
        image.set_data(pixels)
        self.figure.add_artist(image)

    def _write(
        self,
        text: str,
        left: float,
        top: float,
        *,
        size: float = 7,
        colour: str = INK,
        align: str = "left",
        upright: bool = False,
    ) -> None:
        where = (left / self._width, 1 - top / self._height)
        style: dict[str, Any] = {"fontsize": size, "color": colour, "parse_math": False}
        if upright:
            self.figure.text(*where, text, rotation=90, ha="right", va="center", **style)
        else:
            self.figure.text(*where, text, ha=align, va="baseline", **style)


def png_of(figure: Figure, *, is_packed: bool = True) -> bytes:
    """Render a figure as the bytes of a PNG file; uncompressed it is large, but takes half the time."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", pil_kwargs={} if is_packed else {"compress_level": 0})
    return buffer.getvalue()
