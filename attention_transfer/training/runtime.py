"""Where a run computes: device, number format and processes, all owned by Hugging Face accelerate."""

from __future__ import annotations

import atexit
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn

from attention_transfer.config import Config
from attention_transfer.devices import resolve_device
from attention_transfer.errors import ConfigError


class Runtime:
    """One process alone on one device, computing in float32; `AcceleratedRuntime` does the rest.

    The training loop asks a runtime for everything that depends on device, precision and the number of
    processes, so that the same loop runs everywhere.
    """

    rank = 0
    world_size = 1
    precision = "fp32"
    memory_format = torch.contiguous_format

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which networks run in the chosen number format."""
        return nullcontext()

    def wrap(self, student: nn.Module) -> nn.Module:
        """The student as the loop calls it: gradients averaged over processes where there are several."""
        return student

    def step(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Backward pass and one step of the optimizer."""
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    def sum_over_processes(self, values: Tensor) -> Tensor:
        """The sum of `values` over all processes."""
        return values

    def from_main(self, value: Any) -> Any:
        """The main process's `value`, in every process."""
        return value

    def from_all(self, value: Any) -> list[Any]:
        """Every process's `value`, by rank, in every process."""
        return [value]

    def align_buffers(self, student: nn.Module) -> None:
        """Give every process the main process's buffers (running statistics), before measuring."""

    def scaler_state(self) -> dict[str, Any] | None:
        """The state of float16 gradient scaling, where there is any."""
        return None

    def load_scaler_state(self, state: dict[str, Any] | None) -> None:
        """Go on with a state of float16 gradient scaling."""


class AcceleratedRuntime(Runtime):
    """The runtime of a run: any device and precision, alone or under `accelerate launch` or torchrun.

    Raises:
        ConfigError: the device is not there, or the precision does not exist on it.
    """

    def __init__(self, config: Config) -> None:
        device = resolve_device(config.device)
        self.precision = resolve_precision(config.precision, device)
        # accelerate keeps its state for the life of the process and refuses another precision or device;
        # a notebook calls train_at again and again with whatever it likes.
        AcceleratorState._reset_state(reset_partial_state=True)
        self._accelerator = Accelerator(
            cpu=device.type == "cpu",
            mixed_precision="no" if self.precision == "fp32" else self.precision,
        )
        self.world_size = self._accelerator.num_processes
        if self.world_size > 1:
            atexit.register(leave_process_group)
        self.rank = self._accelerator.process_index
        is_shared_gpu = self.world_size > 1 and device.type != "cpu"
        super().__init__(self._accelerator.device if is_shared_gpu else device)

    def autocast(self) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = self._accelerator.autocast()
        return context

    def wrap(self, student: nn.Module) -> nn.Module:
        if self.world_size == 1:
            return student
        device_ids = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(student, device_ids=device_ids)

    def step(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        scaler = self._accelerator.scaler
        if scaler is None:
            super().step(loss, optimizer)
            return
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    def sum_over_processes(self, values: Tensor) -> Tensor:
        if self.world_size == 1:
            return values
        total: Tensor = self._accelerator.reduce(values, reduction="sum")
        return total

    def from_main(self, value: Any) -> Any:
        values = [value]
        broadcast_object_list(values, from_process=0)
        return values[0]

    def from_all(self, value: Any) -> list[Any]:
        return list(gather_object([value]))

    def align_buffers(self, student: nn.Module) -> None:
        if self.world_size > 1:
            for buffer in student.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def scaler_state(self) -> dict[str, Any] | None:
        scaler = self._accelerator.scaler
        return None if scaler is None else scaler.state_dict()

    def load_scaler_state(self, state: dict[str, Any] | None) -> None:
        if state is not None and self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(state)


def leave_process_group() -> None:
    """Take leave of the other processes; one that exits without may abort, and take a finished run down with it."""
    if torch.distributed.is_initialized():
        # Gloo's thread needs the interpreter to free its last tensors, and up to torch 2.6 destroying the group waits
        # for that thread without giving the interpreter up: a moment of rest, and both end.
        time.sleep(0.2)
        torch.distributed.destroy_process_group()


def resolve_precision(precision: str, device: torch.device) -> str:
    """'fp32', 'bf16' or 'fp16' for a device; 'auto' is bf16 on GPUs of capability 8.0 or more, else fp32.

    Raises:
        ConfigError: fp16 elsewhere than on a CUDA device.
    """
    if precision == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    if precision == "fp16" and device.type != "cuda":
        raise ConfigError(f"precision is 'fp16', which needs a CUDA device, not {device}; use 'fp32' or 'bf16'.")
    return precision
