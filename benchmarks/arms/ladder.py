"""From the textbook's recipe to ours, step by step: what each is worth."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from attention_transfer import create_model
from attention_transfer.losses.attention import attention_loss
from benchmarks.arms.ours.ours import BETA, LR, Task
from benchmarks.arms.ours.textbook import WithFeatures, at_loss, train_epoch, training_loader, training_set
from benchmarks.measuring.statistics import Arm, Step

Loss = Any


def textbook_arm(task: Task, num_workers: int) -> Arm:
    """f. The textbook's recipe; an epoch is a block."""
    student, teacher, optimizer = _networks(task)
    data = training_set(task.data / "train", task.image_size)
    loader = training_loader(data, task.batch_size, num_workers, task.block * task.batch_size)
    name = f"f. textbook, {num_workers} workers"
    return Arm(name, lambda: train_epoch(student, teacher, loader, optimizer, BETA))


def channels_last_arm(task: Task, num_workers: int) -> Arm:
    """The textbook's recipe in channels last."""
    student, teacher, optimizer = _networks(task, torch.channels_last)
    data = training_set(task.data / "train", task.image_size)
    loader = training_loader(data, task.batch_size, num_workers, task.block * task.batch_size)
    return Arm("+ channels last", lambda: _epoch(student, teacher, loader, optimizer, textbook_loss))


def pixel_store_arm(task: Task, loader: Iterable[Any]) -> Arm:
    """With our loader, which reads decoded images."""
    student, teacher, optimizer = _networks(task, torch.channels_last)
    return Arm("+ pixel store", lambda: _epoch(student, teacher, loader, optimizer, textbook_loss))


def fast_map_arm(task: Task, loader: Iterable[Any]) -> Arm:
    """With our loss, whose backward pass is derived by hand."""
    student, teacher, optimizer = _networks(task, torch.channels_last)
    return Arm("+ fast map", lambda: _epoch(student, teacher, loader, optimizer, attention_loss))


def textbook_loss(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """AT as the paper's code has it."""
    return torch.stack([at_loss(s, t) for s, t in zip(student, teacher, strict=True)]).sum()


def _networks(
    task: Task, memory_format: torch.memory_format = torch.contiguous_format
) -> tuple[WithFeatures, WithFeatures, torch.optim.SGD]:
    torch.manual_seed(0)
    student = create_model(task.student, task.classes).to(memory_format=memory_format)
    teacher = task.teacher().to(memory_format=memory_format)
    optimizer = torch.optim.SGD(student.parameters(), LR, momentum=0.9, weight_decay=5e-4)
    return WithFeatures(student), WithFeatures(teacher), optimizer


def _epoch(
    student: WithFeatures, teacher: WithFeatures, loader: Iterable[Any], optimizer: torch.optim.SGD, loss_of: Loss
) -> Iterator[Step]:
    """The textbook's epoch, with another memory format, loader or loss."""
    student.train()
    teacher.eval()
    for raw, labels in loader:
        images = raw.contiguous(memory_format=torch.channels_last)
        optimizer.zero_grad(set_to_none=True)
        logits, features = student(images)
        with torch.no_grad():
            _, teacher_features = teacher(images)
        loss = F.cross_entropy(logits, labels) + BETA * loss_of(features, teacher_features)
        loss.backward()
        optimizer.step()
        yield len(labels), loss.item()
