"""What the tests of classes with names share: networks that name them, and a run that distils."""

from __future__ import annotations

from attention_transfer.networks.registry import ModelCard

DIGITS = tuple("0123456789")
ORDER = (3, 1, 4, 0, 5, 9, 2, 6, 8, 7)


def named(network, names):
    network.card = ModelCard(network.card.name, network.card.num_classes, tuple(names))
    return network


def distilling(settings, folder):
    """Settings of a run that distils, with its caches in `folder`."""
    return {
        **settings,
        "model": "CifarResNet-8",
        "alpha": 0.7,
        "lr": 0.05,
        "precision": "fp32",
        "teacher_precision": "fp32",
        "cache_dir": str(folder / "cache"),
        "overwrite": True,
    }
