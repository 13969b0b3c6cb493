"""What every test may ask for: real images (scikit-learn's digits, and shared/), settings, a program to stop."""

from __future__ import annotations

import gc
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.warm import Program

from attention_transfer import create_model

ImageFolder = Callable[[Mapping[str, int]], Path]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Under --no-loadscope-reorder, which pytest-xdist has, files with many slow tests are the first to begin.

    Left to itself it begins with the files that have many tests, quick ones too; what comes last are then files of one
    test that takes long, beside which the other core has nothing to do.
    """
    if not getattr(config.option, "loadscopereorder", True):
        slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
        items.sort(key=lambda item: -slow[item.path])


def pytest_collection_finish() -> None:
    """Spares the garbage collector the million objects of what has been imported, which stay anyway."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keeps what runs keep out of the user's own cache folder."""
    folder: Path = tmp_path_factory.mktemp("cache-home")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 1,797 handwritten digits as 32x32 PNG files in the class folders 0 to 9."""
    from sklearn.datasets import load_digits

    root: Path = tmp_path_factory.mktemp("digits")
    digits = load_digits()
    pixels = (digits.images * (255 / 16)).round().astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    for label in range(10):
        (root / str(label)).mkdir()
    for number, (image, label) in enumerate(zip(pixels, digits.target, strict=True)):
        Image.fromarray(image).save(root / str(label) / f"{number:04d}.png", compress_level=1)
    return root


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The folder shared/ beside the project, with data and weights that are not part of it."""
    shared = Path(__file__).resolve().parents[2] / "shared"
    if not shared.is_dir():
        pytest.skip("there is no folder shared/ beside the project")
    return shared


@pytest.fixture(scope="session")
def photos_folder(shared_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """398 images of ants and bees: train/ and val/, with a palette .gif, and stray .DS_Store files."""
    archive = shared_folder / "data" / "hymenoptera-photos.tar"
    if not archive.is_file():
        pytest.skip("shared/ has no data/hymenoptera-photos.tar")
    root: Path = tmp_path_factory.mktemp("photos")
    shutil.unpack_archive(archive, root)
    return root


@pytest.fixture
def image_folder(tmp_path: Path) -> ImageFolder:
    """Writes tmp_path/data with so many small images in each folder, as in image_folder({"train/cat": 3})."""

    def write(counts: Mapping[str, int]) -> Path:
        root = tmp_path / "data"
        for name, count in counts.items():
            (root / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (8, 8), (number % 256, 100, 200)).save(root / name / f"{number:03d}.png")
        return root

    return write


@pytest.fixture(scope="session")
def few_digits(digits_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 of the digits of each class, for runs of which only the mechanics matter."""
    root: Path = tmp_path_factory.mktemp("few-digits")
    for folder in sorted(digits_folder.iterdir()):
        (root / folder.name).mkdir()
        for file in sorted(folder.iterdir())[:12]:
            (root / folder.name / file.name).symlink_to(file)
    return root


@pytest.fixture
def settings(tmp_path, few_digits):
    """Of a short run that takes no time for what most tests are not about: no trial of number formats, no figures."""
    return {
        "data_dir": str(few_digits),
        "image_size": 16,
        "num_workers": 0,
        "epochs": 1,
        "device": "cpu",
        "precision": "fp32",
        "teacher_precision": "fp32",
        "figure_freq": 0,
        "save_dir": str(tmp_path / "checkpoints"),
        "log_dir": str(tmp_path / "logs"),
        "experiment_name": "run",
    }


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(1)
    return create_model("CifarResNet-8", 10)


@pytest.fixture(scope="session")
def eighty_digits(digits_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first eight images of each digit: enough for a cut, and quick to read."""
    root: Path = tmp_path_factory.mktemp("eighty")
    for name in "0123456789":
        (root / name).mkdir()
        for path in sorted((digits_folder / name).iterdir())[:8]:
            (root / name / path.name).write_bytes(path.read_bytes())
    return root


@pytest.fixture
def ctrl_c_counts():
    """A suite that runs in the background may ignore Ctrl-C, and the processes that it starts would with it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def start():
    """Starts a Python program in a process group of its own, and waits for the line that it prints."""
    started = []

    def begin(program):
        process = Program("-c", program, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        started.append(process)
        return process, process.stdout.readline().split()

    yield begin
    for process in started:
        process.kill()
        process.wait()
        process.close()
