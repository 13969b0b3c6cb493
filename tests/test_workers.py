"""Processes that load images: what happens when one is killed."""

from __future__ import annotations

import os
import signal
import time

import psutil
import pytest
from torch.utils.data import DataLoader, Dataset

from attention_transfer import DataError, create_model, train_at
from attention_transfer.checkpoint import read_checkpoint
from attention_transfer.data.workers import telling_of_lost_workers

from runs import bring, tensors


def test_a_worker_that_is_killed_ends_the_run_within_a_minute_with_the_last_checkpoint_intact(settings, tmp_path):
    student, killed = create_model("CifarResNet-8", 10), []
    before = {child.pid for child in psutil.Process().children()}  # of other tests

    def kill_a_worker(module, arguments, output):
        last = tmp_path / "checkpoints" / "run_last.pth"
        if module.training and last.exists() and not killed:
            # forked from this process, unlike multiprocessing's own helpers
            forked = [child for child in psutil.Process().children() if child.cmdline() == psutil.Process().cmdline()]
            os.kill(next(child.pid for child in forked if child.pid not in before), signal.SIGKILL)
            killed.append(time.monotonic())

    student.register_forward_hook(kill_a_worker)
    with pytest.raises(DataError, match=r"a process that loads images is gone .*num_workers"):
        train_at({**settings, "num_workers": 2, "epochs": 200, "batch_size": 8}, student=student)
    assert time.monotonic() - killed[0] < 60
    assert read_checkpoint(tmp_path / "checkpoints" / "run_last.pth")["epoch"] >= 1


class Remote(Dataset):
    """Images from elsewhere, of which the sixth cannot be fetched."""

    def __init__(self, error):
        self.images, self.labels = tensors()
        self.error = error

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if index == 5 and self.error is not None:
            raise self.error
        return self.images[index], int(self.labels[index])


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("error", [ConnectionResetError("s3 closed"), EOFError("Compressed file ended")])
def test_an_error_of_the_users_own_data_goes_through_as_it_is(settings, error, num_workers):
    loader = DataLoader(Remote(error), 4, num_workers=num_workers)
    with pytest.raises(type(error), match=str(error)) as raised:
        train_at({**bring(settings), "num_classes": 4}, loader)
    assert not isinstance(raised.value, DataError)
    assert "want of memory" not in str(raised.value)


def test_an_error_of_a_loader_that_is_no_torch_loader_goes_through_as_it_is(settings):
    class Stream:
        def __iter__(self):
            yield tensors()
            raise ConnectionResetError("s3 closed")

    with pytest.raises(ConnectionResetError, match=r"^s3 closed$"):
        train_at({**bring(settings), "num_classes": 4}, Stream())


class OnItsWay:
    """A batch whose worker is killed while the main process receives it."""

    def __init__(self, batch):
        self.worker = os.getpid()

    def __reduce__(self):
        return _lose, (self.worker,)


def _lose(worker):
    os.kill(worker, signal.SIGKILL)
    raise ConnectionResetError(104, "Connection reset by peer")


def test_a_connection_that_breaks_because_a_worker_died_is_told_as_that():
    loader = DataLoader(Remote(None), 4, num_workers=2, collate_fn=OnItsWay)
    lost = r"a process that loads images is gone \(DataLoader worker \(pid.*num_workers"
    with pytest.raises(DataError, match=lost), telling_of_lost_workers():
        next(iter(loader))
