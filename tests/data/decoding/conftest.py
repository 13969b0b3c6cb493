"""Class folders of scans, whatever their number format."""

from __future__ import annotations

import pytest
import torch
from PIL import Image


@pytest.fixture(scope="module")
def digits():
    """The first ten of the digits 0 to 3, smooth and 32 pixels wide: float64 in [0, 1] with thousands of levels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    enlarged = {}
    for label in range(4):
        few = torch.tensor(data.images[data.target == label][:10] / 16)[:, None]
        enlarged[label] = torch.nn.functional.interpolate(few, size=32, mode="bicubic")[:, 0].clamp(0, 1).numpy()
    return enlarged


@pytest.fixture
def write_folder(digits, tmp_path):
    """Writes class folders of scans: each image goes through `form`, and is saved with `extension`."""

    def write(form, extension="png", name="scans", splits=("",)):
        root = tmp_path / name
        for split in splits:
            for label, images in digits.items():
                folder = root / split / str(label)
                folder.mkdir(parents=True)
                for number, image in enumerate(images):
                    Image.fromarray(form(image)).save(folder / f"{number:02d}.{extension}")
        return root

    return write
