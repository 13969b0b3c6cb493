"""Images that do not fit a network are told by layer, channels and shapes, with the remedy, before the first step."""

from __future__ import annotations

import logging
import random

import numpy as np
import pytest
import torch
from support.runs import Unsized, bring, tensors
from torch import nn

from attention_transfer import (
    ConfigError,
    DataError,
    TeacherError,
    compute_at_loss,
    evaluate_model,
    extract_attention_maps,
    train_at,
    train_epoch,
    validate,
)
from attention_transfer.networks.input_shapes import find_misfit
from attention_transfer.training.setup.checking import check_fit, check_trainable


class Small(nn.Module):
    """A network of a user's for images of so many channels and 16 pixels."""

    def __init__(self, channels=3, values=4):
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.pool = nn.AvgPool2d(4)
        self.head = nn.Linear(4 * values, 4)

    def forward(self, x):
        return self.head(self.pool(torch.relu(self.norm(self.conv(x)))).flatten(1))


def small(channels=3):
    torch.manual_seed(0)
    return Small(channels, values=4)


def grey_tensors(count=20):
    x, y = tensors(count)
    return x.mean(1, keepdim=True), y


ONE_CHANNEL = (
    r"the student Small cannot take images of shape \[\d+, 1, 16, 16\]: its first layer 'conv' \(Conv2d\) takes 3 "
    r"channels, and 1 came; repeat the grey channel, as images\.expand\(-1, 3, -1, -1\)"
)


@pytest.mark.parametrize("has_val", [False, True])
def test_a_one_channel_loader_is_told_before_training_with_the_way_to_three_channels(settings, tmp_path, has_val):
    x, y = grey_tensors()
    with pytest.raises(DataError, match=ONE_CHANNEL):
        train_at(bring(settings), [(x, y)], [(x, y)] if has_val else None, student=small(), teacher=small())
    assert not (tmp_path / "logs").exists()


def test_a_one_channel_loader_that_is_read_only_in_training_is_told_all_the_same(settings):
    x, y = grey_tensors()
    with pytest.raises(DataError, match=ONE_CHANNEL):
        train_at({**bring(settings), "num_classes": 4}, Unsized([(x, y)]), student=small(), teacher=small())


def test_what_the_remedies_say_works(settings):
    x, y = grey_tensors()
    repeated = x.expand(-1, 3, -1, -1)
    assert train_at(bring(settings), [(repeated, y)], student=small())["status"] == "finished"
    nhwc = tensors()[0].permute(0, 2, 3, 1)
    restored = nhwc.permute(0, 3, 1, 2)
    from torchvision.transforms import Grayscale

    teacher = nn.Sequential(Grayscale(), small(1))
    config = {**bring(settings), "overwrite": True}
    assert train_at(config, [(restored, y)], student=small(), teacher=teacher)["status"] == "finished"


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_that_come_last_are_told_with_the_permutation(settings, channels):
    x, y = tensors()
    x = torch.rand(20, 16, 16, channels)
    with pytest.raises(
        DataError,
        match=rf"\[20, 16, 16, {channels}\]: its first layer 'conv1' \(Conv2d\) takes 3 channels, and 16 came; give "
        r"images as \[B, C, H, W\]: images\.permute\(0, 3, 1, 2\)",
    ):
        train_at(bring(settings), [(x, y)])


def test_a_one_channel_teacher_beside_a_student_of_three_is_told_as_the_teachers(settings, tmp_path):
    x, y = tensors()
    with pytest.raises(
        TeacherError,
        match=r"the teacher Small cannot take .*takes 1 channel, and 3 came; take a teacher for images of 3 channels, "
        r"or .*nn\.Sequential\(torchvision\.transforms\.Grayscale\(\), teacher\)",
    ):
        train_at(bring(settings), [(x, y)], student=small(), teacher=small(1))
    assert not (tmp_path / "logs").exists()


def test_a_one_channel_teacher_on_our_own_images_is_told_before_training(settings, tmp_path):
    with pytest.raises(TeacherError, match=r"\[4, 3, 16, 16\].*takes 1 channel, and 3 came"):
        train_at({**settings, "model": "CifarResNet-8"}, teacher=small(1))
    assert not (tmp_path / "logs").exists()


def test_a_one_channel_teacher_that_is_first_run_in_training_is_told_all_the_same(settings):
    x, y = tensors()
    with pytest.raises(TeacherError, match="takes 1 channel, and 3 came"):
        train_at({**bring(settings), "num_classes": 4}, Unsized([(x, y)]), student=small(), teacher=small(1))


def test_a_one_channel_student_on_colours_is_told(settings):
    with pytest.raises(DataError, match=r"takes 1 channel, and 3 came; make the images grey.*Grayscale\(\)"):
        train_at(bring(settings), [tensors()], student=small(1))


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda net: torch.compile(net, backend="eager")])
def test_a_wrapped_network_is_looked_into(wrap):
    misfit = find_misfit(wrap(small()), grey_tensors()[0], "student")
    assert "takes 3 channels, and 1 came" in str(misfit)


def test_every_entry_tells_of_a_misfit():
    (x, y), net = grey_tensors(), small()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for call in (
        lambda: train_epoch(net, None, [(x, y)], optimizer, "cpu", {}),
        lambda: train_epoch(net, small(), [(x, y)], optimizer, "cpu", {}),
        lambda: validate(net, small(), [(x, y)], "cpu", {}),
        lambda: compute_at_loss(net, small(), x, y),
        lambda: evaluate_model(net, [(x, y)]),
        lambda: extract_attention_maps(net, x),
    ):
        with pytest.raises(DataError, match=r"cannot take images .*takes 3 channels, and 1 came"):
            call()
    with pytest.raises(TeacherError, match="takes 1 channel, and 3 came"):
        compute_at_loss(net, small(1), tensors()[0], y)


def test_images_of_another_size_are_told_by_the_layer_that_they_do_not_fit():
    misfit = find_misfit(small(), torch.rand(2, 3, 64, 64), "student")
    assert "its layer 'head' (Linear) takes 16 values, and 256 came; give images of the size" in str(misfit)


def test_a_network_that_is_a_single_layer_is_told_without_a_name():
    misfit = find_misfit(nn.Sequential(nn.Flatten(), nn.Linear(768, 4)), grey_tensors()[0], "student")
    assert "its first layer '1' (Linear) takes 768 values, and 256 came" in str(misfit)
    assert "its first layer (Conv2d) takes 3 channels" in str(find_misfit(nn.Conv2d(3, 4, 3), grey_tensors()[0], "x"))


class Broken(Small):
    def forward(self, x):
        raise RuntimeError("something else")


def test_an_error_of_another_origin_is_the_users_own(settings):
    x, y = tensors()
    assert find_misfit(Broken(), x, "student") is None
    with pytest.raises(RuntimeError, match="something else"):
        train_at(bring(settings), [(x, y)], student=Broken())


class Greys(Small):
    """Makes its three channels itself."""

    def forward(self, x):
        return super().forward(x.expand(-1, 3, -1, -1))


def test_a_network_that_takes_one_channel_in_its_own_way_is_not_refused(settings):
    x, y = grey_tensors()
    assert train_at(bring(settings), [(x, y)], [(x, y)], student=Greys(), teacher=Greys())["status"] == "finished"


class Noisy(Small):
    """Draws random numbers in eval mode too."""

    def forward(self, x):
        return super().forward(x + 0.01 * torch.rand_like(x)) + random.random() + np.random.rand()


def test_a_check_leaves_networks_and_random_generators_as_they_were():
    net, (x, _) = Noisy().train(), tensors()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    check_fit(net, net, x)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(module.training for module in net.modules())
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_lazy_layers_are_not_settled_by_a_check():
    net = nn.Sequential(nn.LazyConv2d(4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4))
    check_fit(net, None, tensors()[0])
    assert net[0].in_channels == 0


def test_a_student_without_anything_to_train_is_refused(settings, tmp_path):
    frozen = small().requires_grad_(False)
    with pytest.raises(ConfigError, match=r"nothing to train: all 6 parameters of the student Small are frozen"):
        train_at(bring(settings), [tensors()], student=frozen)
    with pytest.raises(ConfigError, match=r"nothing to train: the student Flatten has no parameters"):
        train_at(bring(settings), [tensors()], student=nn.Flatten())
    assert not (tmp_path / "logs").exists()
    with pytest.raises(ConfigError, match="nothing to train"):
        train_epoch(frozen, None, [tensors()], torch.optim.SGD(frozen.parameters(), 0.1), "cpu", {})
    assert validate(frozen, None, [tensors()], "cpu", {})["loss"] > 0


def test_a_student_of_which_a_part_is_frozen_is_trained(settings):
    net = small().requires_grad_(False)
    net.head.requires_grad_(True)
    check_trainable(net)
    assert train_at(bring(settings), [tensors()], student=net)["status"] == "finished"


@pytest.mark.parametrize("loader", ["list", "unsized"])
def test_pixels_from_0_to_255_are_said_once_in_a_run(settings, caplog, loader):
    x, y = tensors()
    batches = [((x * 255).round(), y)] * 3
    chosen = batches if loader == "list" else Unsized(batches)
    with caplog.at_level(logging.WARNING, "attention_transfer"):
        train_at({**bring(settings), "num_classes": 4, "epochs": 2, "lr": 1e-6}, chosen, chosen, chosen)
    said = [record.getMessage() for record in caplog.records if "[0, 1]" in record.getMessage()]
    assert len(said) == 1
    assert "the images have whole numbers from 0 to 255" in said[0]
    assert "divide them by 255 and normalise" in said[0]


def test_normalised_images_and_those_in_0_to_1_are_nothing_to_speak_of(settings, caplog):
    x, y = tensors()
    for images in (x, (x - 0.45) / 0.22, (x > 0.5).float()):
        train_at({**bring(settings), "overwrite": True}, [(images, y)])
    assert "where networks expect" not in caplog.text
