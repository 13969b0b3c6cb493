"""The number format that 'auto' selects on a CPU: fp32 without bf16 instructions, else the faster of the two.

A processor with such instructions is not always faster in bf16, so both are timed. Timing is bounded: it takes at most
two seconds, or 1 % of the run. The result is cached in a file for the next run of the same kind.
"""

from __future__ import annotations

import json
import logging
import math
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attention_transfer.cache.folder import PRECISION_FILE, cache_folder
from attention_transfer.config import Config
from attention_transfer.data.frame import as_frame
from attention_transfer.data.loading.user_loaders import unpack
from attention_transfer.distributed import Runtime, resolve_precision
from attention_transfer.errors import WriteError
from attention_transfer.files import write_atomically
from attention_transfer.logs import log_once
from attention_transfer.networks.registry import network_name
from attention_transfer.seeding import random_state, restore_random_state
from attention_transfer.teacher.build import memory_format_of
from attention_transfer.teacher.runner import CHUNK
from attention_transfer.training.precision.bf16 import cpu_capabilities, has_bf16
from attention_transfer.training.precision.trial import (
    Comparison,
    NotComparedError,
    Shape,
    Times,
    answering_step,
    compare,
    in_a_line,
    training_step,
)

logger = logging.getLogger(__name__)


def choose_precision(
    config: Config,
    runtime: Runtime,
    student: nn.Module,
    teacher: nn.Module | None,
    shape: Shape,
    steps: int | None,
    cache_dir: Path,
    *,
    capabilities: Mapping[str, object] | None = None,
    comparison: Comparison = compare,
) -> str:
    """The number format to train in: the setting, or what 'auto' selects. All processes must call this.

    On a CPU the main process decides and broadcasts the result: fp32 if the processor has no bf16 instructions; else
    it times real training steps on a copy of the student, unless the result is cached. Networks and random generators
    are left unchanged.

    Args:
        config: uses precision, and the settings of a step: alpha, beta, temperature, layers, momentum, weight_decay.
        runtime: gives device, memory format and processes; its own precision is left to the caller.
        student: on the device, in the memory format of the run.
        teacher: likewise, or None; run on a single image, whose outputs stand for those of all.
        shape: [B, C, H, W] of a batch of one process, see `batch_shape`.
        steps: remaining steps of the run; None if unknown.
        cache_dir: folder of the cached results; made if need be.
        capabilities: the processor's, see `has_bf16`; None asks torch.
        comparison: how the two are timed.

    Returns:
        'fp32', 'bf16' or 'fp16'; fp32 if there was no time to compare, or a step failed.

    Raises:
        ConfigError: fp16 on a device other than CUDA.
    """

    if config.precision != "auto" or runtime.device.type != "cpu":
        return resolve_precision(config.precision, runtime.device)

    def measure() -> Times:
        return comparison(training_step(config, runtime, student, teacher, shape), shape[0], steps)

    kind = "training without a teacher" if teacher is None else "training with a teacher"
    return _choose(runtime, kind, student, runtime.memory_format, shape, cache_dir, measure, capabilities)


def choose_teacher_precision(
    config: Config,
    runtime: Runtime,
    teacher: nn.Module,
    shape: Shape,
    cache_dir: Path,
    *,
    capabilities: Mapping[str, object] | None = None,
    comparison: Comparison = compare,
) -> str:
    """The number format of the teacher's forward pass: as `choose_precision`, for inference alone.

    Teacher outputs are cached by number format, so the choice must not depend on what differs between runs that share
    a cache, such as the number of epochs: timing is limited to two seconds, and every result is cached.

    Args:
        config: uses teacher_precision, alpha, beta and layers.
        runtime: gives device, memory format and processes.
        teacher: on the device, in the memory format of the run; not copied, as inference does not change it.
        shape: [B, C, H, W] of a batch of its inputs.
        cache_dir: folder of the cached results; made if need be.
        capabilities: the processor's, see `has_bf16`; None asks torch.
        comparison: how the two are timed.

    Raises:
        ConfigError: fp16 on a device other than CUDA.
    """
    if config.teacher_precision != "auto" or runtime.device.type != "cpu":
        return resolve_precision(config.teacher_precision, runtime.device, "teacher_precision")

    def measure() -> Times:
        return comparison(answering_step(config, runtime, teacher, shape), shape[0], None)

    layout = memory_format_of(teacher, runtime)
    kind = "a teacher's answers"
    return _choose(runtime, kind, teacher, layout, shape, cache_dir, measure, capabilities, caches_all=True)


def batch_shape(config: Config, loader: Iterable[Any], images: Tensor | None, world_size: int) -> Shape:
    """The shape [B, C, H, W] of a training batch of one process, found without iterating the loader.

    Args:
        config: batch_size and image_size, for a loader that does not have them.
        loader: the training loader, over the batches of all processes.
        images: some images [N, C, H, W] of the same data, such as `images_to_draw` returns; or None.
        world_size: the number of processes.
    """
    image = tuple(images.shape[1:]) if images is not None else (3, *as_frame(config.image_size).size)
    size = getattr(loader, "batch_size", None)
    if isinstance(loader, Sequence):
        first = unpack(loader[0]).images
        size, image = len(first), tuple(first.shape[1:])
    size = size if isinstance(size, int) else config.batch_size
    return (max(1, math.ceil(size / world_size)), *image)


def _choose(
    runtime: Runtime,
    kind: str,
    network: nn.Module,
    layout: torch.memory_format,
    shape: Shape,
    cache_dir: Path,
    measure: Callable[[], Times],
    capabilities: Mapping[str, object] | None,
    *,
    caches_all: bool = False,
) -> str:
    """Check the processor, then the cache, else measure; `caches_all` also caches that there was no time to compare."""
    chosen = None
    if runtime.is_main and has_bf16(cpu_capabilities() if capabilities is None else capabilities) is False:
        log_once("precision: fp32, as this processor has no instructions for bf16")
        chosen = "fp32"
    elif runtime.is_main:
        key, before = _key(kind, network, layout, shape), random_state()
        try:
            chosen = _decide(kind, key, shape[0], cache_dir, measure)
        except Exception as error:
            # the other processes wait for the result whatever the error is, and training will raise it again
            reason = error if isinstance(error, NotComparedError) else f"a step cannot be made ({in_a_line(error)})"
            logger.info("precision: %s in fp32: %s", kind, reason)
            chosen = "fp32"
            if caches_all and isinstance(error, NotComparedError):
                _remember(cache_dir, key, chosen)
        finally:
            restore_random_state(before)
    return str(runtime.broadcast_object(chosen))


def _decide(kind: str, key: str, images: int, cache_dir: Path, measure: Callable[[], Times]) -> str:
    known = _read_cached(cache_dir, key)
    if known is not None:
        logger.info("precision: %s in %s, as remembered in %s", kind, known, cache_dir / PRECISION_FILE)
        return known
    times = measure()
    seconds = f"{images} images take {times.fp32:.3g} s in fp32 and {times.bf16:.3g} s in bf16"
    logger.info("precision: %s in %s: %s", kind, times.winner, seconds)
    _remember(cache_dir, key, times.winner, times)
    return times.winner


def _key(kind: str, network: nn.Module, layout: torch.memory_format, shape: Shape) -> str:
    parts = (
        kind,
        f"{network_name(network)} of {sum(parameter.numel() for parameter in network.parameters())} parameters",
        "x".join(map(str, shape)),
        str(layout).removeprefix("torch."),
        processor(),
        f"{torch.get_num_threads()} threads",
        f"torch {torch.__version__}",
    )
    return ", ".join(parts)


def processor() -> str:
    """The processor's name and model, where the system has them, and the instruction set that PyTorch detects."""
    names = ("model name", "cpu family", "model", "stepping", "CPU implementer", "CPU part")
    found: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    known = " ".join(found[name] for name in names if name in found)
    return f"{known or platform.processor() or platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def _read(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}")
    return content


def _read_cached(folder: Path, key: str) -> str | None:
    path = folder / PRECISION_FILE
    try:
        entry = _read(path).get(key)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be read and is ignored (%s)", path, in_a_line(error))
        return None
    known = entry.get("precision") if isinstance(entry, dict) else None
    return known if known in ("fp32", "bf16") else None


def _remember(folder: Path, key: str, precision: str, times: Times | None = None) -> None:
    path = folder / PRECISION_FILE
    try:
        content = _read(path)
    except (OSError, ValueError):
        content = {}
    measured = {} if times is None else {"fp32": round(times.fp32, 6), "bf16": round(times.bf16, 6)}
    content[key] = {"precision": precision, **measured}
    try:
        write_atomically(path, json.dumps(content, indent=2).encode(), setting="cache_dir")
    except WriteError as error:
        logger.warning("%s cannot be written, so that the precision is timed again next time: %s", path, error)


def with_teacher_precision(config: Config, runtime: Runtime, teacher: nn.Module, shape: Sequence[int]) -> Config:
    """The configuration with teacher_precision='auto' resolved.

    Args:
        config: uses teacher_precision and cache_dir.
        runtime: gives device and processes.
        teacher: the network, on the device.
        shape: [B, C, H, W] of a training batch.
    """
    folder = cache_folder(config.cache_dir)
    chosen = choose_teacher_precision(config, runtime, teacher, (CHUNK, *shape[1:]), folder)
    return config.model_copy(update={"teacher_precision": chosen})
