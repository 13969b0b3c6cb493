"""Runtime of a run: device, precision and processes; the processes are Hugging Face accelerate's."""

from __future__ import annotations

import atexit
import itertools
import os
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from attention_transfer import object_group
from attention_transfer.config import Config
from attention_transfer.devices import resolve_device
from attention_transfer.errors import AttentionTransferError, ConfigError
from attention_transfer.kernels import Kernels

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Runtime:
    """Runtime of a single process on one device, in float32 or bfloat16; `AcceleratedRuntime` does the rest.

    The training loop uses a runtime for everything that depends on device, precision and the number of
    processes, so that the same loop runs everywhere.
    """

    rank = local_rank = 0
    world_size = local_world_size = 1
    memory_format = torch.contiguous_format

    def __init__(self, device: torch.device, precision: str = "fp32") -> None:
        self.device = device
        self.precision = precision

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0

    @property
    def is_local_main(self) -> bool:
        """Whether this process is the first on its machine, which creates the files that the others there open."""
        return self.local_rank == 0

    def autocast(self, precision: str | None = None) -> AbstractContextManager[Any]:
        """The autocast context for `precision`; None is the run's own."""
        dtype = _AUTOCAST.get(precision or self.precision)
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    def wrap(self, student: nn.Module) -> nn.Module:
        """The student, in DistributedDataParallel where there are several processes."""
        return student

    def step(self, loss: Tensor, optimizer: torch.optim.Optimizer, alone: Iterable[nn.Parameter] = ()) -> None:
        """Backward pass and one step of the optimizer.

        Args:
            loss: a scalar [], of this process's share of the batch.
            optimizer: of all trained parameters.
            alone: parameters outside the wrapped student, whose gradients are averaged over processes here.
        """
        self.backward(loss)
        self.update(optimizer, alone)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss [] to those of the parameters."""
        loss.backward()  # type: ignore[no-untyped-call]

    def no_sync(self, student: nn.Module) -> AbstractContextManager[Any]:
        """Inside, gradients of the wrapped student stay in their process; the next backward pass outside averages all.

        Args:
            student: as `wrap` has returned it, compiled or not.
        """
        return nullcontext()

    def update(
        self, optimizer: torch.optim.Optimizer, alone: Iterable[nn.Parameter] = (), clip_grad: float | None = None
    ) -> None:
        """One step of the optimizer with the gradients that are there.

        Args:
            optimizer: of all trained parameters.
            alone: parameters outside the wrapped student, whose gradients are averaged over processes here.
            clip_grad: the greatest norm of all gradients together; None clips nothing.
        """
        self.average_gradients(alone)
        if clip_grad is not None:
            _clip(optimizer, clip_grad)
        optimizer.step()

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average the gradients of parameters over all processes."""

    def sum_over_processes(self, values: Tensor) -> Tensor:
        """The sum of `values`, a tensor [...] of any shape, over all processes; [...]."""
        return values

    def broadcast_object(self, value: Any) -> Any:
        """The main process's `value`, in every process."""
        return value

    def all_gather_object(self, value: Any) -> list[Any]:
        """Every process's `value`, by rank, in every process."""
        return [value]

    def wait_for_all(self) -> None:
        """Wait until every process is here, for hours if need be: before tensors are exchanged, which wait minutes."""
        self.all_gather_object(None)

    def time_kernels(self) -> None:
        """Let a GPU's kernels be chosen by timing: for runs that keep no outputs for others."""

    def align_buffers(self, module: nn.Module) -> None:
        """Give every process the main process's buffers (running statistics), before measuring."""

    def align_weights(self, module: nn.Module) -> None:
        """Give every process the main process's parameters and buffers, before training."""

    def scaler_state(self) -> dict[str, Any] | None:
        """The state of float16 gradient scaling, where there is any."""
        return None

    def load_scaler_state(self, state: dict[str, Any] | None) -> None:
        """Restore a state of float16 gradient scaling."""


class AcceleratedRuntime(Runtime):
    """The runtime of a run: any device and precision, alone or under `accelerate launch` or torchrun; to be closed.

    Raises:
        ConfigError: the device is not available, or does not support the precision.
    """

    def __init__(self, config: Config) -> None:
        device = resolve_device(config.device)
        precision = resolve_precision(config.precision, device)
        # accelerate holds its state for the life of the process and refuses another device;
        # a notebook may call train_at several times with different devices.
        self._found = [(kind, dict(kind._shared_state)) for kind in (AcceleratorState, PartialState, GradientState)]
        AcceleratorState._reset_state(reset_partial_state=True)
        # of several processes each gets a GPU from accelerate, whatever the number in the setting
        is_one_of_several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        self._kernels = Kernels(torch.device(device.type) if is_one_of_several else device, tf32=config.tf32)
        try:
            # accelerate's precision is fixed from here on, while ours may be chosen once the networks exist: so it
            # gets none
            self._accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no")
        except BaseException:
            self.close()
            raise
        self.world_size = self._accelerator.num_processes
        if self.world_size > 1:
            # the process group stays until the processes exit: the launched program may train again
            atexit.unregister(leave_process_group)
            atexit.register(leave_process_group)
        self.rank = self._accelerator.process_index
        self.local_rank = self._accelerator.local_process_index
        self.local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", self.world_size))
        is_shared_gpu = self.world_size > 1 and device.type != "cpu"
        super().__init__(self._accelerator.device if is_shared_gpu else device, precision)
        self._scaler: torch.amp.GradScaler | None = None
        self.use_precision(precision)

    def close(self) -> None:
        """Restore PyTorch's switches, and accelerate's earlier state, which may be that of a user's own Accelerator."""
        self._kernels.close()
        for kind, state in self._found:
            kind._shared_state.clear()
            kind._shared_state.update(state)

    def use_precision(self, precision: str) -> None:
        """Compute in 'fp32', 'bf16' or 'fp16' from here on; fp16 scales its gradients, and starts scaling afresh."""
        self.precision = precision
        self._scaler = torch.amp.GradScaler(self.device.type) if precision == "fp16" else None

    def wrap(self, student: nn.Module) -> nn.Module:
        if self.world_size == 1:
            return student
        return in_parallel(student, self.device)

    def time_kernels(self) -> None:
        self._kernels.choose_by_timing()

    def backward(self, loss: Tensor) -> None:
        """As `Runtime.backward`, with the gradients scaled in fp16."""
        scaled: Any = loss if self._scaler is None else self._scaler.scale(loss)
        super().backward(scaled)

    def no_sync(self, student: nn.Module) -> AbstractContextManager[Any]:
        wrapped = getattr(student, "_orig_mod", student)
        if not isinstance(wrapped, nn.parallel.DistributedDataParallel):
            return nullcontext()
        alone: AbstractContextManager[Any] = wrapped.no_sync()
        return alone

    def update(
        self, optimizer: torch.optim.Optimizer, alone: Iterable[nn.Parameter] = (), clip_grad: float | None = None
    ) -> None:
        """As `Runtime.update`; in fp16 the gradients are unscaled first, and a step with infinite ones is left out.

        Args:
            optimizer: of all trained parameters.
            alone: parameters outside the wrapped student.
            clip_grad: the greatest norm of all gradients together, unscaled.
        """
        if self._scaler is None:
            super().update(optimizer, alone, clip_grad)
            return
        self.average_gradients(alone)
        if clip_grad is not None:
            self._scaler.unscale_(optimizer)
            _clip(optimizer, clip_grad)
        self._scaler.step(optimizer)
        self._scaler.update()

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        if self.world_size > 1:
            for parameter in parameters:
                if parameter.grad is None:  # every process must take part, even if its share did not use the parameter
                    parameter.grad = torch.zeros_like(parameter)
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= self.world_size

    def sum_over_processes(self, values: Tensor) -> Tensor:
        """The sum of `values` [...] over all processes; [...]."""
        if self.world_size == 1:
            return values
        total: Tensor = self._accelerator.reduce(values, reduction="sum")
        return total

    def broadcast_object(self, value: Any) -> Any:
        return value if self.world_size == 1 else object_group.broadcast(value)

    def all_gather_object(self, value: Any) -> list[Any]:
        return [value] if self.world_size == 1 else object_group.gather(value)

    def align_buffers(self, module: nn.Module) -> None:
        self._broadcast(module.buffers())

    def align_weights(self, module: nn.Module) -> None:
        self._broadcast(itertools.chain(module.parameters(), module.buffers()))

    def _broadcast(self, tensors: Iterable[Tensor]) -> None:
        if self.world_size > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor.detach(), src=0)

    def scaler_state(self) -> dict[str, Any] | None:
        return None if self._scaler is None else self._scaler.state_dict()

    def load_scaler_state(self, state: dict[str, Any] | None) -> None:
        if state is not None and self._scaler is not None:
            self._scaler.load_state_dict(state)


def in_parallel(student: nn.Module, device: torch.device) -> nn.Module:
    """The student in DistributedDataParallel.

    Running statistics of batch normalisation are not broadcast in every forward pass, as training does not read them:
    they are aligned before they are read (see `Runtime.align_buffers`). Other buffers may be read, and are broadcast.

    Args:
        student: on the device.
        device: of this process.
    """
    running = sum(len(list(m.buffers(recurse=False))) for m in student.modules() if isinstance(m, _NormBase))
    return nn.parallel.DistributedDataParallel(
        student,
        device_ids=[device] if device.type == "cuda" else None,
        broadcast_buffers=running < len(list(student.buffers())),
        gradient_as_bucket_view=True,
    )


def _clip(optimizer: torch.optim.Optimizer, greatest: float) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    nn.utils.clip_grad_norm_(parameters, greatest)


def leave_process_group() -> None:
    """Destroy the process group; a process that exits without may abort and fail a finished run."""
    if torch.distributed.is_initialized():
        # Gloo's thread needs the interpreter to free its last tensors, and up to torch 2.6 destroying the group waits
        # for that thread without releasing the interpreter: after a short sleep both can end.
        time.sleep(0.2)
        torch.distributed.destroy_process_group()


def resolve_precision(precision: str, device: torch.device, setting: str = "precision") -> str:
    """'fp32', 'bf16' or 'fp16' for a device; 'auto' is bf16 on GPUs of capability 8.0 or more, else fp32.

    On a CPU 'auto' is only preliminary: `precision.choose_precision` times both once the networks exist.

    Args:
        precision: 'auto', 'fp32', 'bf16' or 'fp16'.
        device: on which the network runs.
        setting: the setting's name, for messages.

    Raises:
        ConfigError: fp16 on a device other than CUDA.
    """
    if precision == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    if precision == "fp16" and device.type != "cuda":
        raise ConfigError(f"{setting} is 'fp16', which needs a CUDA device, not {device}; use 'fp32' or 'bf16'.")
    return precision


T = TypeVar("T")


def all_or_raise(runtime: Runtime, work: Callable[[], T]) -> T:
    """Call `work` in every process, and raise the first error in all of them if it fails in one."""
    error: Exception | None = None
    try:
        result = work()
    except (AttentionTransferError, OSError) as raised:
        error = raised
    first = next((each for each in runtime.all_gather_object(error) if each is not None), None)
    if first is not None:
        raise first
    return result
