"""The CIFAR networks of RepDistiller and mdistiller: their files are recognised, and our networks compute the same."""

from __future__ import annotations

import argparse

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from attention_transfer import ConfigError, create_model, load_teacher_model
from attention_transfer.features.taps import Taps
from attention_transfer.networks.registry import card_of, taps_of

RESNETS = {
    "resnet8": ("CifarResNetB-8", 1, (16, 16, 32, 64), 100),
    "resnet20": ("CifarResNetB-20", 3, (16, 16, 32, 64), 100),
    "resnet56": ("CifarResNetB-56", 9, (16, 16, 32, 64), 10),
    "resnet110": ("CifarResNetB-110", 18, (16, 16, 32, 64), 10),
    "resnet8x4": ("CifarResNetB-8x4", 1, (32, 64, 128, 256), 100),
    "resnet32x4": ("CifarResNetB-32x4", 5, (32, 64, 128, 256), 100),
    "resnet38x2": ("CifarResNetB-38x2", 6, (16, 32, 64, 128), 100),
}
"""By their name: ours, blocks in a stage, channels of the first convolution and of the stages, classes."""
WIDE = {
    "wrn_40_2": ("WideResNet-40-2", 6, 2),
    "wrn_40_1": ("WideResNet-40-1", 6, 1),
    "wrn_16_2": ("WideResNet-16-2", 2, 2),
    "wrn_16_1": ("WideResNet-16-1", 2, 1),
}
"""By their name: ours, blocks in a group, width."""


class File(dict):
    """A state_dict with the keys and shapes of their code, filled at random."""

    def __init__(self):
        super().__init__()
        self.random = torch.Generator().manual_seed(0)

    def conv(self, name, width_in, width, kernel):
        fan = width_in * kernel**2
        self[f"{name}.weight"] = torch.randn(width, width_in, kernel, kernel, generator=self.random) * (2 / fan) ** 0.5

    def norm(self, name, width):
        self[f"{name}.weight"] = 1 + 0.1 * torch.randn(width, generator=self.random)
        self[f"{name}.bias"] = 0.1 * torch.randn(width, generator=self.random)
        self[f"{name}.running_mean"] = 0.1 * torch.randn(width, generator=self.random)
        self[f"{name}.running_var"] = 0.5 + torch.rand(width, generator=self.random)
        self[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def linear(self, name, features, classes):
        self[f"{name}.weight"] = 0.1 * torch.randn(classes, features, generator=self.random)
        self[f"{name}.bias"] = 0.1 * torch.randn(classes, generator=self.random)


def resnet_file(blocks, widths, classes):
    file = File()
    file.conv("conv1", 3, widths[0], 3)
    file.norm("bn1", widths[0])
    for stage in (1, 2, 3):
        for block in range(blocks):
            name, width_in = f"layer{stage}.{block}", widths[stage - 1] if block == 0 else widths[stage]
            file.conv(f"{name}.conv1", width_in, widths[stage], 3)
            file.norm(f"{name}.bn1", widths[stage])
            file.conv(f"{name}.conv2", widths[stage], widths[stage], 3)
            file.norm(f"{name}.bn2", widths[stage])
            if block == 0 and (stage > 1 or width_in != widths[stage]):
                file.conv(f"{name}.downsample.0", width_in, widths[stage], 1)
                file.norm(f"{name}.downsample.1", widths[stage])
    file.linear("fc", widths[3], classes)
    return file


def wide_file(blocks, width, classes=100):
    file, widths = File(), [16, 16 * width, 32 * width, 64 * width]
    file.conv("conv1", 3, 16, 3)
    for group in (1, 2, 3):
        for block in range(blocks):
            name, width_in = f"block{group}.layer.{block}", widths[group - 1] if block == 0 else widths[group]
            file.norm(f"{name}.bn1", width_in)
            file.conv(f"{name}.conv1", width_in, widths[group], 3)
            file.norm(f"{name}.bn2", widths[group])
            file.conv(f"{name}.conv2", widths[group], widths[group], 3)
            if width_in != widths[group]:
                file.conv(f"{name}.convShortcut", width_in, widths[group], 1)
    file.norm("bn1", widths[3])
    file.linear("fc", widths[3], classes)
    return file


def conv(file, name, x, stride=1):
    weight = file[f"{name}.weight"]
    return F.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2)


def norm(file, name, x):
    mean, var = file[f"{name}.running_mean"], file[f"{name}.running_var"]
    return F.batch_norm(x, mean, var, file[f"{name}.weight"], file[f"{name}.bias"])


def resnet_reference(file, blocks, x):
    """Their forward pass, written out: the outputs of the three stages, and the logits."""
    x, stages = F.relu(norm(file, "bn1", conv(file, "conv1", x))), []
    for stage in (1, 2, 3):
        for block in range(blocks):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            out = F.relu(norm(file, f"{name}.bn1", conv(file, f"{name}.conv1", x, stride)))
            out = norm(file, f"{name}.bn2", conv(file, f"{name}.conv2", out))
            if f"{name}.downsample.0.weight" in file:
                x = norm(file, f"{name}.downsample.1", conv(file, f"{name}.downsample.0", x, stride))
            x = F.relu(out + x)
        stages.append(x)
    pooled = F.avg_pool2d(x, 8).flatten(1)
    return stages, F.linear(pooled, file["fc.weight"], file["fc.bias"])


def wide_reference(file, blocks, x):
    """Their forward pass, written out: the outputs of the three groups, and the logits."""
    x, stages = conv(file, "conv1", x), []
    for group in (1, 2, 3):
        for block in range(blocks):
            name, stride = f"block{group}.layer.{block}", 2 if group > 1 and block == 0 else 1
            activated = F.relu(norm(file, f"{name}.bn1", x))
            out = F.relu(norm(file, f"{name}.bn2", conv(file, f"{name}.conv1", activated, stride)))
            out = conv(file, f"{name}.conv2", out)
            changes = f"{name}.convShortcut.weight" in file
            x = out + (conv(file, f"{name}.convShortcut", activated, stride) if changes else x)
        stages.append(x)
    pooled = F.avg_pool2d(F.relu(norm(file, "bn1", x)), 8).flatten(1)
    return stages, F.linear(pooled, file["fc.weight"], file["fc.bias"])


def agree(teacher, stages, logits, images):
    with torch.no_grad(), Taps(teacher, taps_of(teacher)) as taps:
        found = [*taps_outputs(teacher, images, taps)]
    for one, other in zip(found, [*stages, logits], strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()


def taps_outputs(teacher, images, taps):
    logits = teacher(images)
    return [*taps.features, logits]


@pytest.mark.parametrize("theirs", RESNETS)
def test_a_resnet_of_repdistiller_is_recognised_and_computes_what_theirs_does(tmp_path, theirs):
    name, blocks, widths, classes = RESNETS[theirs]
    file = resnet_file(blocks, widths, classes)
    torch.save({"epoch": 240, "model": dict(file), "best_acc": np.float64(72.5)}, tmp_path / f"{theirs}.pth")
    teacher = load_teacher_model(tmp_path / f"{theirs}.pth", device="cpu")
    assert (card_of(teacher).name, card_of(teacher).num_classes) == (name, classes)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    agree(teacher, *resnet_reference(file, blocks, images), images)


@pytest.mark.parametrize("theirs", WIDE)
def test_a_wide_resnet_of_repdistiller_is_recognised_and_computes_what_theirs_does(tmp_path, theirs):
    name, blocks, width = WIDE[theirs]
    file = wide_file(blocks, width)
    torch.save({"opt": argparse.Namespace(lr=0.05), "model": dict(file), "optimizer": {}}, tmp_path / "wrn_last.pth")
    teacher = load_teacher_model(tmp_path / "wrn_last.pth", device="cpu")
    assert (card_of(teacher).name, card_of(teacher).num_classes) == (name, 100)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    agree(teacher, *wide_reference(file, blocks, images), images)


@pytest.mark.parametrize("theirs", ["resnet8", "resnet8x4", "resnet38x2"])
def test_our_network_has_the_very_keys_and_shapes_of_theirs(theirs):
    name, blocks, widths, classes = RESNETS[theirs]
    here = {key: tuple(tensor.shape) for key, tensor in create_model(name, classes).state_dict().items()}
    assert here == {key: tuple(tensor.shape) for key, tensor in resnet_file(blocks, widths, classes).items()}


@pytest.mark.parametrize(("name", "parameters"), [("CifarResNetB-8x4", 1_233_540), ("CifarResNetB-32x4", 7_433_860)])
def test_the_wide_ones_have_as_many_parameters_as_the_papers_say(name, parameters):
    assert sum(parameter.numel() for parameter in create_model(name, 100).parameters()) == parameters


def test_a_name_is_found_in_any_case_and_refused_for_a_width_that_nobody_has():
    assert card_of(create_model("cifarresnetb-08X4")).name == "CifarResNetB-8x4"
    assert card_of(create_model("CIFARRESNETB-14")).name == "CifarResNetB-14"
    with pytest.raises(ConfigError, match=r"no network is called 'CifarResNetB-8x3'.*CifarResNetB-8x4"):
        create_model("CifarResNetB-8x3")
    with pytest.raises(ConfigError, match=r"CifarResNetB-9x4: the depth must be 6n \+ 2"):
        create_model("CifarResNetB-9x4")


def test_both_kinds_of_shortcut_are_told_apart(tmp_path):
    for name in ("CifarResNet-20", "CifarResNetB-20"):
        torch.save(create_model(name, 5).state_dict(), tmp_path / "t.pth")
        assert card_of(load_teacher_model(tmp_path / "t.pth", device="cpu")).name == name


def test_a_file_of_two_spellings_at_once_is_not_recognised(tmp_path):
    file = wide_file(1, 1)
    file["bn.weight"] = file["bn1.weight"]
    torch.save(dict(file), tmp_path / "t.pth")
    with pytest.raises(ValueError, match="fits no registered network"):
        load_teacher_model(tmp_path / "t.pth", device="cpu")
