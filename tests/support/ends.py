"""The ways in which a run ends: each is called with a `Setting`, and returns what train_at returns, or raises."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import torch
from support.held import held
from support.runs import tensors
from torch.utils.data import DataLoader, Dataset

from attention_transfer import (
    CacheError,
    CheckpointError,
    ConfigError,
    DataError,
    DivergenceError,
    TeacherError,
    WriteError,
    create_model,
    prepare_dataloaders,
    train_at,
)
from attention_transfer.cache.folder import entries
from attention_transfer.training.prefill import prefill_caches
from attention_transfer.training.signals import ONE_REQUEST


class Setting:
    """What the runs of a test share, and the networks that are looked at afterwards."""

    def __init__(self, data, folder):
        self.folder, self.hooks = folder, []
        torch.manual_seed(0)
        self.student, self.teacher = create_model("CifarResNet-8", 10), create_model("CifarResNet-8", 10)
        self.settings = {
            "data_dir": str(data), "image_size": 16, "batch_size": 16, "num_workers": 1, "epochs": 1, "device": "cpu",
            "alpha": 0.5, "precision": "fp32", "teacher_precision": "fp32", "pixel_cache": "on", "teacher_cache": "on",
            "save_dir": str(folder / "checkpoints"), "log_dir": str(folder / "logs"),
            "cache_dir": str(folder / "cache"), "experiment_name": "run", "overwrite": True, "figure_freq": 100,
        }  # fmt: skip

    def train(self, *loaders, teacher=True, **settings):
        if loaders:
            settings = {"num_classes": 10, "data_dir": None, **settings}
        given = {key: value for key, value in {**self.settings, **settings}.items() if value is not None}
        return train_at(given, *loaders, student=self.student, teacher=self.teacher if teacher else None)

    def in_batch(self, number, event):
        """Do something in the student's training batch `number`, from 1 on."""
        batches = 0

        def listen(module, arguments, output):
            nonlocal batches
            batches += module.training
            return event(output) if batches == number and module.training else None

        self.hooks.append(self.student.register_forward_hook(listen))

    def whenever_the_teacher_is_asked(self, event):
        self.hooks.append(self.teacher.register_forward_hook(lambda module, arguments, output: event(output)))

    def take_own_hooks_off(self):
        for hook in self.hooks:
            hook.remove()

    def held(self):
        return held(self.folder, self.student, self.teacher)


def fail(output):
    raise ZeroDivisionError("of the user's own network")


def _signal(number):
    return lambda output: os.kill(os.getpid(), number)


def signal_twice(output):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(ONE_REQUEST + 0.1)
    os.kill(os.getpid(), signal.SIGINT)


def children():
    return {child.pid for child in psutil.Process().children()}


class Images(Dataset):
    """Forty images of a user's, one of which is not as the others."""

    def __init__(self, odd=None):
        self.images, self.labels = tensors(40, classes=10)
        self.odd = odd

    def __len__(self):
        return 40

    def __getitem__(self, index):
        if index == 25 and isinstance(self.odd, Exception):
            raise self.odd
        return self.images[index], self.odd if index == 25 and self.odd is not None else float(self.labels[index])


def user_loaders(odd=None, **settings):
    return DataLoader(Images(odd), 8, **{"num_workers": 1, **settings})


def finished(setting):
    return setting.train(figure_freq=1)


def finished_on_views_of_a_warped_memory(setting):
    return setting.train(augment=True, augment_views="warp")


def finished_without_caches_and_without_workers(setting):
    return setting.train(pixel_cache="off", teacher_cache="off", num_workers=0)


def finished_after_a_resume(setting):
    setting.train()
    return setting.train(epochs=2, overwrite=False, resume="auto")


def finished_on_loaders_of_ours_that_the_user_brings(setting):
    loaders = prepare_dataloaders(setting.settings["data_dir"], 16, num_workers=1, image_size=16)
    return setting.train(*loaders), loaders


def finished_on_loaders_of_the_users(setting):
    loaders = [user_loaders(), user_loaders(persistent_workers=True), user_loaders()]
    return setting.train(*loaders), loaders


def finished_without_a_test(setting):
    results = setting.train(user_loaders(), user_loaders(), user_loaders(77.0))
    assert results["test_results"] is None
    assert "a label is 77" in results["test_error"]
    return results


def stopped_by_sigint(setting):
    setting.in_batch(3, _signal(signal.SIGINT))
    return setting.train()


def stopped_by_sigterm(setting):
    setting.in_batch(3, _signal(signal.SIGTERM))
    return setting.train()


def stopped_on_a_loader_of_the_users(setting):
    setting.in_batch(3, _signal(signal.SIGTERM))
    return setting.train(user_loaders())


def stopped_at_once_by_a_second_ctrl_c(setting):
    setting.in_batch(3, signal_twice)
    return setting.train()


def interrupted_while_it_prepares(setting):
    setting.whenever_the_teacher_is_asked(_signal(signal.SIGINT))
    return setting.train()


def refused_for_a_bad_teacher(setting):
    path = setting.folder / "teacher.pth"
    path.write_bytes(b"no weights")
    return setting.train(teacher=False, teacher_model=str(path))


def refused_for_a_teacher_of_other_classes(setting):
    setting.teacher = create_model("CifarResNet-8", 12)
    return setting.train()


def refused_for_a_teacher_that_fails_when_it_is_asked(setting):
    setting.whenever_the_teacher_is_asked(fail)
    return setting.train()


def refused_for_an_image_that_cannot_be_read(setting):
    data = setting.folder / "data"
    for path in Path(setting.settings["data_dir"]).rglob("*.png"):
        copy = data / path.relative_to(setting.settings["data_dir"])
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    sorted(data.rglob("*.png"))[50].write_bytes(b"no image")
    return setting.train(data_dir=str(data))


def refused_for_want_of_room_for_the_second_memory(setting):
    setting.train()
    (last, *_) = [entry for entry in entries(setting.folder / "cache")[::-1] if entry.kind == "maps"]
    last.path.unlink()
    return setting.train(cache_limit=1e-9)


def refused_to_go_back(setting):
    setting.train(epochs=2)
    return setting.train(overwrite=False, resume=str(setting.folder / "checkpoints" / "run_last.pth"))


def refused_for_another_recipe(setting):
    setting.train()
    return setting.train(overwrite=False, resume=str(setting.folder / "checkpoints" / "run_last.pth"), lr=0.5)


def refused_for_a_checkpoint_that_is_not_there(setting):
    return setting.train(overwrite=False, resume=str(setting.folder / "nowhere.pth"))


def refused_for_its_name(setting):
    setting.train()
    return setting.train(overwrite=False)


def failed_by_divergence(setting):
    setting.in_batch(3, lambda output: output * float("nan"))
    return setting.train()


def failed_by_divergence_on_a_loader_of_the_users(setting):
    setting.in_batch(3, lambda output: output * float("nan"))
    return setting.train(user_loaders())


def failed_in_the_users_network(setting):
    setting.in_batch(3, fail)
    return setting.train()


def failed_by_a_worker_that_died(setting):
    before = children()
    setting.in_batch(3, lambda output: [os.kill(pid, signal.SIGKILL) for pid in children() - before] and None)
    return setting.train(epochs=50)


def failed_by_an_error_in_a_worker_of_the_users(setting):
    return setting.train(user_loaders(ConnectionResetError("s3 closed")))


def failed_by_an_error_of_the_users_loader(setting):
    class Stream:
        def __iter__(self):
            yield tensors()
            raise ConnectionResetError("s3 closed")

    return setting.train(Stream())


def failed_by_a_label_out_of_range(setting):
    return setting.train(user_loaders(77.0))


def failed_by_a_label_that_is_not_whole(setting):
    return setting.train(user_loaders(0.5))


def failed_in_validation(setting):
    return setting.train(user_loaders(), user_loaders(77.0))


def failed_to_write_a_checkpoint(setting):
    def spoil(output):
        folder = setting.folder / "checkpoints"
        folder.rename(setting.folder / "elsewhere")
        folder.write_text("no folder")

    setting.in_batch(3, spoil)
    return setting.train()


def failed_to_write_the_logs(setting):
    def spoil(output):
        folder = setting.folder / "logs"
        folder.rename(setting.folder / "elsewhere")
        folder.write_text("no folder")

    setting.in_batch(3, spoil)
    return setting.train()


def failed_when_its_log_was_opened(setting):
    (setting.folder / "logs" / "run.log").mkdir(parents=True)
    return setting.train()


def filled_before_any_run(setting):
    return prefill_caches(_with_teacher_file(setting))


def interrupted_while_the_caches_were_filled(setting):
    setting.whenever_the_teacher_is_asked(_signal(signal.SIGINT))
    settings = _with_teacher_file(setting)
    from attention_transfer.training import prefill as prefilling

    # a teacher that can be told when to send a signal; everything else is as it always is
    ours, prefilling.open_teacher = prefilling.open_teacher, lambda *arguments, **settings: setting.teacher
    try:
        return prefill_caches(settings)
    finally:
        prefilling.open_teacher = ours


def _with_teacher_file(setting):
    path = setting.folder / "teacher.pth"
    torch.save(setting.teacher.state_dict(), path)
    return {**setting.settings, "teacher_model": str(path)}


FINISHED = [
    finished, finished_on_views_of_a_warped_memory, finished_without_caches_and_without_workers,
    finished_after_a_resume, finished_on_loaders_of_ours_that_the_user_brings, finished_on_loaders_of_the_users,
    finished_without_a_test,
]  # fmt: skip
STOPPED = [
    stopped_by_sigint, stopped_by_sigterm, stopped_on_a_loader_of_the_users, stopped_at_once_by_a_second_ctrl_c,
]  # fmt: skip
RAISED = {
    interrupted_while_it_prepares: KeyboardInterrupt,
    refused_for_a_bad_teacher: (TeacherError, CheckpointError),
    refused_for_a_teacher_of_other_classes: TeacherError,
    refused_for_a_teacher_that_fails_when_it_is_asked: ZeroDivisionError,
    refused_for_an_image_that_cannot_be_read: DataError,
    refused_for_want_of_room_for_the_second_memory: CacheError,
    refused_to_go_back: ConfigError,
    refused_for_another_recipe: ConfigError,
    refused_for_a_checkpoint_that_is_not_there: CheckpointError,
    refused_for_its_name: ConfigError,
    failed_by_divergence: DivergenceError,
    failed_by_divergence_on_a_loader_of_the_users: DivergenceError,
    failed_in_the_users_network: ZeroDivisionError,
    failed_by_a_worker_that_died: DataError,
    failed_by_an_error_in_a_worker_of_the_users: ConnectionResetError,
    failed_by_an_error_of_the_users_loader: ConnectionResetError,
    failed_by_a_label_out_of_range: DataError,
    failed_by_a_label_that_is_not_whole: DataError,
    failed_in_validation: DataError,
    failed_to_write_a_checkpoint: WriteError,
    failed_to_write_the_logs: WriteError,
    failed_when_its_log_was_opened: WriteError,
    interrupted_while_the_caches_were_filled: KeyboardInterrupt,
}
