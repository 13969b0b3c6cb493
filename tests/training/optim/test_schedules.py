"""Schedules: their rates against the formulas, when they change, and settings that contradict each other."""

from __future__ import annotations

import math

import pytest
import torch
from support.runs import bring, tensors
from torch.optim.lr_scheduler import MultiStepLR, StepLR

from attention_transfer import ConfigError, train_at
from attention_transfer.config import Config
from attention_transfer.training.optim import make_scheduler
from attention_transfer.training.optim.recipe import check_recipe
from attention_transfer.training.setup.schedule import fading_warning

LR, BATCHES = 0.1, 4


def sgd():
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=LR)


def rates(epochs, batches=BATCHES, **settings):
    """The rate of each step of the optimizer in a run of so many epochs."""
    optimizer, found = sgd(), []
    config = Config(lr=LR, epochs=epochs, **settings)
    check_recipe(config)
    schedule = make_scheduler(config, optimizer, batches=batches)
    for _ in range(epochs):
        for _ in range(math.ceil((batches or BATCHES) / config.accumulate)):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.after_update()
        schedule.after_epoch()
    return found


def of_torch(scheduler_of, epochs):
    optimizer, found = sgd(), []
    scheduler = scheduler_of(optimizer)
    for _ in range(epochs):
        found += [optimizer.param_groups[0]["lr"]] * BATCHES
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.slow
def test_the_default_is_torchs_step_schedule_to_the_bit_and_so_is_its_state():
    expected = of_torch(lambda optimizer: StepLR(optimizer, 2, 0.3), 7)
    assert rates(7, step_size=2, gamma=0.3) == expected
    assert make_scheduler(Config(lr=LR), sgd()).state_dict() == StepLR(sgd(), 10, 0.1).state_dict()


def test_multistep_is_torchs_and_constant_stays():
    expected = of_torch(lambda optimizer: MultiStepLR(optimizer, [2, 3], 0.3), 5)
    assert rates(5, schedule="multistep", milestones=(2, 3), gamma=0.3) == expected
    assert set(rates(3, schedule="constant")) == {LR}


@pytest.mark.parametrize(
    ("schedule", "falls"),
    [("cosine", lambda t: (1 + math.cos(math.pi * t)) / 2), ("poly", lambda t: (1 - t) ** 0.9)],
)
@pytest.mark.parametrize(("warmup", "min_lr", "accumulate"), [(0, 0.0, 1), (2, 1e-3, 1), (1, 0.0, 3)])
def test_cosine_and_poly_fall_with_each_step_after_a_warm_up(schedule, falls, warmup, min_lr, accumulate):
    epochs, in_epoch = 5, math.ceil(BATCHES / accumulate)
    warm, total = warmup * in_epoch, epochs * in_epoch
    expected = [LR * (k + 1) / (warm + 1) for k in range(warm)]
    expected += [min_lr + (LR - min_lr) * falls(k / (total - warm)) for k in range(total - warm)]
    found = rates(epochs, schedule=schedule, warmup_epochs=warmup, min_lr=min_lr, accumulate=accumulate)
    assert found == pytest.approx(expected, rel=1e-12)


def test_onecycle_rises_to_lr_and_falls_to_min_lr_and_leaves_momentum_alone():
    found = rates(10, schedule="onecycle", min_lr=1e-4)
    assert found[0] == pytest.approx(LR / 25)
    assert max(found) == pytest.approx(LR)
    assert found.index(max(found)) == round(0.3 * 40) - 1
    assert found[-1] == pytest.approx(1e-4)
    assert rates(10, schedule="onecycle")[-1] == pytest.approx(0, abs=1e-9)
    longer = rates(10, schedule="onecycle", warmup_epochs=5)
    assert longer.index(max(longer)) == 19
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=LR, momentum=0.9)
    make_scheduler(Config(lr=LR, schedule="onecycle"), optimizer, batches=4).after_update()
    assert optimizer.param_groups[0]["momentum"] == 0.9


@pytest.mark.parametrize(
    "settings",
    [
        {"schedule": "step", "step_size": 3, "gamma": 0.5},
        {"schedule": "multistep", "milestones": (3, 4), "gamma": 0.5},
        {"schedule": "constant"},
    ],
    ids=lambda settings: settings["schedule"],
)
def test_a_warm_up_rises_with_each_step_and_leaves_the_cuts_at_their_epochs(settings):
    plain, warmed = rates(6, **settings), rates(6, warmup_epochs=2, **settings)
    assert warmed[8:] == pytest.approx(plain[8:], rel=1e-12)
    assert warmed[:8] == pytest.approx([LR * (k + 1) / 9 for k in range(8)])


def test_a_smooth_schedule_stays_at_its_last_rate_where_a_loader_gives_more_than_it_said():
    optimizer = sgd()
    schedule = make_scheduler(Config(lr=LR, epochs=2, schedule="cosine"), optimizer, batches=3)
    for _ in range(12):
        schedule.after_update()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(LR * (1 + math.cos(math.pi * 5 / 6)) / 2)
    once = make_scheduler(Config(lr=LR, epochs=4, schedule="onecycle"), optimizer, batches=3)
    for _ in range(20):
        once.after_update()


@pytest.mark.slow
def test_a_loader_without_length_has_the_rate_change_after_each_epoch_which_is_said(settings, tmp_path):
    images, labels = tensors(12)

    class Stream:
        def __iter__(self):
            yield from zip(images.split(4), labels.split(4), strict=True)

    recipe = {"epochs": 4, "lr": LR, "schedule": "cosine", "warmup_epochs": 1}
    history = train_at({**bring(settings), **recipe}, Stream())["training_history"]
    expected = [LR / 2, *(LR * (1 + math.cos(math.pi * k / 3)) / 2 for k in range(3))]
    assert [record["lr"] for record in history] == pytest.approx(expected)
    assert "changes after each epoch instead of each batch" in (tmp_path / "logs" / "run.log").read_text()


@pytest.mark.slow
def test_the_history_has_the_rate_at_the_start_of_each_epoch(settings):
    recipe = {"epochs": 3, "batch_size": 20, "lr": 0.02, "schedule": "cosine", "model": "CifarResNet-8"}
    history = train_at({**settings, **recipe})["training_history"]
    expected = [0.02 * (1 + math.cos(math.pi * epoch / 3)) / 2 for epoch in range(3)]
    assert [record["lr"] for record in history] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"schedule": "cosine", "step_size": 5}, "step_size is 5, but schedule 'cosine' does not use it"),
        ({"schedule": "poly", "gamma": 0.5}, "gamma is 0.5, but schedule 'poly'"),
        ({"milestones": (3,)}, r"milestones is \(3,\), but schedule 'step'"),
        ({"min_lr": 1e-4}, "min_lr is 0.0001, but schedule 'step' .*'cosine' or 'onecycle' or 'poly'"),
        ({"schedule": "multistep"}, "needs milestones"),
        ({"schedule": "cosine", "min_lr": 0.02}, "min_lr is 0.02, but lr is 0.01"),
        ({"warmup_epochs": 5, "epochs": 5}, "warmup_epochs is 5, but the run has 5 epochs"),
        ({"ema_start": 2}, "ema_start is 2, but ema is None"),
        ({"best_weights": "ema"}, "best_weights is 'ema', but ema is None"),
        ({"ema": 0.9, "ema_start": 6, "epochs": 5}, "ema_start is 6, but the run has 5 epochs"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, told):
    with pytest.raises(ConfigError, match=told):
        check_recipe(Config(**settings))


def test_onecycle_in_too_few_steps_is_refused():
    with pytest.raises(ConfigError, match="too few to rise and fall"):
        rates(3, batches=1, schedule="onecycle")


@pytest.mark.parametrize("milestones", [(), (3, 3), (4, 2), (0, 1)])
def test_milestones_that_do_not_rise_are_refused(milestones):
    from attention_transfer.config import resolve_config

    with pytest.raises(ConfigError, match="milestones is"):
        resolve_config({"milestones": milestones})


@pytest.mark.parametrize(
    "given", [{"schedule": "cosine"}, {"warmup_epochs": 1}, {"min_lr": 1e-4}, {"milestones": (1,)}], ids=str
)
def test_a_scheduler_of_ones_own_and_one_by_settings_are_an_error(settings, given):
    with pytest.raises(ConfigError, match=f"a scheduler of yours, but {next(iter(given))} is set to"):
        train_at({**settings, **given}, scheduler=lambda optimizer: StepLR(optimizer, 1))


def faded(**settings):
    config = Config(**settings)
    return fading_warning(config, config.lr)


def test_early_milestones_are_warned_of_and_schedules_that_end_small_by_design_are_not():
    told = faded(schedule="multistep", milestones=(5, 10, 15, 20), epochs=60)
    assert "from epoch 21 on it is below a thousandth of its start" in told
    assert faded(schedule="multistep", milestones=(30, 40, 45, 50), epochs=60) is None
    assert faded(schedule="multistep", milestones=(5, 10, 15, 20), gamma=0.5, epochs=60) is None
    assert "milestones [60, 70] lie beyond the run of 60" in faded(
        schedule="multistep", milestones=(30, 60, 70), epochs=60
    )
    for schedule in ("cosine", "onecycle", "poly", "constant"):
        assert faded(schedule=schedule, epochs=200) is None


@pytest.mark.parametrize("schedule", ["cosine", "onecycle", "poly"])
def test_they_are_below_a_thousandth_in_a_small_part_of_a_run_alone(schedule):
    found = rates(100, schedule=schedule)
    assert sum(rate < max(found) * 1e-3 for rate in found) <= 0.03 * len(found)


def of_own_rates(**settings):
    """The rates of each group in each step of five epochs, of an optimizer whose groups have rates of their own."""
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in (1e-4, 1e-2)]
    optimizer, found = torch.optim.SGD(groups), []
    schedule = make_scheduler(Config(lr=LR, epochs=5, **settings), optimizer, batches=BATCHES)
    for _ in range(5 * BATCHES):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.after_update()
    return [*zip(*found, strict=True)]


@pytest.mark.parametrize(
    "recipe",
    [
        {"schedule": "onecycle"},
        {"schedule": "cosine", "warmup_epochs": 2},
        {"schedule": "multistep", "milestones": (3,), "warmup_epochs": 2},
    ],
    ids=lambda recipe: recipe["schedule"],
)
def test_an_optimizer_of_ones_own_is_scheduled_by_the_rates_that_it_has(recipe):
    of_settings = rates(5, **recipe)
    for own, lr in zip(of_own_rates(**recipe), (1e-4, 1e-2), strict=True):
        assert own == pytest.approx([rate * lr / LR for rate in of_settings], rel=1e-9)


def test_a_floor_is_the_same_for_all_groups_and_below_the_rates_of_an_optimizer_of_ones_own():
    assert [found[-1] for found in of_own_rates(schedule="onecycle", min_lr=1e-6)] == pytest.approx([1e-6, 1e-6])
    for schedule in ("cosine", "poly", "onecycle"):
        with pytest.raises(ConfigError, match=r"min_lr is 0.001, but the optimizer has lr 0.0001"):
            of_own_rates(schedule=schedule, min_lr=1e-3)
    check_recipe(Config(schedule="cosine", min_lr=0.02), own_optimizer=True)


def test_numbers_that_an_optimizer_of_ones_own_does_not_have_are_warned_of(settings, caplog):
    def own(groups):
        return torch.optim.SGD(groups, lr=1e-4)

    train_at({**bring(settings), "lr": 0.5, "weight_decay": 0.0}, [tensors(8)], optimizer=own)
    assert [record.message for record in caplog.records if "does nothing" in record.message] == [
        "lr is 0.5, but train_at has an optimizer of yours, which has 0.0001: the setting does nothing"
    ]


@pytest.mark.parametrize(
    "recipe",
    [
        {"schedule": "cosine", "warmup_epochs": 1},
        {"schedule": "poly"},
        {"schedule": "onecycle"},
        {"step_size": 2, "warmup_epochs": 1},
        {"schedule": "multistep", "milestones": (2, 3), "warmup_epochs": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("batches", [6, 2])
def test_a_run_that_goes_on_with_longer_or_shorter_epochs_has_its_rates_at_their_epochs(
    settings, tmp_path, caplog, recipe, batches
):
    def loader(number):
        return [tensors(4)] * number

    settings = {**bring(settings), "epochs": 4, "save_freq": 1, **recipe}
    train_at(settings, loader(4))
    path = str(tmp_path / "checkpoints" / "run_epoch_2.pth")
    rest = train_at({"resume": path, "experiment_name": "rest"}, loader(batches))["training_history"]
    whole = train_at({**settings, "experiment_name": "whole"}, loader(batches))["training_history"]
    assert [record["lr"] for record in rest[2:]] == pytest.approx([record["lr"] for record in whole[2:]], rel=1e-9)
    assert f"an epoch has {batches} steps of the learning rate, and had 4" in caplog.text


def test_an_epoch_that_is_trained_again_has_its_rates_again():
    optimizer = sgd()
    schedule = make_scheduler(Config(lr=LR, epochs=4, schedule="cosine"), optimizer, batches=BATCHES)
    for _ in range(BATCHES):
        schedule.after_update()
    rate = optimizer.param_groups[0]["lr"]
    for _ in range(2):
        schedule.after_update()
    assert optimizer.param_groups[0]["lr"] != rate
    schedule.begin_again(1)
    assert optimizer.param_groups[0]["lr"] == rate
