"""What a teacher said once is not asked again: the memory inside a run and between runs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from support.runs import assert_same_weights

from attention_transfer import create_model, prepare_dataloaders, train_at
from attention_transfer.cache.folder import entries
from attention_transfer.cache.records import Records
from attention_transfer.errors import CacheError

pytestmark = pytest.mark.slow

RECIPE = {
    "model": "CifarResNet-8",
    "batch_size": 16,
    "augment": True,
    "augment_views": 2,
    "epochs": 3,
    "lr": 0.05,
    "precision": "fp32",
    "teacher_precision": "fp32",
    "figure_freq": 0,
}


@pytest.fixture
def settings(settings, tmp_path):
    return {**settings, **RECIPE, "cache_dir": str(tmp_path / "cache")}


def new_teacher():
    torch.manual_seed(1)
    return create_model("CifarResNet-8", 10)


@pytest.fixture
def teacher():
    return new_teacher()


def run(settings, teacher, name="run", **changes):
    return train_at({**settings, "experiment_name": name, **changes}, teacher=teacher)


def log_of(settings, name="run"):
    return (Path(settings["log_dir"]) / f"{name}.log").read_text()


def answered(settings, name="run"):
    """(images answered from memory, images that the network was run for) of each epoch."""
    found = re.findall(r"epoch \d+: ([\d,]+) images answered from memory, ([\d,]+) by", log_of(settings, name))
    return [(int(hits.replace(",", "")), int(misses.replace(",", ""))) for hits, misses in found]


def kept(settings, kind):
    """The bytes of the rows of all files of a kind, by name."""
    files = [entry for entry in entries(Path(settings["cache_dir"])) if entry.kind == kind]
    records = {entry.path.name: Records(entry.path, entry.identity) for entry in files}
    return {
        name: [None if file.read(row) is None else bytes(file.read(row)) for row in range(len(file))]
        for name, file in records.items()
    }


def rewrite(settings, kind, change):
    """Put other rows, with right checksums, into the files of a kind."""
    for entry in entries(Path(settings["cache_dir"])):
        if entry.kind == kind:
            records = Records(entry.path, entry.identity)
            rows = [records.read(row).copy() for row in range(len(records))]
            records.clear()
            records.write(range(len(records)), change(rows))


def test_with_k_views_the_teacher_runs_in_the_first_k_epochs_alone(settings, teacher):
    run(settings, teacher)
    images = answered(settings)[0][1]
    assert images == 80
    assert answered(settings) == [(0, images), (0, images), (images, 0)]
    assert "it runs in the first 2 epochs alone" in log_of(settings)


def test_without_augmentation_it_runs_in_the_first_epoch_alone(settings, teacher):
    run(settings, teacher, augment=False)
    assert answered(settings) == [(0, 80), (80, 0), (80, 0)]


@pytest.mark.parametrize("views", [2, "warp"])
def test_a_second_run_with_another_student_seed_beta_and_lr_asks_nothing(settings, teacher, views):
    run(settings, teacher, "first", augment_views=views, epochs=8)
    second = {"model": "WideResNet-10-1", "seed": 7, "beta": 10.0, "lr": 0.01, "batch_size": 7}
    run(settings, teacher, "second", augment_views=views, epochs=8, **second)
    if views == 2:
        assert answered(settings, "second") == [(80, 0)] * 8
        assert "not at all, for all of them are there already" in log_of(settings, "second")
    else:
        assert sum(misses for _, misses in answered(settings, "first")) <= 160
        assert answered(settings, "second")[-1][1] == 0


def other_weights(teacher, settings, tmp_path):
    with torch.no_grad():
        teacher.conv1.weight[0, 0, 0, 0] += 1e-3


def other_buffer(teacher, settings, tmp_path):
    teacher.bn1.running_mean[0] += 1e-3


def other_image(teacher, settings, tmp_path):
    copy = shutil.copytree(settings["data_dir"], tmp_path / "copy")
    shutil.copystat(settings["data_dir"], copy)
    settings["data_dir"] = str(copy)
    file = sorted(copy.glob("3/*.png"))[0]
    file.write_bytes(sorted(copy.glob("5/*.png"))[0].read_bytes())


def same_images_elsewhere(teacher, settings, tmp_path):
    settings["data_dir"] = str(shutil.copytree(settings["data_dir"], tmp_path / "copy"))


CHANGES = {
    "weights": other_weights,
    "a buffer of batch norm": other_buffer,
    "one image": other_image,
    "taps": lambda teacher, settings, _: settings.update(layers=("layer2",)),
    "precision": lambda teacher, settings, _: settings.update(teacher_precision="bf16"),
    "image size": lambda teacher, settings, _: settings.update(image_size=40),
    "shape of the image": lambda teacher, settings, _: settings.update(image_size=(32, 40)),
    "resize": lambda teacher, settings, _: settings.update(resize="crop"),
    "views' seed": lambda teacher, settings, _: settings.update(augment_seed=1),
    "augmentation": lambda teacher, settings, _: settings.update(rotation=5.0),
    "a part of augmentation": lambda teacher, settings, _: settings.update(augmentation=("default", "erasing")),
    "mixup": lambda teacher, settings, _: settings.update(mixup=0.2),
    "mean": lambda teacher, settings, _: settings.update(mean=(0.5, 0.5, 0.5)),
    "number format of maps": lambda teacher, settings, _: settings.update(map_precision="fp32"),
}


@pytest.fixture(scope="module")
def one_view(few_digits, tmp_path_factory):
    """A cache folder with what a run left that saw one view of each image."""
    folder = tmp_path_factory.mktemp("one-view")
    folders = {"cache_dir": "cache", "save_dir": "checkpoints", "log_dir": "logs"}
    here = {key: str(folder / name) for key, name in folders.items()}
    common = {"data_dir": str(few_digits), "image_size": 16, "num_workers": 0, "device": "cpu", "augment_views": 1}
    run({**RECIPE, **common, **here}, new_teacher(), "first", epochs=2)
    return folder / "cache"


@pytest.mark.parametrize("what", CHANGES)
def test_anything_else_is_another_memory(settings, teacher, tmp_path, one_view, what):
    settings["augment_views"] = 1
    shutil.copytree(one_view, settings["cache_dir"])
    CHANGES[what](teacher, settings, tmp_path)
    run(settings, teacher, "second", epochs=2)
    assert answered(settings, "second")[0] == (0, 80)


def test_with_nothing_changed_it_is_the_same_memory(settings, teacher, one_view):
    settings["augment_views"] = 1
    shutil.copytree(one_view, settings["cache_dir"])
    run(settings, teacher, "second", epochs=2)
    assert answered(settings, "second")[0] == (80, 0)


def test_the_same_images_in_another_folder_are_the_same_data(settings, teacher, tmp_path, one_view):
    settings["augment_views"] = 1
    shutil.copytree(one_view, settings["cache_dir"])
    same_images_elsewhere(teacher, settings, tmp_path)
    run(settings, teacher, "second", epochs=2)
    assert answered(settings, "second") == [(80, 0)] * 2


def test_with_hash_files_touched_files_are_the_same_data(settings, teacher, tmp_path):
    settings["augment_views"] = 1
    same_images_elsewhere(teacher, settings, tmp_path)
    run(settings, teacher, "first", epochs=2, hash_files=True)
    for file in (tmp_path / "copy").glob("*/*.png"):
        file.touch()
    run(settings, teacher, "second", epochs=2, hash_files=True)
    assert answered(settings, "second") == [(80, 0)] * 2
    run(settings, teacher, "third", epochs=2)
    assert answered(settings, "third")[0] == (0, 80)


@pytest.mark.parametrize("views", [2, "warp"])
def test_how_a_memory_was_filled_changes_neither_its_bits_nor_the_student(settings, teacher, tmp_path, views):
    settings["augment_views"] = views
    whole = run(settings, teacher, "whole")
    rows = kept(settings, "maps")
    other = {**settings, "cache_dir": str(tmp_path / "other")}
    run(other, teacher, "filling", batch_size=7, seed=3, epochs=1, teacher_cache="on")
    half_filled = run(other, teacher, "half-filled")
    assert_same_weights(half_filled["model"], whole["model"])
    again = run(settings, teacher, "again")
    assert_same_weights(again["model"], whole["model"])
    if views == 2:
        assert kept(other, "maps") == rows


def test_the_memory_says_what_the_live_teacher_says_up_to_rounding(settings, teacher):
    settings["lr"] = 1e-6  # so that rounding does not grow from step to step
    remembered = run(settings, teacher, "remembered", alpha=1.0)
    live = run(settings, teacher, "live", alpha=1.0, teacher_cache="off")
    for ours, theirs in zip(remembered["training_history"], live["training_history"], strict=True):
        assert ours["train_attention"] == pytest.approx(theirs["train_attention"], rel=2e-3)
        assert ours["train_kd"] == pytest.approx(theirs["train_kd"], rel=2e-3)
        assert ours["val_attention"] == pytest.approx(theirs["val_attention"], rel=2e-3)


def test_distilling_later_adds_logits_and_keeps_the_maps(settings, teacher):
    run(settings, teacher, "maps")
    before = kept(settings, "maps")
    assert kept(settings, "logits") == {}
    run(settings, teacher, "logits", alpha=1.0)
    assert answered(settings, "logits")[0] == (0, 80)
    assert kept(settings, "maps") == before
    assert len(kept(settings, "logits")) == len(before)
    run(settings, teacher, "again", alpha=1.0)
    assert answered(settings, "again") == [(80, 0)] * 3


def test_a_damaged_record_is_asked_for_again_and_comes_out_the_same(settings, teacher):
    first = run(settings, teacher, "first")
    before = kept(settings, "maps")
    train = max((entry for entry in entries(Path(settings["cache_dir"])) if entry.kind == "maps"), key=lambda e: e.size)
    raw = bytearray(train.path.read_bytes())
    raw[-1] ^= 1
    train.path.write_bytes(raw)
    second = run(settings, teacher, "second")
    assert [misses for _, misses in answered(settings, "second")] == [0, 1, 0]
    assert kept(settings, "maps") == before
    assert_same_weights(first["model"], second["model"])


def test_a_memory_that_nobody_may_write_is_read_and_what_it_lacks_is_not_kept(settings, teacher):
    run(settings, teacher, "first", epochs=1, teacher_cache="on")
    for entry in entries(Path(settings["cache_dir"])):
        entry.path.chmod(0o444)
    before = {entry.path: entry.path.read_bytes() for entry in entries(Path(settings["cache_dir"]))}
    run(settings, teacher, "second")
    assert answered(settings, "second") == [(80, 0), (0, 80), (80, 0)]
    assert "the memory is read-only" in log_of(settings, "second")
    assert {path: path.read_bytes() for path in before} == before


def test_a_memory_that_says_something_else_than_the_teacher_is_filled_anew(settings, teacher):
    run(settings, teacher, "first")
    before = kept(settings, "maps")
    rewrite(settings, "maps", lambda rows: [content[::-1] for content in rows])
    run(settings, teacher, "second")
    assert "does not say what the teacher says, and is filled anew" in log_of(settings, "second")
    assert answered(settings, "second")[0] == (0, 80)
    assert kept(settings, "maps") == before


def test_logits_that_are_not_the_teachers_are_noticed_too(settings, teacher):
    run(settings, teacher, "first", alpha=1.0)
    before = kept(settings, "logits")
    rewrite(settings, "logits", lambda rows: rows[1:] + rows[:1])
    run(settings, teacher, "second", alpha=1.0)
    assert "does not say what the teacher says, and is filled anew" in log_of(settings, "second")
    assert kept(settings, "logits") == before


@pytest.mark.parametrize("changes", [{"teacher_cache": "off"}, {"cache_limit": 1e-5}, {"pixel_cache": "off"}])
def test_what_can_be_kept_does_not_change_the_student(settings, teacher, changes):
    whole = run(settings, teacher, "whole", alpha=1.0)
    without = run(settings, teacher, "without", alpha=1.0, **changes)
    assert_same_weights(without["model"], whole["model"])


def test_a_run_goes_on_without_its_memory_as_if_it_had_it(settings, teacher, tmp_path):
    whole = run(settings, teacher, "whole")
    run(settings, teacher, "run", save_freq=1)
    middle = tmp_path / "checkpoints" / "run_epoch_1.pth"
    rest = train_at({"resume": str(middle), "teacher_cache": "off", "overwrite": True}, teacher=teacher)
    assert [record["epoch"] for record in rest["training_history"]] == [1, 2, 3]
    assert_same_weights(rest["model"], whole["model"])


def test_a_network_file_system_is_told_and_keeps_nothing(settings, teacher, tmp_path, monkeypatch):
    mount = SimpleNamespace(mountpoint=str(tmp_path / "cache"), fstype="nfs4")
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: [mount])
    run(settings, teacher)
    assert "the teacher runs on the train images in every epoch" in log_of(settings)
    assert "is on a network file system (nfs4), where shared memory maps may tear" in log_of(settings)
    assert not [path for path in Path(settings["cache_dir"]).glob("*") if path.suffix in {".maps", ".pixels"}]
    for setting in ("teacher_cache", "pixel_cache"):
        with pytest.raises(CacheError, match=r"network file system \(nfs4\).*set cache_dir to a local disk"):
            run(settings, teacher, "other", **{setting: "on"})


def test_a_float64_teacher_is_remembered(settings, teacher):
    run(settings, teacher.double(), alpha=1.0)
    assert answered(settings) == [(0, 80), (0, 80), (80, 0)]


def test_loaders_that_tell_no_samples_have_the_teacher_run_and_one_line_says_so(settings, teacher):
    images, labels = torch.rand(40, 3, 32, 32), torch.arange(40) % 10
    batches = [(images[:20], labels[:20]), (images[20:], labels[20:])]
    train_at({**settings, "experiment_name": "run"}, batches, batches, teacher=teacher)
    assert log_of(settings).count("the loader does not tell which samples are in it") == 1
    assert answered(settings) == []


def test_loaders_of_prepare_dataloaders_are_remembered(settings, teacher):
    loaders = prepare_dataloaders(settings["data_dir"], 16, True, 0, image_size=32, augment_views=2)
    train_at({**settings, "experiment_name": "run"}, *loaders, teacher=teacher)
    assert answered(settings) == [(0, 80), (0, 80), (80, 0)]


def test_fresh_views_run_the_teacher_and_the_line_tells_what_the_others_would_save(settings, teacher):
    run(settings, teacher, augment_views=None)
    line = re.search(r"the teacher runs on new views.*", log_of(settings))[0]
    assert "240 images in all; augment_views=4 would run it on 240, augment_views='warp' on at most 160" in line
    assert "answers to the val images are kept" in log_of(settings)


def test_auto_keeps_nothing_that_is_not_used_twice(settings, teacher):
    run(settings, teacher, epochs=2)
    assert "no answer would be used twice" in log_of(settings)
    assert answered(settings) == []


def test_off_keeps_nothing(settings, teacher):
    run(settings, teacher, teacher_cache="off", pixel_cache="off")
    assert not any(Path(settings["cache_dir"]).glob("*.maps"))
    assert not any(Path(settings["cache_dir"]).glob("*.pixels"))


def test_on_says_what_it_lacks_where_the_limit_is_too_low(settings, teacher):
    with pytest.raises(CacheError, match="cache_limit is 1e-05 GB"):
        run(settings, teacher, teacher_cache="on", cache_limit=1e-5, pixel_cache="off")
