"""The networks that can be built by name, one family a file, and the registry that finds them."""

from __future__ import annotations

from attention_transfer.networks.architecture import Architecture
from attention_transfer.networks.cifar_resnet import CifarResNet
from attention_transfer.networks.multibranch import MultiBranchNet
from attention_transfer.networks.registry import ModelCard, card_of, create_model, recognise, register_network, taps_of
from attention_transfer.networks.wide_resnet import WideResNet

__all__ = [
    "Architecture",
    "CifarResNet",
    "ModelCard",
    "MultiBranchNet",
    "WideResNet",
    "card_of",
    "create_model",
    "recognise",
    "register_network",
    "taps_of",
]
