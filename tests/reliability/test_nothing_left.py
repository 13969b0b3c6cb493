"""When train_at returns, is stopped or fails, nothing of the run is open, locked, hooked or alive (promise P6).

The garbage collector is off meanwhile, and an error is kept with its traceback and frames, as a notebook keeps it.
"""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from support.ends import (
    FINISHED,
    RAISED,
    STOPPED,
    Setting,
    children,
    fail,
    failed_in_the_users_network,
    filled_before_any_run,
    user_loaders,
)
from support.held import added
from support.runs import Unsized

from attention_transfer import prepare_dataloaders
from attention_transfer.cache.folder import entries, evict
from attention_transfer.cache.in_use import is_in_use
from attention_transfer.cli.commands.cache import clear, info, verify
from attention_transfer.data.loading.loaders import close_loader
from attention_transfer.training.callbacks import tensorboard

pytestmark = [
    pytest.mark.slow,
    pytest.mark.speed,
    pytest.mark.usefixtures("ctrl_c_counts"),
    pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="there is no /proc here to tell what is open"),
]


@pytest.fixture(scope="module", autouse=True)
def warm(eighty_digits, tmp_path_factory):
    """What a process opens once and for good, in runs before any look: matplotlib's fonts, tqdm's monitor, torch's
    handler of dying workers, and whatever modules are imported when they are first needed."""
    setting = Setting(eighty_digits, tmp_path_factory.mktemp("warm"))
    setting.train(figure_freq=1)
    setting.in_batch(2, fail)
    with pytest.raises(ZeroDivisionError):
        setting.train()


@pytest.fixture(autouse=True)
def without_figures(monkeypatch):
    """Drawing takes as long as all else in a run here; one kind of end undoes it."""
    monkeypatch.setattr(tensorboard, "_is_due", lambda run: run.config.figure_freq == 1)


@pytest.fixture
def setting(eighty_digits, tmp_path):
    return Setting(eighty_digits, tmp_path)


@pytest.fixture(autouse=True)
def without_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def named(end):
    return end.__name__


def before_and_after(setting, end):
    """What was held before and after, and what came of it: kept until both are compared."""
    before = setting.held()
    try:
        came = end(setting)
    except BaseException as error:
        came = error
    return before, came


def assert_nothing_is_left(setting, before):
    setting.take_own_hooks_off()
    assert added(before, setting.held()) == {}
    assert not [entry.path.name for entry in entries(setting.folder / "cache") if is_in_use(entry.path)]
    assert not [name for name in ("checkpoints", "logs") if (setting.folder / name / ".run.lock").exists()]


@pytest.mark.parametrize("end", [*FINISHED, filled_before_any_run], ids=named)
def test_nothing_is_left_of_a_run_that_finished(setting, end):
    before, came = before_and_after(setting, end)
    assert not isinstance(came, BaseException), came
    assert_nothing_is_left(setting, before)


@pytest.mark.parametrize("end", STOPPED, ids=named)
def test_nothing_is_left_of_a_run_that_was_stopped(setting, end):
    before, came = before_and_after(setting, end)
    assert came["status"] == "stopped", came
    assert_nothing_is_left(setting, before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's, of a write error
@pytest.mark.parametrize("end", RAISED, ids=named)
def test_nothing_is_left_of_a_run_that_failed_while_its_error_is_kept(setting, end):
    before, came = before_and_after(setting, end)
    assert isinstance(came, RAISED[end]), came
    assert came.__traceback__ is not None
    assert_nothing_is_left(setting, before)


def test_a_second_run_beside_a_kept_error_and_a_kept_result_leaves_nothing_either(setting):
    before, failed = before_and_after(setting, failed_in_the_users_network)
    setting.take_own_hooks_off()
    first, second = setting.train(), setting.train()
    assert isinstance(failed, ZeroDivisionError)
    assert first["status"] == second["status"] == "finished"
    assert_nothing_is_left(setting, before)


def test_workers_behind_a_loader_of_the_users_that_wraps_torchs_end_with_the_run(setting):
    before = setting.held()
    with pytest.raises(ConnectionResetError) as kept:
        setting.train(Unsized(user_loaders(ConnectionResetError("s3 closed"))))
    # the batch in the user's own frame, in memory that its worker shared, is the user's
    assert not added(before, setting.held()).keys() - {"open files", "mapped files"}
    assert kept.value.__traceback__ is not None


def test_the_networks_that_a_run_returns_have_no_hooks(setting):
    results = setting.train()
    assert results["teacher_model"] is setting.teacher
    for network in (results["model"], results["teacher_model"]):
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_what_a_run_has_used_can_be_cleared_by_the_next_cell_of_a_notebook(setting, capsys):
    results = setting.train()
    cache = setting.folder / "cache"
    assert {entry.kind for entry in entries(cache)} == {"pixels", "maps", "logits"}
    clear(cache_dir=str(cache))
    assert "in use" not in capsys.readouterr().out
    assert entries(cache) == []
    assert results["status"] == "finished"


def test_what_a_run_has_used_makes_room_for_the_next_one(setting):
    results = setting.train()
    cache = setting.folder / "cache"
    total = sum(entry.size for entry in entries(cache))
    evict(cache, total, total / 1e9)
    assert entries(cache) == []
    assert results["status"] == "finished"


@pytest.mark.parametrize("command", [info, verify], ids=["info", "verify"])
def test_the_commands_that_look_into_the_cache_leave_it_closed(setting, command):
    setting.train()
    before = setting.held()
    command(cache_dir=str(setting.folder / "cache"))
    assert_nothing_is_left(setting, before)


def test_loaders_that_a_user_brings_are_left_without_files_and_give_the_same_images(setting):
    loaders = prepare_dataloaders(setting.settings["data_dir"], 16, num_workers=1, image_size=16)
    first = torch.cat([batch.images for batch in loaders[1]])
    close_loader(loaders[1])
    setting.train(*loaders)
    assert [loader.dataset.store for loader in loaders] == [None] * 3
    assert [loader._iterator for loader in loaders] == [None] * 3
    assert torch.equal(torch.cat([batch.images for batch in loaders[1]]), first)
    close_loader(loaders[1])


def test_workers_that_were_at_work_for_the_user_before_a_run_stay_the_users(setting):
    train, *_ = prepare_dataloaders(setting.settings["data_dir"], 16, num_workers=2, image_size=16)
    others = children()
    list(train)
    workers = children() - others
    setting.train(train)
    assert len(workers) == 2
    assert children() - others == workers
    close_loader(train)
    assert children() == others


def test_an_accelerator_of_the_users_is_as_it_was(setting):
    mine = Accelerator(cpu=True, gradient_accumulation_steps=3)
    try:
        device, processes = mine.device, mine.num_processes
        setting.train()
        assert (mine.device, mine.num_processes, mine.gradient_accumulation_steps) == (device, processes, 3)
    finally:
        mine.state._reset_state(reset_partial_state=True)


def test_an_accelerator_of_another_kind_can_be_made_after_a_run(setting):
    setting.train()
    mine = Accelerator(cpu=True, mixed_precision="bf16")
    assert mine.mixed_precision == "bf16"
    mine.state._reset_state(reset_partial_state=True)
