"""A map function, a network and an optimizer that a stranger brings, each from outside the package in one place."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attention_transfer import (
    NHWC,
    Architecture,
    ConfigError,
    MapFunction,
    create_model,
    register_network,
    tokens,
    train_at,
)
from attention_transfer.cache.folder import entries
from attention_transfer.features.taps import Taps

pytestmark = pytest.mark.slow

STRONGEST = MapFunction("max of squares over channels", lambda x: x.float().square().amax(dim=1))


@pytest.fixture
def recipe(settings, tmp_path):
    cache = str(tmp_path / "cache")
    numbers = {"precision": "fp32", "teacher_precision": "fp32"}
    return {**settings, **numbers, "model": "CifarResNet-8", "epochs": 2, "cache_dir": cache}


def maps_in(folder):
    return {entry.identity for entry in entries(folder) if entry.kind == "maps"}


def test_a_map_function_of_ones_own_is_what_is_compared_and_has_a_cache_of_its_own(recipe, teacher, tmp_path):
    usual = train_at(recipe, teacher=teacher)
    of_usual = maps_in(tmp_path / "cache")
    own = train_at({**recipe, "experiment_name": "own"}, teacher=teacher, map_function=STRONGEST)
    assert len(maps_in(tmp_path / "cache") - of_usual) == len(of_usual) == 2
    one, other = (results["training_history"][0]["train_attention"] for results in (usual, own))
    assert abs(one - other) > 0.05 * one
    # live, the same comes out as from the cache
    live = {**recipe, "experiment_name": "live", "teacher_cache": "off"}
    again = train_at(live, teacher=teacher, map_function=STRONGEST)
    assert [record["train_attention"] for record in again["training_history"]] == [
        record["train_attention"] for record in own["training_history"]
    ]


def test_a_map_function_of_another_shape_is_an_error(recipe, teacher):
    with pytest.raises(ValueError, match=r"'mean' makes \(\d+, 16\) of features"):
        train_at(recipe, teacher=teacher, map_function=MapFunction("mean", lambda x: x.mean(dim=(2, 3))))


class Tokens(nn.Module):
    """A transformer in miniature: patches of 4 pixels behind a class token, [B, 1 + 64, C] between its blocks."""

    def __init__(self, num_classes):
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 4, stride=4)
        self.class_token = nn.Parameter(torch.zeros(1, 1, 16))
        self.block1 = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.block2 = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, num_classes)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1)
        return self.head(self.block2(self.block1(x))[:, 0])


class ChannelsBehind(nn.Module):
    """A network whose stages put out [B, H, W, C]."""

    def __init__(self, num_classes):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.stage = nn.Linear(8, 12)
        self.head = nn.Linear(12, num_classes)

    def forward(self, x):
        return self.head(self.stage(self.conv(x).permute(0, 2, 3, 1)).relu().mean(dim=(1, 2)))


@pytest.fixture(scope="module", autouse=True)
def families():
    def family(name, build, taps, readout):
        architecture = Architecture(name, build, taps, "head", lambda shapes: [name], readout=readout)
        register_network(architecture, example=name, summary="a stranger's")

    family("StrangeTokens", Tokens, ("block1", "block2"), tokens(8, 8, prefix=1))
    family("StrangeChannels", ChannelsBehind, ("stage",), NHWC)


@pytest.mark.parametrize("name", ["StrangeTokens", "StrangeChannels"])
def test_a_registered_network_of_another_layout_is_trained_by_name_as_student_and_as_teacher(recipe, name, tmp_path):
    recipe = {**recipe, "image_size": 32}
    as_teacher = train_at({**recipe, "model": name, "experiment_name": "teacher", "epochs": 1})
    torch.save(as_teacher["model"].state_dict(), tmp_path / "bare.pth")
    by_file = {**recipe, "teacher_model": str(tmp_path / "bare.pth"), "alpha": 0.5}
    assert train_at(by_file)["training_history"][-1]["train_attention"] > 0
    student = {**recipe, "model": name, "teacher_model": str(tmp_path / "bare.pth"), "experiment_name": "student"}
    history = train_at(student)["training_history"]
    assert "train_attention_stage_0" in history[0]


def test_tokens_and_channels_behind_are_read_where_they_lie():
    network, image = create_model("StrangeTokens", 3).eval(), torch.zeros(1, 3, 32, 32)
    image[..., 8:12, 20:24] = 9.0  # the patch in row 2, column 5
    with torch.no_grad(), Taps(network, ["block1"]) as taps:
        network(image)
        bright = taps.features[0]
        network(torch.zeros(1, 3, 32, 32))
        change = (taps.features[0] - bright).square().sum(dim=1)[0]
    assert divmod(int(change.argmax()), 8) == (2, 5)
    other = create_model("StrangeChannels", 3)
    with Taps(other, ["stage"]) as taps:
        other(torch.rand(2, 3, 32, 20))
    assert taps.features[0].shape == (2, 12, 16, 10)


def test_tokens_of_another_number_than_the_grid_are_an_error():
    network = create_model("StrangeTokens", 3)
    what = r"module 'block1' puts out a tensor of shape \(1, 145, 16\); attention needs \[B, 1 \+ 8 x 8, C\]"
    with Taps(network, ["block1"]), pytest.raises(ConfigError, match=what):
        network(torch.rand(1, 3, 48, 48))


def test_an_optimizer_and_a_schedule_of_ones_own_resume_to_the_bit(recipe, tmp_path):
    own = {
        "optimizer": lambda groups: torch.optim.AdamW(groups, lr=1e-3),
        "scheduler": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=3),
    }
    whole = train_at({**recipe, "epochs": 3}, **own)["training_history"]
    assert [record["lr"] for record in whole] == pytest.approx([1e-3, 0.75e-3, 0.25e-3])
    train_at({**recipe, "experiment_name": "parted"}, **own)
    resume = {"resume": str(tmp_path / "checkpoints" / "parted_last.pth"), "epochs": 3}
    rest = train_at(resume, **own)["training_history"]
    assert [record["train_loss"] for record in rest] == [record["train_loss"] for record in whole]


def test_something_else_than_an_optimizer_is_refused(recipe):
    with pytest.raises(ConfigError, match="optimizer made a dict"):
        train_at(recipe, optimizer=lambda groups: {})
    with pytest.raises(ConfigError, match="scheduler made a NoneType"):
        train_at(recipe, scheduler=lambda optimizer: None)
