"""Maps of whole images, warped to where a view shows them."""

from __future__ import annotations

import pytest
import torch
from timm.layers import create_conv2d
from torch import nn

from attention_transfer import create_model
from attention_transfer.data.rendering import view_matrices
from attention_transfer.data.views import Augmentation, ViewParameters, draw_view
from attention_transfer.teacher.cache.grid import Axis, Grid, find_grids
from attention_transfer.teacher.cache.warp import is_mirrored, mirror, warp_maps


def grid(stride, first=0.0):
    return Grid(Axis(stride, first), Axis(stride, first))


@pytest.mark.parametrize(
    ("name", "size", "names", "strides"),
    [
        ("ResNet18", 64, ["layer1", "layer2", "layer3", "layer4"], [4, 8, 16, 32]),
        ("ResNet50", 96, ["layer2", "layer4"], [8, 32]),
        ("CifarResNet-20", 32, ["layer1", "layer2", "layer3"], [1, 2, 4]),
        ("WideResNet-16-1", 32, None, [1, 2, 4]),
        ("MultiBranchNet", 64, None, [4, 8, 16, 32]),
    ],
)
def test_cells_of_networks_with_odd_padded_kernels_are_centred_at_multiples_of_their_stride(name, size, names, strides):
    from attention_transfer.features.stages.choose import choose_stages

    model, images = create_model(name, 10), torch.rand(1, 3, size, size)
    names = names or choose_stages(model, images).names
    assert find_grids(model, images, names) == [grid(stride) for stride in strides]


def test_patches_are_centred_in_their_middle_and_so_is_what_follows():
    class Patches(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 4, stride=4)
            self.down = nn.Conv2d(8, 8, 2, stride=2)

        def forward(self, x):
            return self.down(self.stem(x)).mean((2, 3))

    grids = find_grids(Patches(), torch.rand(1, 3, 32, 32), ["stem", "down"])
    assert grids == [grid(4, 1.5), grid(8, 3.5)]


def test_the_grid_is_where_the_network_looks():
    """The pixels that move a cell, weighed by how much: their middle is the cell's centre."""
    torch.manual_seed(0)
    model, names = create_model("ResNet18", 10).eval(), ["layer1", "layer2"]
    images = torch.rand(8, 3, 128, 128, requires_grad=True)
    from attention_transfer.features.taps import Taps

    with Taps(model, names) as taps:
        model(images)
    for features, where in zip(taps.features, find_grids(model, images[:1].detach(), names), strict=True):
        cell = features.shape[2] // 2
        (gradient,) = torch.autograd.grad(features[:, :, cell, cell].square().sum(), images, retain_graph=True)
        weights = gradient.square().sum((0, 1))
        pixels = torch.arange(128.0)
        for axis, profile in zip(where, (weights.sum(1), weights.sum(0)), strict=True):
            centre = (profile * pixels).sum() / profile.sum()
            assert abs(centre - (axis.first + axis.stride * cell)) < 0.3 * axis.stride


@pytest.mark.parametrize("side", [65, 64])
def test_the_grid_of_padding_by_the_inputs_size_is_where_the_network_looks(side):
    """As TensorFlow pads, and timm's networks named tf_: of some sizes more after the input than before it."""
    torch.manual_seed(0)
    model = nn.Sequential(*(create_conv2d(c, 8, k, stride=2, padding="same") for c, k in ((3, 3), (8, 5))))
    images = torch.rand(4, 3, side, side, requires_grad=True)
    features = model(images)
    cell = features.shape[2] // 2
    (gradient,) = torch.autograd.grad(features[:, :, cell, cell].square().sum(), images)
    lit = gradient.abs().sum((0, 1, 3)).nonzero().flatten()
    [found] = find_grids(model, images[:1].detach(), ["1"])
    assert found.rows.first + found.rows.stride * cell == float(lit[0] + lit[-1]) / 2


def ramp(where, size, a, b, c):
    """A map whose cells hold a x + b y + c at their centres, in coordinates from -1 to 1."""
    places = [2 * (axis.first + axis.stride * torch.arange(8) + 0.5) / size - 1 for axis in where]
    return a * places[1][None, :] + b * places[0][:, None] + c


@pytest.mark.parametrize("where", [grid(4), grid(4, 1.5)])
@pytest.mark.parametrize("flip", [False, True])
def test_a_ramp_is_warped_exactly_by_any_view(where, flip):
    views = [
        ViewParameters(box=(0.1, 0.2, 0.8, 0.9), flip=flip, angle=12.0),
        ViewParameters(box=(0.3, 0.3, 0.9, 0.75), flip=flip, angle=-7.0),
    ]
    matrices = view_matrices(views)
    whole = ramp(where, 32, 0.3, -0.2, 1.0).expand(2, 8, 8)
    warped, coverage = warp_maps(whole, matrices, where, 32)
    for matrix, got, covered in zip(matrices, warped, coverage, strict=True):
        x, y = ramp(where, 32, 1, 0, 0), ramp(where, 32, 0, 1, 0)
        source_x = matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2]
        source_y = matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2]
        edge = [2 * (where.rows.first + where.rows.stride * i + 0.5) / 32 - 1 for i in (0, 7)]
        between = (source_x > edge[0]) & (source_x < edge[1]) & (source_y > edge[0]) & (source_y < edge[1])
        assert between.sum() > 30
        assert covered[between].all()
        torch.testing.assert_close(got[between], (0.3 * source_x - 0.2 * source_y + 1.0)[between])


def test_the_whole_view_leaves_maps_as_they_are():
    maps = torch.rand(3, 8, 8)
    warped, coverage = warp_maps(maps, view_matrices([ViewParameters()] * 3), grid(4), 32)
    torch.testing.assert_close(warped, maps)
    assert coverage.all()


def test_what_lies_outside_the_image_is_not_covered():
    maps = torch.ones(1, 8, 8)
    warped, coverage = warp_maps(maps, view_matrices([ViewParameters(angle=45.0)]), grid(4, 1.5), 32)
    assert coverage[0, 0, 0] == coverage[0, 7, 7] == 0
    assert coverage[0, 3:5, 3:5].all()
    torch.testing.assert_close(warped, coverage)


def test_a_flipped_view_is_an_unflipped_view_of_the_mirror_image():
    augmentation = Augmentation()
    for index in range(20):
        parameters = draw_view(augmentation, 0, 0, index)
        matrix = view_matrices([parameters])
        assert bool(is_mirrored(matrix)) == parameters.flip
        assert not is_mirrored(mirror(matrix) if parameters.flip else matrix)


def test_a_ramp_over_a_map_that_is_no_square_is_warped_exactly():
    where, size = Grid(Axis(4, 1.5), Axis(4, 0.0)), (32, 64)
    y = 2 * (1.5 + 4 * torch.arange(8) + 0.5) / 32 - 1
    x = 2 * (4 * torch.arange(16) + 0.5) / 64 - 1
    whole = 0.3 * x[None, :] - 0.2 * y[:, None] + 1.0
    (matrix,) = matrices = view_matrices([ViewParameters(box=(0.2, 0.1, 0.8, 0.75), angle=8.0)])
    warped, coverage = warp_maps(whole[None], matrices, where, size)
    source_x = matrix[0, 0] * x[None, :] + matrix[0, 1] * y[:, None] + matrix[0, 2]
    source_y = matrix[1, 0] * x[None, :] + matrix[1, 1] * y[:, None] + matrix[1, 2]
    assert coverage.all()
    torch.testing.assert_close(warped[0], 0.3 * source_x - 0.2 * source_y + 1.0)
