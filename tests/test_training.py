"""train_at: whole runs on the handwritten digits, with everything that a user may bring."""

from __future__ import annotations

import copy
import json
import logging
import multiprocessing

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from attention_transfer import (
    ConfigError,
    DataError,
    DivergenceError,
    TeacherError,
    create_at_config,
    create_model,
    load_model,
    prepare_dataloaders,
    train_at,
    train_epoch,
    validate,
)
from attention_transfer.networks.registry import ModelCard

FIGURES = {"loss", "accuracy", "classification", "kd", "attention"}


@pytest.fixture
def settings(tmp_path, few_digits):
    return {
        "data_dir": str(few_digits),
        "image_size": 32,
        "num_workers": 0,
        "epochs": 1,
        "device": "cpu",
        "save_dir": str(tmp_path / "checkpoints"),
        "log_dir": str(tmp_path / "logs"),
        "experiment_name": "run",
    }


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(1)
    return create_model("CifarResNet-8", 10)


def tensors(count=20, classes=4, size=16):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, size, size, generator=generator), torch.arange(count) % classes


def bring(settings):
    return {key: value for key, value in settings.items() if key not in ("data_dir", "image_size")} | {
        "model": "CifarResNet-8"
    }


def test_a_run_with_a_teacher_gives_everything_that_is_promised(settings, teacher, tmp_path):
    results = train_at({**settings, "alpha": 0.1, "epochs": 2, "save_freq": 2, "print_freq": 3}, teacher=teacher)
    assert set(results) >= {
        "model", "teacher_model", "best_accuracy", "training_history", "test_results", "config", "experiment_name",
    }  # fmt: skip
    assert results["teacher_model"] is teacher
    assert not results["model"].training
    assert results["config"]["num_classes"] == 10
    assert results["config"]["class_names"] == tuple("0123456789")
    assert 0 <= results["best_accuracy"] <= 1
    assert 0 <= results["test_results"]["accuracy"] <= 1

    first, second = results["training_history"]
    stages = {"attention_stage_0", "attention_stage_1"}
    figures = {f"{split}_{name}" for split in ("train", "val") for name in FIGURES | stages}
    assert set(first) == {"epoch", "lr", "seconds", "images_per_second"} | figures
    assert (first["epoch"], second["epoch"], first["lr"]) == (1, 2, 0.01)
    total = first["train_classification"] + 0.1 * first["train_kd"] + 1000 * first["train_attention"]
    assert first["train_loss"] == pytest.approx(total, rel=1e-5)

    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert [name for name in names if "tfevents" not in name] == [
        "checkpoints/run_best.pth",
        "checkpoints/run_epoch_2.pth",
        "checkpoints/run_final.pth",
        "checkpoints/run_last.pth",
        "logs/run.log",
        "logs/run_summary.json",
    ]
    assert any(name.startswith("logs/run/events.out.tfevents.") for name in names)
    assert "epoch 1 batch 3/" in (tmp_path / "logs" / "run.log").read_text()

    loaded = load_model(tmp_path / "checkpoints" / "run_best.pth", "cpu")
    assert loaded["class_names"] == list("0123456789")
    best = max(record["val_accuracy"] for record in results["training_history"])
    assert loaded["best_accuracy"] == results["best_accuracy"] == best
    for key, value in loaded["model"].state_dict().items():
        assert torch.equal(value, results["model"].state_dict()[key])


def test_the_summary_tells_the_run(settings, tmp_path, few_digits):
    results = train_at(settings)
    summary = json.loads((tmp_path / "logs" / "run_summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["config"]["model"] == "MultiBranchNet"
    assert summary["config"]["epochs"] == 1
    assert summary["class_names"] == list("0123456789")
    assert sum(summary["splits"].values()) == len(list(few_digits.rglob("*.png")))
    assert summary["history"] == results["training_history"]
    assert summary["test_results"]["accuracy"] == results["test_results"]["accuracy"]
    assert summary["best_epoch"] == 1
    assert summary["wall_time_seconds"] > 0
    assert torch.__version__.startswith(summary["versions"]["torch"])
    assert all(path.endswith(".pth") for path in summary["paths"]["checkpoints"])


def test_without_a_teacher_it_is_cross_entropy_alone_and_said_once(settings, tmp_path):
    results = train_at({**settings, "model": "CifarResNet-8"})
    record = results["training_history"][0]
    assert record["train_loss"] == record["train_classification"]
    assert record["train_kd"] == record["train_attention"] == 0
    assert (tmp_path / "logs" / "run.log").read_text().count("cross-entropy alone") == 1


def test_the_same_run_twice_gives_the_same_bits(settings, teacher):
    augmented = {**settings, "augment": True, "num_workers": 2, "model": "CifarResNet-8"}
    one = train_at(augmented, teacher=teacher)
    other = train_at({**augmented, "experiment_name": "again", "num_workers": 0}, teacher=teacher)
    assert without_clock(one["training_history"]) == without_clock(other["training_history"])
    assert_same_weights(one["model"], other["model"])


def without_clock(history):
    return [
        {key: value for key, value in record.items() if key not in ("seconds", "images_per_second")}
        for record in history
    ]


def assert_same_weights(one, other):
    for key, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


def test_another_seed_gives_another_run(settings):
    one = train_at({**settings, "model": "CifarResNet-8"})
    other = train_at({**settings, "model": "CifarResNet-8", "seed": 1, "experiment_name": "other"})
    assert one["training_history"][0]["train_loss"] != other["training_history"][0]["train_loss"]


class Unsized:
    """A loader without length that gives dicts."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return ({"image": x, "label": y} for x, y in self.batches)


@pytest.mark.parametrize("kind", ["dataloader", "list", "unsized dicts", "one left over"])
def test_any_loader_works(settings, teacher, kind):
    count = 17 if kind == "one left over" else 20
    x, y = tensors(count)
    loader = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)
    batches = list(zip(x.split(8), y.split(8), strict=True))
    chosen = {"dataloader": loader, "one left over": loader, "list": batches, "unsized dicts": Unsized(batches)}[kind]
    results = train_at({**bring(settings), "data_dir": "nowhere"}, chosen, chosen, chosen, teacher=teacher)
    assert results["config"]["num_classes"] == 4
    assert results["config"]["class_names"] == ("0", "1", "2", "3")
    assert results["test_results"]["samples"] == count


def test_a_last_batch_of_one_is_learned_from_where_batch_normalisation_has_no_variance(settings, caplog):
    x, y = tensors(9)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 4))
    with caplog.at_level(logging.INFO, "attention_transfer"):
        train_at(bring(settings), [(x[:8], y[:8]), (x[8:], y[8:])], student=net)
    assert caplog.text.count("a single image") == 1


def test_a_generator_is_refused_before_training(settings):
    x, y = tensors()
    with pytest.raises(DataError, match="train_loader is a generator, which ends after one pass"):
        train_at(bring(settings), (batch for batch in [(x, y)]))


def test_without_a_val_loader_the_last_epoch_is_the_best_and_data_dir_is_not_read(settings, tmp_path):
    x, y = tensors()
    results = train_at({**bring(settings), "data_dir": "nowhere", "epochs": 2}, [(x, y)])
    assert results["test_results"] is None
    assert "val_accuracy" not in results["training_history"][0]
    assert load_model(tmp_path / "checkpoints" / "run_best.pth", "cpu")["epoch"] == 2
    assert (tmp_path / "logs" / "run.log").read_text().count("the last epoch counts as the best") == 1


def test_a_loader_of_the_users_wins_over_its_own_split_alone(settings):
    x, y = tensors(12, classes=10, size=32)
    results = train_at({**settings, "model": "CifarResNet-8"}, test_loader=[(x, y)])
    assert results["test_results"]["samples"] == 12
    assert "val_accuracy" in results["training_history"][0]


class Named(Dataset):
    classes = ("ant", "bee", "cat", "dog")

    def __init__(self):
        self.x, self.y = tensors()

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], int(self.y[index])


def test_class_names_come_from_the_data_set_through_subsets(settings):
    loader = DataLoader(Subset(Subset(Named(), range(16)), range(12)), batch_size=4)
    results = train_at(bring(settings), loader)
    assert results["config"]["class_names"] == ("ant", "bee", "cat", "dog")


def test_labels_are_counted_in_one_logged_pass(settings, caplog):
    with caplog.at_level(logging.INFO, "attention_transfer"):
        train_at(bring(settings), [tensors()])
    assert caplog.text.count("counted in one pass") == 1


def test_a_label_out_of_range_is_an_error_that_names_it(settings):
    x, y = tensors()
    with pytest.raises(DataError, match="label is 3"):
        train_at({**bring(settings), "num_classes": 3}, [(x, y)])


def test_num_classes_that_contradicts_the_data_is_an_error(settings):
    with pytest.raises(ConfigError, match=r"num_classes is 7.*10 classes"):
        train_at({**settings, "num_classes": 7})


def test_class_names_in_another_order_than_the_folders_are_an_error_before_training(settings, tmp_path):
    with pytest.raises(DataError, match="'0' is class 0 of the loader, but class 9"):
        train_at({**settings, "class_names": list("9876543210")})
    assert not (tmp_path / "logs").exists()


def test_alpha_without_a_teacher_is_an_error(settings):
    with pytest.raises(ConfigError, match=r"alpha is 0\.1, but there is no teacher"):
        train_at({**settings, "alpha": 0.1})


def test_a_teacher_that_teaches_nothing_is_a_warning(settings, teacher, caplog):
    with caplog.at_level(logging.WARNING, "attention_transfer"):
        results = train_at({**settings, "beta": 0.0, "model": "CifarResNet-8"}, teacher=teacher)
    assert "teaches nothing" in caplog.text
    record = results["training_history"][0]
    assert record["train_loss"] == record["train_classification"]
    assert record["train_attention"] > 0


def test_another_head_or_class_order_matters_to_distillation_alone(settings, few_digits):
    wide = create_model("CifarResNet-8", 12)
    train_at({**settings, "model": "CifarResNet-8"}, teacher=wide)
    with pytest.raises(TeacherError, match="12"):
        train_at({**settings, "alpha": 0.1, "experiment_name": "wide"}, teacher=wide)
    turned = create_model("CifarResNet-8", 10)
    turned.card = ModelCard("CifarResNet-8", 10, tuple("9876543210"))
    with pytest.raises(TeacherError, match="numbers its classes 9, 8"):
        train_at({**settings, "alpha": 0.1, "experiment_name": "turned"}, teacher=turned)


def test_a_finished_run_is_not_overwritten_unless_asked(settings):
    train_at({**settings, "model": "CifarResNet-8"})
    with pytest.raises(ConfigError, match=r"'run'.*overwrite=True"):
        train_at({**settings, "model": "CifarResNet-8"})
    train_at({**settings, "model": "CifarResNet-8", "overwrite": True})


def test_a_run_without_a_name_gets_a_readable_unique_one(settings):
    unnamed = {**settings, "experiment_name": None, "model": "CifarResNet-8"}
    names = {train_at(unnamed)["experiment_name"] for _ in range(2)}
    assert len(names) == 2
    assert all(name.startswith("CifarResNet-8-plain-") for name in names)


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_batch_and_component(settings, tmp_path):
    x, y = tensors()
    bad = x.clone()
    bad[0, 0, 0, 0] = float("nan")
    with pytest.raises(DivergenceError, match=r"epoch 1: .* batch 1: classification.*no checkpoint yet"):
        train_at(bring(settings), [(x, y), (bad, y)])
    summary = json.loads((tmp_path / "logs" / "run_summary.json").read_text())
    assert summary["status"] == "failed"
    assert "DivergenceError" in summary["error"]


def test_a_bad_number_in_validation_stops_the_run_before_it_is_saved(settings, tmp_path):
    x, y = tensors()
    bad = x.clone()
    bad[3] = float("inf")

    class BadLater(InterruptedOnce):
        def __iter__(self):
            self.passes += 1
            # the first pass is the look at a few images to draw
            return iter([(bad, y)] if self.passes == 3 else self.batches)

    with pytest.raises(
        DivergenceError, match=r"epoch 2, validation: .*classification.*run_last\.pth \(after epoch 1\)"
    ):
        train_at({**bring(settings), "epochs": 3}, [(x, y)], BadLater([(x, y)]))
    assert load_model(tmp_path / "checkpoints" / "run_last.pth", "cpu")["epoch"] == 1
    json.loads((tmp_path / "logs" / "run_summary.json").read_text(), parse_constant=pytest.fail)


def test_the_component_that_is_no_number_is_named(settings, teacher):
    x, y = tensors()
    blind = copy.deepcopy(teacher)
    blind.conv1.weight.data.fill_(float("nan"))
    with pytest.raises(DivergenceError, match=r"batch 0: attention_stage_0"):
        train_at({**bring(settings), "num_classes": 10}, [(x, y)], teacher=blind)
    with pytest.raises(DivergenceError, match=r"batch 0: kd"):
        train_at({**bring(settings), "num_classes": 10, "alpha": 1.0, "overwrite": True}, [(x, y)], teacher=blind)


class InterruptedOnce:
    """A loader that raises KeyboardInterrupt in its second epoch, as Ctrl-C would."""

    def __init__(self, batches):
        self.batches = batches
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        for i, batch in enumerate(self.batches):
            if self.passes == 2 and i == 1:
                raise KeyboardInterrupt
            yield batch


def test_an_interrupt_gives_partial_results_and_the_next_run_works(settings, tmp_path):
    x, y = tensors()
    loader = InterruptedOnce([(x, y)] * 3)
    config = {**bring(settings), "num_classes": 4, "epochs": 5}
    results = train_at(config, loader)
    assert results["status"] == "stopped"
    assert len(results["training_history"]) == 1
    assert not results["model"].training
    assert json.loads((tmp_path / "logs" / "run_summary.json").read_text())["status"] == "stopped"
    resumed = train_at({**config, "resume": str(tmp_path / "checkpoints" / "run_last.pth")}, loader)
    assert len(resumed["training_history"]) == 5


def test_one_process_can_train_again_and_again_in_other_precisions(settings, teacher):
    before = [len(logging.getLogger("attention_transfer").handlers), len(multiprocessing.active_children())]
    for precision in ("fp32", "bf16", "auto", "bf16"):
        results = train_at(
            {**settings, "precision": precision, "overwrite": True, "model": "CifarResNet-8", "num_workers": 1},
            teacher=teacher,
        )
        assert results["config"]["precision"] == ("fp32" if precision == "auto" else precision)
    after = [len(logging.getLogger("attention_transfer").handlers), len(multiprocessing.active_children())]
    assert after == before
    assert not any(module._forward_hooks for module in [*teacher.modules(), *results["model"].modules()])


def test_a_cuda_device_that_is_not_there_is_a_clear_error(settings):
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(ConfigError, match=r"'cuda', but this machine has 0 CUDA devices"):
        train_at({**settings, "device": "cuda"})


def test_float16_needs_a_gpu(settings):
    with pytest.raises(ConfigError, match="'fp16', which needs a CUDA device"):
        train_at({**settings, "precision": "fp16"})


class Viewing(nn.Module):
    """Flattens by view, which fails on channels-last features."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.head = nn.Linear(4 * 7 * 7, 4)

    def forward(self, x):
        x = self.conv(x)
        return self.head(x.view(x.size(0), -1))


def test_a_module_of_the_users_learns_from_one_of_the_users(settings):
    x, y = tensors()
    results = train_at({**bring(settings), "epochs": 2}, [(x, y)], student=Viewing(), teacher=Viewing())
    assert results["training_history"][1]["train_attention"] > 0
    assert isinstance(results["model"], Viewing)


def test_a_loop_of_ones_own_gets_a_fresh_order_and_fresh_views_each_epoch(few_digits):
    train, *_ = prepare_dataloaders(few_digits, augment=True, num_workers=1, image_size=32)
    seen = []
    model = create_model("CifarResNet-8", 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    class Spy:
        def __iter__(self):
            for batch in train:
                seen.append(batch)
                yield batch

    for _ in range(2):
        train_epoch(model, None, Spy(), optimizer, "cpu", {})
    first, second = seen[: len(train)], seen[len(train) :]
    assert sorted(torch.cat([b.indices for b in first])) == sorted(torch.cat([b.indices for b in second]))
    assert not torch.equal(torch.cat([b.indices for b in first]), torch.cat([b.indices for b in second]))
    where = {int(i): image for b in first for i, image in zip(b.indices, b.images, strict=True)}
    again = {int(i): image for b in second for i, image in zip(b.indices, b.images, strict=True)}
    assert not any(torch.equal(where[i], again[i]) for i in where)


def test_means_are_over_samples_not_over_batches():
    x, y = tensors(20)
    model = create_model("CifarResNet-8", 4)
    uneven = validate(model, None, [(x[:17], y[:17]), (x[17:], y[17:])], "cpu", {})
    whole = validate(model, None, [(x, y)], "cpu", {})
    assert uneven == pytest.approx(whole, rel=1e-5)


def test_validation_leaves_the_student_as_it_was():
    x, y = tensors()
    model = create_model("CifarResNet-8", 4).train()
    before = copy.deepcopy(model.state_dict())
    validate(model, None, [(x, y)], "cpu", create_at_config())
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_an_empty_loader_is_an_error():
    model = create_model("CifarResNet-8", 4)
    with pytest.raises(DataError, match="no batch"):
        validate(model, None, Unsized([]), "cpu", {})


class Flat(nn.Module):
    """A network without a single map."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))

    def forward(self, x):
        return self.layers(x)


def test_a_student_without_maps_learns_alone_and_by_distillation(settings):
    x, y = tensors()
    train_at(bring(settings), [(x, y)], [(x, y)], student=Flat())
    kd = {**bring(settings), "alpha": 1.0, "beta": 0.0, "overwrite": True}
    results = train_at(kd, [(x, y)], [(x, y)], student=Flat(), teacher=Flat())
    assert results["training_history"][0]["train_kd"] > 0
    with pytest.raises(ConfigError, match="layers"):
        train_at({**kd, "beta": 1.0}, [(x, y)], student=Flat(), teacher=Flat())


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda net: torch.compile(net, backend="eager")])
def test_a_wrapped_student_is_saved_without_its_wrapper(settings, tmp_path, wrap):
    x, y = tensors()
    results = train_at(bring(settings), [(x, y)], [(x, y)], student=wrap(create_model("CifarResNet-8", 4)))
    loaded = load_model(tmp_path / "checkpoints" / "run_best.pth", "cpu")["model"]
    assert_same_weights(
        loaded, results["model"]._orig_mod if hasattr(results["model"], "_orig_mod") else results["model"].module
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_images_of_another_float_type_are_taken(settings, teacher, dtype):
    x, y = tensors()
    results = train_at(
        bring(settings), [(x.to(dtype), y)], None, [(x.to(dtype), y)], teacher=copy.deepcopy(teacher).double()
    )
    assert results["test_results"]["samples"] == 20


def test_a_replaced_head_is_what_the_checkpoint_holds(settings, tmp_path):
    x, y = tensors(classes=2)
    net = create_model("CifarResNet-8", 10)
    net.linear = nn.Linear(64, 2)
    results = train_at(bring(settings), [(x, y)], student=net)
    assert_same_weights(load_model(tmp_path / "checkpoints" / "run_best.pth", "cpu")["model"], results["model"])


def test_an_empty_batch_is_passed_over_and_nothing_but_empty_ones_is_an_error():
    x, y = tensors()
    model = create_model("CifarResNet-8", 4)
    assert validate(model, None, [(x[:0], y[:0]), (x, y)], "cpu", {}) == validate(model, None, [(x, y)], "cpu", {})
    with pytest.raises(DataError, match="no batch"):
        validate(model, None, [(x[:0], y[:0])], "cpu", {})


def test_an_unfinished_run_of_the_same_name_is_not_wiped(settings, tmp_path):
    x, y = tensors()
    train_at({**bring(settings), "num_classes": 4, "epochs": 5}, InterruptedOnce([(x, y)] * 3))
    with pytest.raises(ConfigError, match=r"was not finished.*resume=.*run_last\.pth"):
        train_at({**bring(settings), "num_classes": 4}, [(x, y)])


def test_handlers_are_gone_after_a_run_that_failed_even_to_end(settings, tmp_path, monkeypatch):
    from attention_transfer.training.observers.summary import Summary

    def full(self, run, status):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Summary, "end", full)
    before = list(logging.getLogger("attention_transfer").handlers)
    with pytest.raises(OSError, match="No space left"):
        train_at(bring(settings), [tensors()])
    assert logging.getLogger("attention_transfer").handlers == before


def test_layers_choose_what_is_compared_in_a_run(settings, teacher):
    x, y = tensors(size=24)
    images = x[..., :16]
    config = {**bring(settings), "layers": ["layer1", "layer2:layer3"]}
    record = train_at(config, [(images, y)], [(images, y)], teacher=teacher)["training_history"][0]
    assert {key for key in record if "stage" in key} == {
        f"{split}_attention_stage_{i}" for split in ("train", "val") for i in (0, 1)
    }
