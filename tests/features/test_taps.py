"""Listening to networks without changing them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from attention_transfer import ConfigError, create_model
from attention_transfer.features.stages.choose import choose_stages, split_layers
from attention_transfer.features.taps import Taps
from attention_transfer.modules import undisturbed

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


class Plain(nn.Module):
    """A network that nobody registered: no layer names, no features method."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.down = nn.ModuleList(nn.Conv2d(8, 8, 3, stride=2, padding=1) for _ in range(5))
        self.act = nn.ReLU()
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.first(x)
        for conv in self.down:
            x = conv(x)
        return self.head(self.act(x).mean(dim=(2, 3)))


def hooks_of(model):
    return sum(len(module._forward_hooks) for module in model.modules())


def test_taps_collect_outputs_in_the_order_asked_for():
    model = create_model("ResNet18", 10).eval()
    with Taps(model, ["layer3", "layer1"]) as taps:
        model(IMAGES)
    assert [tuple(x.shape) for x in taps.features] == [(2, 256, 4, 4), (2, 64, 16, 16)]


def test_hooks_are_gone_after_the_context_and_after_an_error():
    model = create_model("ResNet18", 10)
    with Taps(model, ["layer1"]):
        assert hooks_of(model) == 1
    with pytest.raises(RuntimeError), Taps(model, ["layer1"]):
        model(torch.zeros(2, 5, 64, 64))
    assert hooks_of(model) == 0


def test_hooks_that_stay_are_gone_when_the_taps_are_closed():
    model = create_model("ResNet18", 10)
    taps = Taps(model, ["layer1"], stay=True)
    for _ in range(2):
        with taps:
            model(IMAGES)
        assert hooks_of(model) == 1
    taps.close()
    taps.close()
    assert hooks_of(model) == 0


def test_outputs_that_were_taken_are_not_held_and_not_handed_out_again():
    model = create_model("ResNet18", 10)
    taps = Taps(model, ["layer1"])
    with taps:
        model(IMAGES)
    (features,) = taps.take()
    assert features.shape == (2, 64, 16, 16)
    with pytest.raises(ConfigError, match="'layer1' took no part"):
        taps.take()
    with taps:
        model(IMAGES[:1])
    assert taps.take()[0].shape == (1, 64, 16, 16)


def test_a_module_that_is_not_there_is_an_error_with_those_that_are():
    with pytest.raises(ConfigError, match=r"'layer9'.*layer4"):
        Taps(create_model("ResNet18", 10), ["layer9"])


def test_a_module_that_puts_out_no_map_is_an_error():
    model = create_model("ResNet18", 10)
    with pytest.raises(ConfigError, match=r"'fc'.*\(2, 10\)"), Taps(model, ["fc"]):
        model(IMAGES)


def test_a_module_that_does_not_run_is_an_error():
    model = Plain()
    model.unused = nn.Conv2d(3, 3, 1)
    with Taps(model, ["unused"]) as taps:
        model(IMAGES)
    with pytest.raises(ConfigError, match="'unused' took no part"):
        _ = taps.features


def test_taps_look_through_compile_and_parallel_wrappers():
    model = create_model("ResNet18", 10).eval()
    with Taps(nn.DataParallel(model), ["layer1"]) as taps:
        model(IMAGES)
    assert taps.features[0].shape == (2, 64, 16, 16)


class Resized(nn.Module):
    """One convolution halves the map until it is 8 pixels wide: once for images of 16, twice for those of 32."""

    def __init__(self) -> None:
        super().__init__()
        self.shrink = nn.Conv2d(3, 3, 3, stride=2, padding=1)
        self.passes_finished = 0

    def forward(self, x):
        while x.shape[-1] > 8:
            x = self.shrink(x)
        self.passes_finished += 1
        return x.mean(dim=(2, 3))


def test_a_pass_ends_with_the_last_tapped_module_once_a_whole_pass_was_seen():
    model, wider = create_model("ResNet18", 10).eval(), torch.cat([IMAGES, IMAGES], dim=3)
    later = []
    model.layer3.register_forward_hook(lambda module, args, output: later.append("layer3"))
    with torch.no_grad(), Taps(model, ["layer2", "layer1"], stop=True) as taps:
        assert taps.run(IMAGES).shape == (2, 10)
        whole = taps.features
        assert later == ["layer3"]
        assert taps.run(IMAGES) is None
        assert later == ["layer3"]
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(taps.features, whole, strict=True))
        assert taps.run(wider) is not None
        assert taps.run(wider) is None
    assert hooks_of(model) == 1
    assert model(IMAGES).shape == (2, 10)


def test_what_was_seen_of_a_network_is_known_when_the_context_opens_again():
    model = create_model("CifarResNet-8", 10)
    taps = Taps(model, ["layer1", "layer1"], stop=True)
    with taps:
        assert taps.run(IMAGES) is not None
    assert hooks_of(model) == 0
    with taps:
        assert taps.run(IMAGES) is None
        assert torch.equal(*taps.features)
    assert hooks_of(model) == 0


def test_no_pass_is_cut_short_where_a_tapped_module_runs_again():
    model = Resized()
    with torch.no_grad(), Taps(model, ["shrink"], stop=True) as taps:
        for finished in (1, 2):
            assert taps.run(IMAGES[..., :32, :32]) is not None
            assert taps.features[0].shape[-1] == 8
            assert model.passes_finished == finished
        assert taps.run(IMAGES[..., :16, :16]) is not None
        assert taps.run(IMAGES[..., :16, :16]) is None


def test_without_stop_every_pass_is_whole():
    with Taps(create_model("CifarResNet-8", 10), ["layer1"]) as taps:
        assert [taps.run(IMAGES).shape for _ in range(2)] == [(2, 10), (2, 10)]


def test_passes_are_cut_short_inside_wrappers_and_after_an_error():
    model = create_model("CifarResNet-8", 10)
    with Taps(nn.DataParallel(nn.Sequential(model)), ["0.layer1"], stop=True) as taps:
        taps.run(IMAGES)
        with pytest.raises(RuntimeError):
            taps.run(torch.zeros(2, 5, 64, 64))
        assert taps.run(IMAGES) is None
        assert model(IMAGES).shape == (2, 10)
    assert hooks_of(model) == 0


def test_a_silent_module_is_an_error_before_any_pass_is_cut_short():
    model = Plain()
    model.unused = nn.Conv2d(3, 3, 1)
    with Taps(model, ["first", "unused"], stop=True) as taps, pytest.raises(ConfigError, match="'unused' took no part"):
        taps.run(IMAGES)


def test_the_stages_of_an_unknown_network_are_its_deepest_four_resolutions():
    model = Plain()
    assert choose_stages(model, IMAGES).names == ("down.1", "down.2", "down.3", "act")
    assert hooks_of(model) == 0


def test_stages_are_found_anew_for_images_of_another_size():
    model = Plain()
    assert len(choose_stages(model, IMAGES[..., :4, :4]).names) == 1
    assert len(choose_stages(model, IMAGES).names) == 4
    assert len(choose_stages(model, IMAGES[..., :16, :64]).names) == 4


def test_an_unknown_network_without_maps_is_an_error_that_names_the_key():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 4))
    with pytest.raises(ConfigError, match="'layers'"):
        choose_stages(flat, IMAGES)


def test_the_stages_of_our_networks_are_known():
    assert choose_stages(create_model("ResNet50", 10), IMAGES).names == ("layer1", "layer2", "layer3", "layer4")
    assert len(choose_stages(create_model("CifarResNet-20", 10), IMAGES).names) == 3
    assert choose_stages(create_model("ResNet50", 10), IMAGES, ["layer2"]).names == ("layer2",)


def test_layers_name_modules_of_both_sides():
    assert split_layers(None) == (None, None)
    assert split_layers(["a", "b:c.0"]) == (("a", "b"), ("a", "c.0"))


@pytest.mark.parametrize("layers", [[], ["a:b:c"], [":b"], [""]])
def test_layers_that_name_nothing_are_an_error(layers):
    with pytest.raises(ConfigError, match="layers"):
        split_layers(layers)


def test_an_undisturbed_network_keeps_every_modules_mode_and_every_buffer():
    model = create_model("MultiBranchNet", 10)
    next(model.children()).eval()
    modes = [module.training for module in model.modules()]
    buffers = copy.deepcopy(dict(model.named_buffers()))
    with undisturbed(model):
        assert not any(module.training for module in model.modules())
        assert not model(IMAGES).requires_grad
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
