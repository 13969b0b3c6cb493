"""Networks of timm and torchvision: attention is read from the stages that the library documents, or refused."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn

from attention_transfer.errors import ConfigError
from attention_transfer.features.stages.choose import choose_stages
from attention_transfer.features.stages.libraries import TIMM, TORCHVISION
from attention_transfer.features.taps import Taps
from benchmarks.measuring.rightness import judge, unlike_documented

pytestmark = pytest.mark.slow

SIDE = 64


def images(count=2, side=SIDE, width=None):
    torch.manual_seed(1)
    coarse = torch.rand(count, 3, 8, 8)
    return torch.nn.functional.interpolate(coarse, (side, width or side), mode="bicubic") - 0.5


def timm_network(name, **options):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=4, **options).eval()


SMALL_VIT = {"img_size": SIDE, "depth": 5, "embed_dim": 48, "num_heads": 3}

FAMILIES = {
    "resnet18d": {},
    "legacy_seresnet18": {},
    "densenet121": {"growth_rate": 8},
    "efficientnet_b0": {},
    "test_convnext": {},
    "regnetx_002": {},
    "mobilenetv3_small_050": {},
    "mobilevit_xxs": {},
    "pvt_v2_b0": {},
    "swin_tiny_patch4_window7_224": {"img_size": SIDE, "depths": (1, 1, 2, 1), "embed_dim": 24, "window_size": 4},
    "hrnet_w18_small": {},
    "test_coatnet": {"img_size": SIDE},
    "deit_tiny_patch16_224": SMALL_VIT,
    "vit_small_patch14_reg4_dinov2": SMALL_VIT | {"img_size": 56},
    "vit_small_patch16_dinov3": SMALL_VIT | {"num_heads": 2},
    "eva02_tiny_patch14_224": SMALL_VIT | {"img_size": 56},
    "cait_xxs24_224": SMALL_VIT,
    "xcit_nano_12_p8_224": {"img_size": SIDE, "depth": 4},
    "volo_d1_224": {"img_size": SIDE},
    "mvitv2_tiny": {"img_size": SIDE},
    "twins_svt_small": {"img_size": SIDE},
    "crossvit_tiny_240": {},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_network_of_timm_is_tapped_where_timm_documents_its_stages(name):
    network = timm_network(name, **FAMILIES[name])
    side = 240 if "crossvit" in name else FAMILIES[name].get("img_size", SIDE)
    stages = choose_stages(network, images(1, side))
    assert stages.source == TIMM
    assert list(unlike_documented(network, stages, images(2, side).flip(3))) == []
    assert len({stage.label for stage in stages.stages}) == len(stages.stages) >= 2


STAGES_OF_TORCHVISION = {
    "resnet18": ("layer1", "layer2", "layer3", "layer4"),
    "mobilenet_v3_small": ("features.1", "features.3", "features.8", "features.11"),
    "efficientnet_b0": ("features.2", "features.3", "features.5", "features.7"),
    "shufflenet_v2_x0_5": ("maxpool", "stage2", "stage3", "stage4"),
    "squeezenet1_1": ("features.1", "features.4", "features.7", "features.12"),
    "googlenet": ("conv3", "inception3b", "inception4e", "inception5b"),
}


@pytest.mark.parametrize("name", STAGES_OF_TORCHVISION)
def test_a_network_of_torchvision_is_tapped_where_our_table_says(name):
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    network = torchvision.models.get_model(name, num_classes=4, **options).eval()
    stages = choose_stages(network, images(1, 96))
    assert stages.source == TORCHVISION
    assert stages.names == STAGES_OF_TORCHVISION[name]
    assert list(unlike_documented(network, stages, images(2, 96))) == []


def test_swin_of_torchvision_is_read_with_channels_last():
    network = torchvision.models.SwinTransformer([4, 4], 24, [1, 1, 1, 1], [2, 2, 2, 2], [4, 4], num_classes=4).eval()
    stages = choose_stages(network, images(1, 64, 96))
    assert [stage.readout.name for stage in stages.stages] == ["NHWC"] * 4
    assert [stage.size for stage in stages.stages] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert list(unlike_documented(network, stages, images(2, 64, 96))) == []


def test_a_vision_transformer_of_torchvision_is_tapped_at_four_equal_depths():
    network = torchvision.models.VisionTransformer(64, 16, 8, 2, 32, 64, num_classes=4).eval()
    stages = choose_stages(network, images(1))
    assert stages.names == tuple(f"encoder.layers.encoder_layer_{i}" for i in (1, 3, 5, 7))
    assert {stage.readout.name for stage in stages.stages} == {"tokens of 4 x 4 behind 1"}


@pytest.mark.parametrize(
    ("name", "side"),
    [("resnet18d", 128), ("swin_tiny_patch4_window7_224", SIDE), ("vit_small_patch14_reg4_dinov2", 56)],
)
def test_maps_show_where_the_image_has_changed_and_can_be_taught(name, side):
    network = timm_network(name, **FAMILIES[name])
    partner = timm_network("resnet18", channels=(8, 16, 32, 64))
    verdict = judge(network, images(2, side), partner)
    assert verdict.wrong == ()


def test_tokens_on_a_grid_that_is_not_square_are_read_row_by_row():
    network = timm_network("vit_small_patch14_reg4_dinov2", **SMALL_VIT | {"img_size": (56, 84)})
    stages = choose_stages(network, images(1, 56, 84))
    assert {stage.size for stage in stages.stages} == {(4, 6)}
    assert list(unlike_documented(network, stages, images(2, 56, 84))) == []


def test_the_blocks_of_a_network_of_one_resolution_lie_at_equal_depths():
    network = timm_network("deit_tiny_patch16_224", **SMALL_VIT | {"depth": 12})
    assert choose_stages(network, images(1)).names == ("blocks.2", "blocks.5", "blocks.8", "blocks.11")


def test_a_network_inside_the_users_own_is_found_with_the_input_that_it_gets():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = timm_network("mobilenetv3_small_050")

        def forward(self, x):
            return self.body(torch.nn.functional.interpolate(x, (96, 96)))

    stages = choose_stages(Scaled().eval(), images(1))
    assert stages.source == TIMM
    assert [(stage.name, stage.size) for stage in stages.stages] == [
        ("body.blocks.0", (24, 24)),
        ("body.blocks.1", (12, 12)),
        ("body.blocks.3", (6, 6)),
        ("body.blocks.5", (3, 3)),
    ]


def test_a_network_whose_documented_stages_no_module_puts_out_is_refused_with_those_that_can_be_named():
    network = timm_network("hiera_tiny_224", img_size=64)
    with pytest.raises(ConfigError, match=r"no module puts out stage 1 of 4 .*'blocks.0'.*'layers'.*blocks\.11"):
        choose_stages(network, images(1))


def test_blocks_that_change_nothing_at_initialisation_are_told_apart():
    """With LayerScale at 0 all blocks put out the same; the names that timm proposes do not exist."""
    network = timm_network("twins_svt_small", **FAMILIES["twins_svt_small"])
    for name, parameter in network.named_parameters():
        if name.endswith(("attn.proj.weight", "attn.proj.bias", "mlp.fc2.weight", "mlp.fc2.bias")):
            nn.init.zeros_(parameter)
    assert choose_stages(network, images(1)).names == ("blocks.0.1", "blocks.1.1", "blocks.2.9", "blocks.3.3")


def test_layers_of_a_transformer_are_read_as_its_own_blocks_are():
    network = timm_network("deit_tiny_patch16_224", **SMALL_VIT)
    stages = choose_stages(network, images(1), ["blocks.0", "patch_embed.proj"])
    assert [stage.readout.name for stage in stages.stages] == ["tokens of 4 x 4 behind 1", "NCHW"]
    with Taps(network, stages.stages) as taps, torch.no_grad():
        network(images(2))
    assert [tuple(x.shape) for x in taps.features] == [(2, 48, 4, 4)] * 2


@pytest.mark.parametrize("layer", ["blocks.0.attn.qkv", "norm", "head", "blocks.0.attn.attn_drop"])
def test_a_module_that_puts_out_no_map_is_refused_by_name_or_read_as_tokens(layer):
    network = timm_network("deit_tiny_patch16_224", **SMALL_VIT)
    for block in network.blocks:
        block.attn.fused_attn = False
    if layer in ("norm", "blocks.0.attn.qkv"):
        [stage] = choose_stages(network, images(1), [layer]).stages
        assert stage.readout.name == "tokens of 4 x 4 behind 1"
        return
    with pytest.raises(ConfigError, match=rf"'{layer}' puts out a tensor of shape"):
        choose_stages(network, images(1), [layer])
