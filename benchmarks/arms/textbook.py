"""Attention transfer as people write it, after the paper's published code: the arm to beat.

Frozen, at most 80 lines: no trick that a tutorial lacks, no handicap that a careful author would not have.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, RandomSampler
from torchvision import transforms
from torchvision.datasets import ImageFolder

Batches = DataLoader[list[Tensor]]
MEAN, STD, MEAN_COLOUR = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (124, 116, 104)


class WithFeatures(nn.Module):
    """A ResNet that returns its logits and the features of layer1, layer2, ..."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.features = network, list[Tensor]()
        for name, stage in network.named_children():
            if name.startswith("layer"):
                stage.register_forward_hook(lambda module, args, output: self.features.append(output))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        self.features = []
        return self.network(x), self.features


def training_set(folder: Path, size: int) -> ImageFolder:
    steps = [
        transforms.RandomResizedCrop(size, scale=(0.6, 1.0), ratio=(3 / 4, 4 / 3)),
        transforms.RandomHorizontalFlip(),
        transforms.RandomRotation(10, transforms.InterpolationMode.BILINEAR, fill=MEAN_COLOUR),
        transforms.ColorJitter(0.2, 0.2, 0.2, 0.02),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    return ImageFolder(folder, transforms.Compose(steps))


def training_loader(data: ImageFolder, batch_size: int, num_workers: int, images: int | None = None) -> Batches:
    sampler = RandomSampler(data, num_samples=images)
    return DataLoader(data, batch_size, sampler=sampler, num_workers=num_workers, persistent_workers=num_workers > 0)


def at(x: Tensor) -> Tensor:
    return F.normalize(x.pow(2).mean(1).view(x.size(0), -1))


def at_loss(x: Tensor, y: Tensor) -> Tensor:
    return (at(x) - at(y)).pow(2).mean()


def batch_loss(student: WithFeatures, teacher: WithFeatures, images: Tensor, labels: Tensor, beta: float) -> Tensor:
    logits, features = student(images)
    with torch.no_grad():
        _, teacher_features = teacher(images)
    attention = sum(at_loss(s, t) for s, t in zip(features, teacher_features, strict=True))
    return F.cross_entropy(logits, labels) + beta * attention


def train_epoch(
    student: WithFeatures, teacher: WithFeatures, loader: Batches, optimizer: torch.optim.Optimizer, beta: float
) -> Iterator[tuple[int, float]]:
    student.train()
    teacher.eval()
    for images, labels in loader:
        optimizer.zero_grad(set_to_none=True)
        loss = batch_loss(student, teacher, images, labels, beta)
        loss.backward()
        optimizer.step()
        yield len(labels), loss.item()
