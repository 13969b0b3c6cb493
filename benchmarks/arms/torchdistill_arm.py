"""torchdistill (Matsubara 2021) trains the same networks: its distillation box, its AT loss, its loop.

torchdistill is no dependency of this project; `left_out` says how to install it, and is None where it is there. The
loop is that of its own examples/torchvision/image_classification.py, without the log that this one prints.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, RandomSampler

from attention_transfer.networks.registry import taps_of


def left_out() -> str | None:
    """Why this arm cannot run, and what to do about it; None where it can."""
    if find_spec("torchdistill") is None:
        return "torchdistill is left out, because it is not installed: pip install torchdistill"
    return None


def make_box(
    student: nn.Module,
    teacher: nn.Module,
    data: Dataset[Any],
    *,
    batch_size: int,
    num_workers: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    beta: float,
    images: int | None = None,
) -> Any:
    """torchdistill's training box for cross-entropy + beta AT in float32 on the CPU.

    Args:
        student: a network that was built by name; trained in place.
        teacher: another one, with as many stages; put in eval mode and frozen.
        data: pairs of an image [3, H, W] and a label.
        batch_size: images a step.
        num_workers: processes that load images.
        lr: learning rate of SGD.
        momentum: of SGD.
        weight_decay: of SGD.
        beta: weight of the AT loss, in the mean-squared form of the authors' code.
        images: images an epoch; None: each once.

    Raises:
        ModuleNotFoundError: torchdistill is not installed.
        ValueError: a network whose stages are not known, or not as many in both.
    """
    reason = left_out()
    if reason is not None:
        raise ModuleNotFoundError(reason)
    import_module("torchdistill.losses.mid_level")  # its losses register themselves by name
    get_distillation_box = import_module("torchdistill.core.distillation").get_distillation_box

    stages, teacher_stages = taps_of(student), taps_of(teacher)
    if not stages or not teacher_stages or len(stages) != len(teacher_stages):
        raise ValueError(f"the stages are {stages} and {teacher_stages}; take networks with as many, built by name.")
    loader = {
        "dataset_id": "train",
        "sampler": {"class_or_func": RandomSampler, "kwargs": {"num_samples": images}},
        "kwargs": {"batch_size": batch_size, "num_workers": num_workers, "persistent_workers": num_workers > 0},
    }
    train = {
        "num_epochs": 1,
        "train_data_loader": loader,
        "teacher": _watched(teacher_stages) | {"requires_grad": False},
        "student": _watched(stages),
        "optimizer": {"key": "SGD", "kwargs": {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}},
        "criterion": _criterion(stages, teacher_stages, beta),
    }
    # The box freezes the teacher, but leaves it in the mode in which it comes.
    return get_distillation_box(teacher.eval(), student, {"train": data}, train, torch.device("cpu"), None, False, 1)


def _watched(stages: tuple[str, ...]) -> dict[str, Any]:
    return {"forward_proc": "forward_batch_only", "forward_hook": {"input": [], "output": list(stages)}}


def _criterion(stages: tuple[str, ...], teacher_stages: tuple[str, ...], beta: float) -> dict[str, Any]:
    pairs = {
        f"stage{number}": {
            "student": {"io": "output", "path": mine},
            "teacher": {"io": "output", "path": theirs},
            "weight": 1,
        }
        for number, (mine, theirs) in enumerate(zip(stages, teacher_stages, strict=True), start=1)
    }
    logits_and_labels = {
        "input": {"is_from_teacher": False, "module_path": ".", "io": "output"},
        "target": {"uses_label": True},
    }
    classification = {
        "criterion": {"key": "CrossEntropyLoss", "kwargs": {"reduction": "mean"}},
        "criterion_wrapper": {"key": "SimpleLossWrapper", "kwargs": logits_and_labels},
        "weight": 1.0,
    }
    attention = {"criterion": {"key": "ATLoss", "kwargs": {"at_pairs": pairs, "mode": "code"}}, "weight": beta}
    return {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"ce": classification, "at": attention}}}


def train_epoch(box: Any) -> Iterator[tuple[int, float]]:
    """One epoch as torchdistill's examples run it; gives (images, loss) after each step."""
    box.pre_epoch_process()
    for sample_batch, targets, supp_dict in box.train_data_loader:
        loss = box.forward_process(sample_batch, targets, supp_dict)
        box.post_forward_process(loss=loss)
        yield len(targets), loss.item()
    box.post_epoch_process()
