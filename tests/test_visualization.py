"""Attention as tensors and figures, against NumPy, on real photos."""

from __future__ import annotations

import copy
import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from attention_transfer import (
    ConfigError,
    DataError,
    attention_figure,
    create_model,
    extract_attention_maps,
    visualize_attention_maps,
)
from attention_transfer.config import resolve_config
from attention_transfer.data.decoding.images import decode_image, resize_whole, to_tensor
from attention_transfer.overlays import COLOURS, denormalise, enlarge, overlay
from attention_transfer.visualization import figure_to_tensor, save_figure

IMAGENET = (resolve_config().mean, resolve_config().std)


@pytest.fixture(scope="module")
def photos(photos_folder):
    """Three photos of ants as PIL images of 64x64."""
    files = sorted((photos_folder / "train" / "ants").glob("*.jpg"))[:3]
    return [resize_whole(decode_image(file), 64) for file in files]


@pytest.fixture(scope="module")
def images(photos):
    return torch.stack([to_tensor(photo) for photo in photos])


@pytest.fixture(scope="module")
def student():
    torch.manual_seed(0)
    return create_model("MultiBranchNet", 2)


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(1)
    return create_model("ResNet18", 2)


@pytest.fixture(scope="module")
def figure(student, teacher, images):
    return attention_figure(student, images[:2], teacher=teacher, titles=["an ant", "another"])


def features_of(model, layer, images):
    """What a module puts out, listened to by hand."""
    heard = []
    hook = model.get_submodule(layer).register_forward_hook(lambda module, args, output: heard.append(output))
    with torch.no_grad():
        copy.deepcopy(model).eval()(images)
    hook.remove()
    return heard[0].double().numpy()


def pictures_in(figure):
    return [image.get_array() for image in figure.artists]


def lefts_of_overlays(figure):
    """Where the overlays begin that stand beside the only photo of a figure, from left to right in each row."""
    return [round(image.get_window_extent().x0, 4) for image in figure.artists[1:-1]]


def texts_in(figure):
    return [text.get_text() for text in figure.texts]


def test_maps_are_the_normalised_mean_of_squares_over_channels(teacher, images):
    maps = extract_attention_maps(teacher, images)
    for layer, stage in zip(("layer1", "layer2", "layer3", "layer4"), maps, strict=True):
        energy = (features_of(teacher, layer, images) ** 2).mean(axis=1)
        expected = energy / np.sqrt((energy**2).sum(axis=(1, 2), keepdims=True))
        np.testing.assert_allclose(stage.numpy(), expected, rtol=1e-4, atol=1e-7)


def test_maps_come_shallow_to_deep_with_norm_one(student, images):
    maps = extract_attention_maps(student, images)
    assert [tuple(stage.shape) for stage in maps] == [(3, 16, 16), (3, 8, 8), (3, 4, 4), (3, 2, 2)]
    for stage in maps:
        torch.testing.assert_close(stage.flatten(1).norm(dim=1), torch.ones(3))
        assert not stage.requires_grad


def test_one_image_is_a_batch_of_one(student, images):
    for alone, all_or_raise in zip(
        extract_attention_maps(student, images[0]), extract_attention_maps(student, images[:1]), strict=True
    ):
        assert torch.equal(alone, all_or_raise)


def test_images_take_the_number_format_of_the_network(student, images):
    maps = extract_attention_maps(student, images.double())
    torch.testing.assert_close(maps[0], extract_attention_maps(student, images)[0])


@pytest.mark.parametrize("as_config", [dict, resolve_config])
def test_layers_override_the_stages_with_the_students_side(student, images, as_config):
    config = as_config({"layers": ("stage4", "stage2:layer2")})
    deep, shallow = extract_attention_maps(student, images, config)
    stages = extract_attention_maps(student, images)
    assert torch.equal(deep, stages[3])
    assert torch.equal(shallow, stages[1])


def test_an_unknown_network_shows_the_stages_that_it_has(images):
    network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 8, 3, stride=2), nn.Flatten())
    assert [stage.shape[1:] for stage in extract_attention_maps(network, images)] == [(31, 31), (15, 15)]


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(64, 64),
        torch.zeros(2, 1, 64, 64),
        torch.zeros(1, 2, 3, 64, 64),
        torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
        np.zeros((1, 3, 64, 64)),
    ],
)
def test_what_is_no_batch_of_images_is_refused_by_name(student, wrong):
    with pytest.raises(DataError, match=r"x (is|has the shape) .*must be .*images \[B, 3, H, W\]"):
        extract_attention_maps(student, wrong)


def test_looking_leaves_a_network_as_it_was_found(student, teacher, images):
    network = copy.deepcopy(student).train()
    next(network.children()).eval()
    before, modes = copy.deepcopy(network.state_dict()), [module.training for module in network.modules()]
    random_state = torch.get_rng_state()
    visualize_attention_maps(network, images, layer_idx=2)
    attention_figure(network, images[:1], teacher=teacher)
    with pytest.raises(ConfigError):
        extract_attention_maps(network, images, {"layers": ["no_such_module"]})
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("layer_idx", [0, 3, -1, -4])
def test_a_stage_is_spread_from_zero_to_one_in_each_image(student, images, layer_idx):
    maps = extract_attention_maps(student, images)[layer_idx].double().numpy()
    low, high = maps.min(axis=(1, 2), keepdims=True), maps.max(axis=(1, 2), keepdims=True)
    shown = visualize_attention_maps(student, images, layer_idx=layer_idx)
    np.testing.assert_allclose(shown.numpy(), (maps - low) / (high - low), atol=1e-5)
    assert shown.flatten(1).min(dim=1).values.tolist() == [0, 0, 0]
    assert shown.flatten(1).max(dim=1).values.tolist() == [1, 1, 1]


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_an_image_that_is_attended_evenly_shows_zeros(weight):
    network = nn.Sequential(nn.Conv2d(3, 200, 2, stride=2, bias=False))
    nn.init.constant_(network[0].weight, weight)
    assert not visualize_attention_maps(network, torch.full((2, 3, 14, 14), 0.7)).any()


@pytest.mark.parametrize("layer_idx", [4, -5])
def test_a_stage_that_is_not_there_is_refused_with_the_number_of_stages(student, images, layer_idx):
    with pytest.raises(ConfigError, match=f"layer_idx is {layer_idx}, but MultiBranchNet has 4 stages.* -4 to 3"):
        visualize_attention_maps(student, images, layer_idx=layer_idx)


def test_a_figure_has_a_photo_and_a_row_for_each_network_beside_it(figure):
    assert len(pictures_in(figure)) == 2 * (1 + 2 * 4) + 1
    assert not figure.axes
    texts = texts_in(figure)
    assert texts[:4] == [f"stage {i}:  {size} \N{MULTIPLICATION SIGN} {size}" for i, size in enumerate((16, 8, 4, 2))]
    assert {"an ant", "another"} < set(texts)
    assert texts.count("teacher") == texts.count("student") == texts.count("ResNet18") == 2
    assert texts.index("teacher") < texts.index("student")


def test_a_photo_is_drawn_in_its_own_colours(figure, photos):
    drawn = pictures_in(figure)[0]
    squares = np.asarray(photos[0]).repeat(6, axis=0).repeat(6, axis=1)
    np.testing.assert_allclose(drawn.astype(int), squares.astype(int), atol=1)


def test_images_come_back_to_the_colours_of_the_settings_mean_and_std(student, photos):
    half = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    images = to_tensor(photos[0], half["mean"], half["std"])
    drawn = pictures_in(attention_figure(student, images, half))[0]
    np.testing.assert_allclose(drawn[::6, ::6].astype(int), np.asarray(photos[0]).astype(int), atol=1)


def test_an_overlay_takes_its_colours_from_the_map_alone(photos):
    from matplotlib import colormaps

    picture = enlarge(denormalise(to_tensor(photos[0]).unsqueeze(0), *IMAGENET))[0]
    attention = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    drawn = overlay(picture, attention).numpy()
    grey = np.tensordot([0.299, 0.587, 0.114], picture.numpy(), axes=1)
    for place, value in (((0, 0), 1.0), ((-1, -1), 0.0)):
        expected = 0.4 * grey[place] + 0.6 * np.array(colormaps[COLOURS](value)[:3])
        np.testing.assert_allclose(drawn[:, *place], expected, atol=1e-5)


def test_large_images_are_shrunk_and_keep_their_shape(student):
    assert enlarge(torch.rand(1, 3, 1000, 500)).shape == (1, 3, 384, 192)
    assert enlarge(torch.rand(1, 3, 32, 48)).shape == (1, 3, 384, 576)
    assert enlarge(torch.rand(1, 3, 1000, 500), 192).shape == (1, 3, 192, 96)


def test_pixels_of_small_images_are_squares_at_either_size():
    picture = torch.rand(1, 3, 64, 64)
    for pixels, factor in ((384, 6), (192, 3)):
        assert torch.equal(enlarge(picture, pixels)[:, :, ::factor, ::factor], picture)
        assert torch.equal(enlarge(picture, pixels)[:, :, factor - 1 :: factor, factor - 1 :: factor], picture)


def test_stages_of_one_resolution_stand_above_each_other(student, images):
    cifar = create_model("CifarResNet-8", 2)
    figure = attention_figure(student, images[:1], teacher=cifar)
    lefts = lefts_of_overlays(figure)
    teacher_lefts, student_lefts = lefts[:3], lefts[3:]
    assert teacher_lefts[2] == student_lefts[0]
    assert sorted({*teacher_lefts, *student_lefts}) == [*teacher_lefts, *student_lefts[1:]]
    assert "16 \N{MULTIPLICATION SIGN} 16" in texts_in(figure)


def test_stages_of_one_size_in_one_network_stand_beside_each_other(student, images):
    figure = attention_figure(student, images[:1], {"layers": ["stage1", "stage1"]})
    one, other = lefts_of_overlays(figure)
    assert one < other


def test_other_networks_are_drawn_below_by_their_names(student, images):
    figure = attention_figure(student, images[:1], others={"untrained": create_model("CifarResNet-8", 2)})
    assert {"student", "untrained", "CifarResNet-8"} < set(texts_in(figure))


def test_a_network_alone_is_called_by_its_name(teacher, images):
    texts = texts_in(attention_figure(teacher, images, max_images=1))
    assert "ResNet18" in texts
    assert "student" not in texts


def test_images_of_one_channel_are_drawn_in_grey():
    network = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU())
    ramp = torch.linspace(-2, 3, 32).expand(1, 1, 32, 32)
    drawn = pictures_in(attention_figure(network, ramp))[0]
    assert drawn[0, 0].tolist() == [0, 0, 0]
    assert drawn[0, -1].tolist() == [255, 255, 255]


def test_a_figure_of_nothing_and_missing_titles_are_refused(student, images):
    with pytest.raises(DataError, match="no image to draw"):
        attention_figure(student, images[:0])
    with pytest.raises(ConfigError, match="titles has 1 lines for 3 images"):
        attention_figure(student, images, titles=["one"])


def test_a_figure_is_made_without_pyplot(student, images, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it would raise
    figure = attention_figure(student, images[:1])
    save_figure(figure, tmp_path / "attention.png")
    assert (tmp_path / "attention.png").stat().st_size > 10_000


def test_a_figure_becomes_pixels_for_tensorboard(figure):
    pixels = figure_to_tensor(figure)
    width, height = figure.canvas.get_width_height()
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (3, height, width)
    assert pixels[:, 0, 0].tolist() == [255, 255, 255]
    assert pixels.float().std() > 20


def test_a_saved_figure_is_a_whole_file_in_the_format_of_its_suffix(figure, tmp_path):
    for name, magic in (("deep/er/attention.png", b"\x89PNG"), ("attention", b"\x89PNG"), ("attention.pdf", b"%PDF")):
        save_figure(figure, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(magic)
    with pytest.raises(ValueError, match="xyz"):
        save_figure(figure, tmp_path / "attention.xyz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["attention", "attention.pdf", "deep"]


def test_a_notebook_shows_a_figure(figure):
    formatters = pytest.importorskip("IPython.core.formatters")
    shown = formatters.PNGFormatter()(figure)
    with Image.open(io.BytesIO(shown)) as image:
        assert image.format == "PNG"
