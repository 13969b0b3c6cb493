"""In a step on a GPU the host waits for nothing, whatever the teacher is; held by tensors that are on none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from support.fake_gpu import CUDA, FakeGpu
from torch import nn

from attention_transfer import create_model, prepare_dataloaders
from attention_transfer.config import Config
from attention_transfer.data.batches import Batch
from attention_transfer.distributed import Runtime
from attention_transfer.losses.classification import CrossEntropy
from attention_transfer.losses.total import default_terms, needs_of_teacher
from attention_transfer.teacher.build import Teachers, build_teachers
from attention_transfer.teacher.cache.store import OutputShape
from attention_transfer.teacher.cache.teacher import CachedTeacher
from attention_transfer.teacher.online import OnlineTeacher
from attention_transfer.teacher.runner import FrozenRunner
from attention_transfer.training.criterion.criterion import Criterion
from attention_transfer.training.metrics import MeanMeter, NonFiniteDetector


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    return FakeGpu(monkeypatch)


def test_the_fake_gpu_counts_what_makes_the_host_wait(gpu):
    with gpu:
        there = torch.ones(3, device=CUDA)
        (there * 2 + torch.full((3,), 0.5, device=CUDA)).sum()
        torch.ones(3).pin_memory().to(CUDA, non_blocking=True)
        assert gpu.waits == []
        for wait in (
            lambda: there.new_tensor([1.0]),
            lambda: torch.ones(3).to(CUDA, non_blocking=True),
            lambda: torch.ones(3).pin_memory().to(CUDA),
            there.cpu,
        ):
            before = len(gpu.waits)
            wait()
            assert len(gpu.waits) == before + 1
        with pytest.raises(Exception, match="_local_scalar_dense"):
            there.sum().item()


def runner_in(teacher: object) -> FrozenRunner | None:
    if isinstance(teacher, OnlineTeacher):
        return teacher._runner
    return teacher.runner if isinstance(teacher, CachedTeacher) else None


def put_on_gpu(student: nn.Module, teacher: object) -> None:
    student.to(CUDA)
    runner = runner_in(teacher)
    if runner is not None:
        runner.network.to(CUDA)
        runner._unfolded.to(CUDA)
        runner.device = CUDA


KINDS = {
    "none": {},
    "online": {"augment_views": None},
    "online with features and a mean of its own": {"augment_views": None, "hint": 1.0, "teacher_mean": (0.5, 0.5, 0.5)},
    "kept": {"augment_views": 2},
    "kept, warped": {"augment_views": "warp"},
    "not kept": {"augment_views": 2, "teacher_cache": "off"},
    "not kept, warped": {"augment_views": "warp", "teacher_cache": "off"},
}


@pytest.fixture(params=list(KINDS))
def parts(request, few_digits, tmp_path) -> Iterator[tuple[Config, nn.Module, Teachers, Batch]]:
    torch.manual_seed(0)
    student, teacher = create_model("CifarResNet-8", 10), create_model("CifarResNet-8", 10)
    config = Config(
        image_size=32, batch_size=8, augment=True, epochs=9, teacher_precision="fp32", alpha=0.5, num_classes=10,
        cache_dir=str(tmp_path), **KINDS[request.param],
    )  # fmt: skip
    loader, _, _ = prepare_dataloaders(
        few_digits, 8, num_workers=0, image_size=32, augment=True, augment_views=config.augment_views
    )
    is_taught = request.param != "none"
    needs = needs_of_teacher(default_terms(config))
    runtime = Runtime(torch.device("cpu"))
    teachers = build_teachers(config, teacher if is_taught else None, loader, None, runtime, needs)
    yield config, student, teachers, next(iter(loader))
    teachers.close()


def test_a_step_makes_the_host_wait_for_nothing(parts, gpu):
    config, student, teachers, batch = parts
    runtime = Runtime(CUDA)
    runtime.world_size = 2  # of several processes, weights of classes are summed
    weighted = CrossEntropy(0.1, [1.0 + label for label in range(10)])
    terms = [term for term in default_terms(config) if type(term).__name__ != "Hint"]
    criterion = Criterion(config, teachers.train, runtime, terms, cross_entropy=weighted)
    criterion(student, batch)  # decides, once, what is compared
    hits = getattr(teachers.train, "hits", None)
    with gpu:
        put_on_gpu(student, teachers.train)
        meter, detector = MeanMeter(CUDA, by_class=True), NonFiniteDetector(CUDA, criterion.weights)
        ran(criterion, student, batch, meter, detector)  # constants are handed over once
        gpu.waits.clear()
        ran(criterion, student, batch, meter, detector)
        assert gpu.waits == []
    if hits is not None and teachers.train.cache is not None:
        assert teachers.train.hits == hits + 16


def ran(criterion: Criterion, student: nn.Module, batch: Batch, meter: MeanMeter, detector: NonFiniteDetector) -> None:
    there = batch.pin_memory().to(CUDA, non_blocking=True)
    losses = criterion(student, there)
    detector.update(losses, 0)
    meter.add(losses, there.labels, 7.5)


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_outputs_that_are_not_kept_are_rounded_on_the_device_to_the_bits_that_would_be_stored(precision):
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        maps = [torch.rand(4, side, side, generator=generator, dtype=dtype) ** 8 for side in (8, 4)]
        shape = OutputShape(((8, 8), (4, 4)), None, precision)
        stored = shape.decode_maps(shape.encode_maps(maps), torch.device("cpu"))
        for mine, other in zip(shape.rounded_maps(maps), stored, strict=True):
            assert torch.equal(mine, other)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU, which would tell itself when it waits")
def test_on_a_gpu_training_steps_wait_for_nothing(few_digits):
    from attention_transfer.teacher.build import make_teacher
    from attention_transfer.training.epoch import _compute_gradients, local_batches

    device = torch.device("cuda")
    config, runtime = Config(image_size=32, alpha=0.5), Runtime(device, "bf16")
    student, teacher = create_model("CifarResNet-8", 10).to(device), create_model("CifarResNet-8", 10).to(device)
    needs = needs_of_teacher(default_terms(config))
    criterion = Criterion(config, make_teacher(teacher, config, runtime, needs), runtime)
    optimizer = torch.optim.SGD(student.parameters(), 0.01, momentum=0.9)
    meter, detector = MeanMeter(device), NonFiniteDetector(device, criterion.weights)
    loader, _, _ = prepare_dataloaders(few_digits, 8, num_workers=0, image_size=32)
    try:
        for step, local in enumerate(local_batches(loader, runtime, criterion)):
            torch.cuda.set_sync_debug_mode("error" if step > 1 else "default")
            losses = _compute_gradients(criterion, student, local, runtime, 0.0, 1.0)
            runtime.update(optimizer)
            optimizer.zero_grad()
            detector.update(losses, step)
            meter.add(losses, local.batch.labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")
