"""scikit-learn's handwritten digits as a folder of image files."""

from __future__ import annotations

from pathlib import Path

from attention_transfer.errors import ConfigError

SIDE = 64


def write_digits(folder: Path) -> int:
    """Write the 1,797 digits (Alpaydin & Kaynak 1998) as PNG files in the class folders 0 to 9.

    Args:
        folder: made if need be; files of the same names are replaced.

    Returns:
        the number of images. They were scanned at 8x8 and are enlarged smoothly to 64x64, 8-bit grey.

    Raises:
        ConfigError: scikit-learn, which holds the digits, is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigError(
            "the demo learns scikit-learn's handwritten digits, and scikit-learn is not installed: "
            'pip install "attention-transfer[demo]".'
        ) from error
    from PIL import Image

    digits = load_digits()
    scans = (digits.images * (255 / 16)).round().astype("uint8")
    for number, (scan, label) in enumerate(zip(scans, digits.target, strict=True)):
        of_class = folder / str(label)
        of_class.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(scan).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        image.save(of_class / f"{number:04d}.png")
    return len(scans)
