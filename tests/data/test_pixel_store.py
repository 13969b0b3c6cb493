"""Images that are decoded once: the same pixels, with and without the store, whoever fills it."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import warm
from support.loading import epoch, load

from attention_transfer import DataError, train_at
from attention_transfer.cache.folder import entries
from attention_transfer.cache.in_use import is_in_use
from attention_transfer.cache.records import Records
from attention_transfer.config import Config
from attention_transfer.data import Augmentation
from attention_transfer.data.decoding.decoder import Decoder
from attention_transfer.data.pixel_cache import cache_pixels, make_stores
from attention_transfer.errors import CacheError


def kept(loader, folder, **settings):
    """The loader, with its pixels kept."""
    config = Config(cache_dir=str(folder), num_workers=settings.pop("num_workers", 0), **settings)
    stores = make_stores([loader.dataset], config)
    assert stores is not None
    cache_pixels([loader.dataset], stores, config)
    return loader


@pytest.mark.slow
@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_photos_from_the_store_are_the_same_to_the_bit(photos_folder, tmp_path, augment, num_workers):
    settings = {"image_size": 64, "augment": augment, "num_workers": num_workers}
    plain = load(photos_folder, **settings)[0]
    stored = kept(load(photos_folder, **settings)[0], tmp_path, num_workers=num_workers)
    assert stored.dataset.store.records.present().all()
    for _ in range(2 if augment else 1):
        one, other = epoch(plain), epoch(stored)
        assert one[0] == other[0]
        assert all(map(torch.equal, one[1:], other[1:]))


def test_with_augmentation_a_photo_keeps_its_aspect_ratio_and_the_smallest_crop_has_all_pixels(photos_folder):
    decoder = Decoder(64, Augmentation(crop_scale=(0.3, 1.0)))
    for path in sorted(photos_folder.rglob("*.jpg"))[:20]:
        with Image.open(path) as image:
            width, height = image.size
        picture = decoder(path)
        assert picture.shape[:2] == decoder.shape_of(path)
        assert picture.shape[1] / picture.shape[0] == pytest.approx(width / height, rel=0.02)
        narrowest = np.sqrt(0.3 * 3 / 4)
        assert min(picture.shape[:2]) * narrowest >= min(64, min(width, height) * narrowest) - 1e-6
        assert min(picture.shape[:2]) <= np.ceil(64 / narrowest)


def test_small_images_are_kept_as_they_are(eighty_digits):
    path = sorted((eighty_digits / "3").iterdir())[0]
    assert np.array_equal(Decoder(32, Augmentation())(path)[..., 0], np.asarray(Image.open(path)))


def test_turned_photos_are_measured_as_they_are_seen(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (300, 200), "red").save(tmp_path / "turned.jpg", exif=exif)
    decoder = Decoder(64, Augmentation())
    assert decoder.shape_of(tmp_path / "turned.jpg") == decoder(tmp_path / "turned.jpg").shape[:2] == (144, 96)


def test_every_worker_reads_one_file_that_it_opens_itself(eighty_digits, tmp_path):
    loader = kept(load(eighty_digits)[0], tmp_path)
    parcel = pickle.dumps(loader.dataset.store)
    assert len(parcel) < 1000
    assert np.array_equal(pickle.loads(parcel).picture(3), loader.dataset.picture(3))


def test_a_damaged_picture_is_decoded_again(eighty_digits, tmp_path):
    loader = kept(load(eighty_digits)[0], tmp_path)
    whole = epoch(loader)
    store = loader.dataset.store.records.path
    raw = bytearray(store.read_bytes())
    raw[-100] ^= 255
    store.write_bytes(raw)
    assert loader.dataset.store.picture(len(loader.dataset) - 1) is None
    loader.batch_sampler.set_epoch(0)
    assert all(map(torch.equal, epoch(loader)[1:], whole[1:]))


def test_a_loader_whose_store_is_closed_decodes_anew(eighty_digits, tmp_path):
    loader = kept(load(eighty_digits)[0], tmp_path)
    whole = epoch(loader)
    loader.dataset.store.records.close()
    assert loader.dataset.store.picture(0) is None
    loader.batch_sampler.set_epoch(0)
    assert all(map(torch.equal, epoch(loader)[1:], whole[1:]))
    assert not is_in_use(loader.dataset.store.records.path)


def test_a_damaged_picture_is_put_back(eighty_digits, tmp_path):
    loader = kept(load(eighty_digits)[0], tmp_path)
    store = loader.dataset.store.records.path
    raw = bytearray(store.read_bytes())
    raw[-100] ^= 255
    store.write_bytes(raw)
    epoch(loader)
    assert not loader.dataset.store.records.damaged()


def test_other_images_of_equal_size_and_time_are_noticed(eighty_digits, tmp_path, caplog):
    data = shutil.copytree(eighty_digits, tmp_path / "data")
    for path in data.rglob("*.png"):
        Image.open(path).convert("RGB").save(path.with_suffix(".ppm"))
        path.unlink()
    first = epoch(kept(load(data)[1], tmp_path / "cache"))
    for path in data.rglob("*.ppm"):
        status = path.stat()
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    second = epoch(kept(load(data)[1], tmp_path / "cache"))
    assert "pixels of other images" in caplog.text
    assert not torch.equal(first[2], second[2])


def test_a_cold_and_a_warm_store_give_the_same_student_with_dropout(settings, tmp_path):
    def train(name):
        torch.manual_seed(0)
        student = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(3 * 16 * 16, 10))
        run = {**settings, "experiment_name": name, "cache_dir": str(tmp_path / "cache"), "precision": "fp32"}
        return train_at(run, student=student)["model"][2].weight

    assert torch.equal(train("cold"), train("warm"))


def test_ranks_share_the_work_whoever_is_faster(eighty_digits, tmp_path):
    loader = load(eighty_digits)[0]
    stores = make_stores([loader.dataset], Config(cache_dir=str(tmp_path)))
    for rank in (1, 0):
        cache_pixels([loader.dataset], stores, Config(cache_dir=str(tmp_path), num_workers=0), rank, 2)
    assert stores[0].present().all()


def test_files_that_are_gone_are_not_missed(eighty_digits, tmp_path):
    data = shutil.copytree(eighty_digits, tmp_path / "data")
    loader = kept(load(data)[0], tmp_path / "cache")
    shutil.rmtree(data)
    assert len(epoch(loader)[1]) == len(loader.dataset)


def test_a_changed_image_is_another_store(eighty_digits, tmp_path):
    data = shutil.copytree(eighty_digits, tmp_path / "data")
    first = kept(load(data)[0], tmp_path / "cache")
    path = Path(first.dataset.source.samples[0].path)
    path.write_bytes(Path(first.dataset.source.samples[-1].path).read_bytes())
    second = kept(load(data)[0], tmp_path / "cache")
    assert second.dataset.store.records.path != first.dataset.store.records.path
    assert torch.equal(second.dataset[0][0], second.dataset[-1][0])


def test_an_image_that_cannot_be_read_is_named_before_training(eighty_digits, tmp_path, settings):
    data = shutil.copytree(eighty_digits, tmp_path / "data")
    broken = sorted((data / "7").iterdir())[0]
    broken.write_bytes(b"no image")
    with pytest.raises(DataError, match=re.escape(str(broken))):
        train_at({**settings, "data_dir": str(data), "cache_dir": str(tmp_path / "cache"), "num_workers": 2})
    assert not (tmp_path / "logs" / "run.log").exists()


FILL = """
import os, signal, sys
from attention_transfer import prepare_dataloaders
from attention_transfer.config import Config
from attention_transfer.data.pixel_cache import cache_pixels, make_stores
from attention_transfer.data.pixel_store import PixelStore
keep = PixelStore.keep

def keep_and_be_killed(store, indices, pictures):
    keep(store, indices, pictures)
    if store.records.present().sum() >= 32:
        os.killpg(0, signal.SIGKILL)

PixelStore.keep = keep_and_be_killed
dataset = prepare_dataloaders(sys.argv[1], image_size=256)[0].dataset
config = Config(cache_dir=sys.argv[2], num_workers=2)
stores = make_stores([dataset], config)
cache_pixels([dataset], stores, config)
"""


@pytest.mark.speed
def test_a_killed_build_goes_on_where_it_was(photos_folder, tmp_path):
    builder = warm.Program("-c", FILL, photos_folder, tmp_path, start_new_session=True, output=tmp_path / "output")
    assert builder.wait() == -signal.SIGKILL
    (entry,) = entries(tmp_path)
    done = int(Records(entry.path, entry.identity).present().sum())
    loader = load(photos_folder, image_size=256)[0]
    assert 0 < done < len(loader.dataset)
    kept(loader, tmp_path)
    assert loader.dataset.store.records.present().all()
    assert not loader.dataset.store.records.damaged()


def test_where_the_limit_is_too_low_auto_decodes_each_time_and_on_is_an_error(eighty_digits, tmp_path, caplog):
    dataset = load(eighty_digits)[0].dataset
    with caplog.at_level("INFO", logger="attention_transfer"):
        assert make_stores([dataset], Config(cache_dir=str(tmp_path), cache_limit=1e-6)) is None
    assert "each image is decoded in every epoch" in caplog.text
    with pytest.raises(CacheError, match="cache_limit is 1e-06 GB"):
        make_stores([dataset], Config(cache_dir=str(tmp_path), cache_limit=1e-6, pixel_cache="on"))
    assert make_stores([dataset], Config(cache_dir=str(tmp_path), pixel_cache="off")) is None


def test_what_the_run_itself_uses_does_not_make_room(eighty_digits, tmp_path):
    loaders = load(eighty_digits)
    first = kept(loaders[0], tmp_path).dataset.store.records.path
    loaders[0].dataset.store = None
    limit = (first.stat().st_size + 10_000) / 1e9
    make_stores([loader.dataset for loader in loaders], Config(cache_dir=str(tmp_path), cache_limit=limit))
    assert first.exists()


def test_a_folder_that_cannot_be_written_is_no_end_in_auto(eighty_digits, tmp_path, caplog):
    (tmp_path / "file").write_text("no folder")
    dataset = load(eighty_digits)[0].dataset
    with caplog.at_level("INFO", logger="attention_transfer"):
        assert make_stores([dataset], Config(cache_dir=str(tmp_path / "file" / "cache"))) is None
    assert "each image is decoded in every epoch" in caplog.text
    with pytest.raises(CacheError, match="set cache_dir"):
        make_stores([dataset], Config(cache_dir=str(tmp_path / "file" / "cache"), pixel_cache="on"))


def test_what_was_used_longest_ago_makes_room(photos_folder, eighty_digits, tmp_path):
    first = kept(load(eighty_digits)[0], tmp_path).dataset.store.records.path
    second = kept(load(eighty_digits)[1], tmp_path).dataset.store.records.path
    os.utime(second, (time.time() - 1000, time.time() - 1000))
    limit = (first.stat().st_size + 75_000) / 1e9
    third = kept(load(eighty_digits, image_size=16)[0], tmp_path, cache_limit=limit).dataset.store.records.path
    assert first.exists()
    assert third.exists()
    assert not second.exists()
