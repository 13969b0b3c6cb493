"""Attention probabilities of transformers, against what the modules themselves compute, and against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from support.transformers import NAMES, tiny_vit, torchvisions, transformer
from torch import nn

from attention_transfer import train_epoch
from attention_transfer.errors import ConfigError
from attention_transfer.features.attention_discovery import equal_depths, find_attention
from attention_transfer.features.attention_probabilities import AttentionTaps, class_token_map
from attention_transfer.features.pairing import pair_by_depth


def attention_of(network, images):
    layout = find_attention(network, images)
    with AttentionTaps(network, layout) as taps:
        network(images)
        return layout, taps.take()


def shown_by_the_modules(network, names, images):
    """What goes into each module's dropout of attention, once fused kernels are off: its softmax."""
    shown, modules = {}, dict(network.named_modules())
    hooks = []
    for name in names:
        modules[name].fused_attn = False
        dropout = modules[name].attn_drop
        hooks.append(dropout.register_forward_pre_hook(lambda m, args, name=name: shown.update({name: args[0]})))
    network(images)
    for hook in hooks:
        hook.remove()
    return [shown[name] for name in names]


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", NAMES)
def test_probabilities_are_those_that_timms_modules_compute(name, mode):
    network, size = transformer(name)
    getattr(network, mode)()
    images = torch.randn(2, 3, *size)
    layout, blocks = attention_of(network, images)
    assert layout.grid == (3, 5)
    assert layout.prefix == network.num_prefix_tokens
    assert layout.has_class_token == (network.cls_token is not None)
    for block, own in zip(blocks, shown_by_the_modules(network, layout.names, images), strict=True):
        torch.testing.assert_close(block.probabilities(), own, rtol=1e-4, atol=1e-6)
        queries = own[:, :, :1] if layout.has_class_token else own[:, :, layout.prefix :]
        expected = queries.mean((1, 2))[:, layout.prefix :].view(2, 3, 5)
        torch.testing.assert_close(class_token_map(block), expected, rtol=1e-4, atol=1e-6)


def test_probabilities_are_those_of_the_equation_in_double_precision():
    network, size = transformer("vit_tiny_patch16_224")
    network = network.double().eval()
    images = torch.randn(1, 3, *size, dtype=torch.float64)
    inputs = []
    hook = network.blocks[2].attn.register_forward_pre_hook(lambda m, args: inputs.append(args[0]))
    _, blocks = attention_of(network, images)
    hook.remove()
    module, x = network.blocks[2].attn, inputs[-1][0].detach().numpy()
    qkv = x @ module.qkv.weight.detach().numpy().T + module.qkv.bias.detach().numpy()
    q, k, _ = qkv.reshape(16, 3, 3, 16).transpose(1, 2, 0, 3)
    scores = np.exp(q @ k.transpose(0, 2, 1) / np.sqrt(16))
    expected = (scores / scores.sum(-1, keepdims=True))[:, 0].mean(0)[1:].reshape(3, 5)
    np.testing.assert_allclose(class_token_map(blocks[2])[0].detach().numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_probabilities_of_torchvisions_transformer_are_those_that_its_modules_return(mode):
    network = getattr(torchvisions(), mode)()
    images, returned = torch.randn(2, 3, 64, 64), []
    layout, blocks = attention_of(network, images)
    assert layout.names == tuple(f"encoder.layers.encoder_layer_{i}.self_attention" for i in range(4))
    assert (layout.prefix, layout.grid) == (1, (4, 4))
    for layer in network.encoder.layers:
        layer.self_attention.register_forward_hook(
            lambda m, args, output: returned.append(m.forward(*args, average_attn_weights=False)[1])
        )
    network(images)
    for block, own in zip(blocks, returned, strict=True):
        torch.testing.assert_close(block.probabilities(), own, rtol=1e-4, atol=1e-6)


class OfDeit(nn.Module):
    """The attention module of DeiT's and DINO's published code."""

    def __init__(self, dim, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, dim * 3)
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        count, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(count, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        attn = self.attn_drop(((qkv[0] @ qkv[1].transpose(-2, -1)) * self.scale).softmax(dim=-1))
        return self.proj((attn @ qkv[2]).transpose(1, 2).reshape(count, tokens, dim))


class Own(nn.Module):
    """A transformer of a user's, whose tokens may be in another order or carry their class token behind."""

    def __init__(self, order=None, *, behind=False, name="cls_token"):
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 8, stride=8)
        self.token_name, self.order, self.behind = name, order, behind
        self.register_parameter(name, nn.Parameter(torch.randn(1, 1, 16)))
        self.attn = OfDeit(16, 2)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = x if self.order is None else x[:, self.order]
        parts = [getattr(self, self.token_name).expand(len(x), -1, -1), x]
        x = torch.cat(parts[::-1] if self.behind else parts, dim=1)
        return self.head((x + self.attn(x)).mean(dim=1))


def test_modules_of_the_same_shape_in_a_network_of_a_users_are_read_as_well():
    torch.manual_seed(0)
    network, images, shown = Own(), torch.randn(2, 3, 32, 24), []
    layout, (block,) = attention_of(network, images)
    assert layout.grid == (4, 3)
    network.attn.attn_drop.register_forward_pre_hook(lambda m, args: shown.append(args[0]))
    network(images)
    torch.testing.assert_close(block.probabilities(), shown[0])


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (lambda: Own(torch.arange(16).view(4, 4).T.flatten()), "are not its 4 x 4 patches row by row"),
        (lambda: Own(behind=True), r"'cls_token' of Own is at \[16\] among the tokens; it must be the first"),
        (lambda: Own(name="extra"), "which of them is the class token is unknown"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), "needs transformers on both sides, but Sequential"),
    ],
)
def test_tokens_that_are_not_patches_in_their_order_are_refused(network, words):
    torch.manual_seed(0)
    with pytest.raises(ConfigError, match=words):
        find_attention(network(), torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("swin_tiny_patch4_window7_224", {"embed_dim": 24, "depths": (1, 1)}, "WindowAttention, and it attends inside"),
        ("xcit_nano_12_p16_224", {"depth": 1}, "is a XCA, and it attends between channels"),
        ("cait_xxs24_224", {"depth": 1}, "is a TalkingHeadAttn, and its heads are mixed"),
        (
            "beit_base_patch16_224",
            {"embed_dim": 24, "num_heads": 2, "depth": 1},
            "attends by more than queries and keys",
        ),
        ("vit_relpos_small_patch16_224", {"embed_dim": 24, "num_heads": 2, "depth": 1}, "attends by more than queries"),
        ("pvt_v2_b0", {}, "does not attend by queries and keys of all tokens alone"),
        ("resnet18", {}, "needs transformers on both sides, but ResNet has no attention"),
    ],
)
def test_attention_of_another_kind_is_refused_by_name(name, settings, words):
    torch.manual_seed(0)
    network = timm.create_model(name, **settings)
    if hasattr(network, "blocks") and hasattr(network.blocks[0], "attn"):
        for parameter in network.blocks[0].attn.parameters():  # relative positions begin at 0, where they do nothing
            nn.init.normal_(parameter, std=0.2)
    with pytest.raises(ConfigError, match=words):
        find_attention(network, torch.randn(1, 3, 224, 224))


def test_finding_and_reading_attention_leaves_outputs_and_network_as_they_were():
    network, size = transformer("vit_small_patch16_dinov3")
    network.train()
    images = torch.randn(2, 3, *size)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    fused = [block.attn.fused_attn for block in network.blocks]
    torch.manual_seed(1)
    alone = network(images)
    layout = find_attention(network, images)
    torch.manual_seed(1)
    with AttentionTaps(network, layout) as taps:
        assert torch.equal(network(images), alone)
        taps.take()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert [block.attn.fused_attn for block in network.blocks] == fused
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert network.training


def test_gradients_reach_the_first_layer_from_every_block():
    network = tiny_vit()
    _, blocks = attention_of(network, torch.randn(2, 3, 32, 32))
    for block in blocks:
        (gradient,) = torch.autograd.grad(
            class_token_map(block).square().sum(), network.patch_embed.proj.weight, retain_graph=True
        )
        assert gradient.abs().sum() > 0


def test_dropped_tokens_are_an_error():
    network = tiny_vit(patch_drop_rate=0.5).train()
    with pytest.raises(ConfigError, match="set patch_drop_rate to 0"):
        attention_of(network, torch.randn(2, 3, 32, 32))


def test_blocks_at_equal_depths_are_paired_by_relative_depth():
    assert equal_depths(24) == (5, 11, 17, 23)
    pairs = pair_by_depth([(7, 7)] * 4, [(14, 14)] * 4)
    assert [(pair.student, pair.teacher, pair.size) for pair in pairs] == [(i, i, (7, 7)) for i in range(4)]
    assert [(pair.student, pair.teacher) for pair in pair_by_depth([(7, 7)] * 3, [(7, 7)] * 4)] == [
        (0, 0),
        (1, 2),
        (2, 3),
    ]
    assert [(pair.student, pair.teacher) for pair in pair_by_depth([(7, 7)] * 4, [(7, 7)])] == [(3, 0)]


@pytest.mark.slow
def test_a_compiled_student_is_read_in_every_batch():
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(4, 3, 32, 32, generator=generator), torch.arange(4)) for _ in range(3)]
    found = []
    for wrap in (lambda network: network, lambda network: torch.compile(network, backend="eager")):
        network = tiny_vit(0)
        optimizer = torch.optim.SGD(network.parameters(), 0.1)
        settings = {"attention": "class_token", "beta": 1e4}
        found.append(train_epoch(wrap(network), tiny_vit(1), batches, optimizer, "cpu", settings))
        assert not any(module._forward_hooks for module in network.modules())
    assert found[0]["attention"] == pytest.approx(found[1]["attention"], rel=1e-5)
    assert found[0]["attention"] > 0
