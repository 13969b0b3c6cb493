"""The student that this library designs learns, in half a minute on a CPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from attention_transfer import create_model


@pytest.fixture
def one_thread():
    """Threads that wait for each other on busy cores are many times slower than one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def digits_in_three_parts():
    """The 1,797 digits as images [N, 3, 48, 48] and labels [N], 70 / 15 / 15 and stratified."""
    digits = load_digits()
    pixels = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    images = F.interpolate(pixels, size=(48, 48), mode="bilinear").expand(-1, 3, -1, -1)
    images = ((images - images.mean()) / images.std()).contiguous(memory_format=torch.channels_last)
    labels = torch.from_numpy(digits.target)
    train, rest = train_test_split(range(len(labels)), test_size=0.3, stratify=labels, random_state=0)
    val, test = train_test_split(rest, test_size=0.5, stratify=labels[rest], random_state=0)
    return [(images[part], labels[part]) for part in (train, val, test)]


def accuracy(model, images, labels):
    with torch.no_grad():
        return (model.eval()(images).argmax(dim=1) == labels).float().mean().item()


@pytest.mark.slow
def test_multibranchnet_tells_at_least_97_of_100_digits_apart(one_thread):
    torch.manual_seed(0)
    (images, labels), _, test = digits_in_three_parts()
    model = create_model("MultiBranchNet", num_classes=10).to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.StepLR(optimiser, step_size=3, gamma=0.1)
    for _ in range(5):
        model.train()
        for batch in torch.randperm(len(labels)).split(32):
            optimiser.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimiser.step()
        scheduler.step()
    assert accuracy(model, *test) >= 0.97
