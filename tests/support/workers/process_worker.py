"""Run under torchrun by tests/test_processes.py; not a test by itself."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from torch import nn

from attention_transfer import create_model
from attention_transfer.config import resolve_config
from attention_transfer.data.loading.loaders import prepare_dataloaders
from attention_transfer.data.views import Augmentation
from attention_transfer.distributed import AcceleratedRuntime
from attention_transfer.errors import DivergenceError
from attention_transfer.evaluation import evaluate_shared
from attention_transfer.losses.classification import CrossEntropy
from attention_transfer.losses.total import default_terms, needs_of_teacher
from attention_transfer.teacher.build import make_teacher
from attention_transfer.training.criterion.criterion import Criterion
from attention_transfer.training.epoch import run_training_epoch, run_validation_epoch
from attention_transfer.training.epoch_progress import EpochProgress
from attention_transfer.training.optim.updates import UpdateRule
from attention_transfer.training.setup.terms import build_terms


class FrozenNorm(nn.Module):
    """A network whose batch normalisation stays in eval mode, so that a batch can be split without a difference.

    It computes in float64: in float32 a share of another size rounds otherwise, and a ReLU near zero flips.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.double()

    def train(self, mode: bool = True):
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def forward(self, x):
        return self.network(x.double())


def three_steps(options) -> None:
    """Train on a tiny folder for one epoch of three steps; write weights, last gradients and figures."""
    layers = ["network.layer2", "network.layer3"]
    attention = options.get("attention", "sum")
    loss = {"attention": attention, **options.get("loss", {})}
    config = resolve_config({"alpha": 0.5, "device": "cpu", "layers": layers, **loss})
    runtime = AcceleratedRuntime(config)
    loader, val, _ = prepare_dataloaders(
        options["data"],
        options["batch_size"],
        num_workers=0,
        image_size=16,
        unlabelled_dir=options.get("unlabelled_dir"),
        unlabelled_ratio=0.7,
        rank=0 if options.get("whole_loader") else runtime.rank,
        world_size=1 if options.get("whole_loader") else runtime.world_size,
        sampler=options.get("sampler", "shuffle"),
        augment="views" in options,
        augmentation=Augmentation(**options["views"]) if "views" in options else None,
    )
    torch.manual_seed(0)
    student = FrozenNorm(create_model("CifarResNet-8", 10))
    teacher = FrozenNorm(create_model("CifarResNet-8", 10))
    trained = CrossEntropy(options.get("label_smoothing", 0.0), options.get("class_weights"))
    terms = default_terms(config)
    needs = needs_of_teacher(terms)
    build_terms(terms, config, student, teacher, next(iter(val)).images, runtime)
    criterion = Criterion(config, make_teacher(teacher, config, runtime, needs), runtime, terms, cross_entropy=trained)
    criterion.modules.double()
    optimizer = torch.optim.SGD([*student.parameters(), *criterion.parameters()], lr=0.01, momentum=0.9)
    length = len(loader) if options.get("knows_length") else None
    progress = EpochProgress(runtime, criterion.weights, 0, length)
    rule = UpdateRule(options.get("accumulate", 1), options.get("clip_grad"))
    figures = run_training_epoch(
        criterion, runtime.wrap(student), loader, optimizer, runtime, progress=progress, rule=rule
    )
    criterion = Criterion(config, make_teacher(teacher, config, runtime, needs), runtime, terms)
    measured = run_validation_epoch(criterion, student, val, runtime)
    runtime.close()
    if runtime.is_main or options.get("every_rank"):
        trained_modules = nn.ModuleDict({"student": student, "terms": criterion.modules})
        gradients = {name: parameter.grad for name, parameter in trained_modules.named_parameters()}
        torch.save(
            {
                "weights": trained_modules.state_dict(),
                "gradients": gradients,
                "train": figures._asdict(),
                "val": measured._asdict(),
            },
            f"{options['out']}.{runtime.rank}" if options.get("every_rank") else options["out"],
        )


def several_times_three_steps(options) -> None:
    """`three_steps` of several recipes in the same processes, as starting these takes longer than the steps."""
    for name, recipe in options["recipes"].items():
        three_steps({**options, **recipe, "out": f"{options['out']}.{name}"})


def diverge(options) -> None:
    """Bad pixels in the second process's share of the second batch; each process writes the error that it got."""
    runtime = AcceleratedRuntime(resolve_config({"device": "cpu"}))
    torch.manual_seed(0)
    student = create_model("CifarResNet-8", 10)
    images, labels = torch.rand(8, 3, 32, 32), torch.arange(8)
    bad = images.clone()
    bad[1] = float("nan")
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01)
    criterion = Criterion(resolve_config({}), make_teacher(None, resolve_config({}), runtime), runtime)
    try:
        run_training_epoch(criterion, runtime.wrap(student), [(images, labels), (bad, labels)], optimizer, runtime)
    except DivergenceError as error:
        Path(options["out"]).with_suffix(f".{runtime.rank}.txt").write_text(str(error))


def whole_run(options) -> None:
    """A real run; each process writes what it got."""
    from attention_transfer import train_at

    results = train_at(options["config"])
    weights = torch.cat([value.double().flatten() for value in results["model"].state_dict().values()])
    runtime_rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    told = {
        "best_accuracy": results["best_accuracy"],
        "test_accuracy": results["test_results"]["accuracy"],
        "name": results["experiment_name"],
        "checksum": float(weights.sum()),
    }
    Path(options["out"]).with_suffix(f".{runtime_rank}.json").write_text(json.dumps(told))


def signalled_run(options) -> None:
    """A run in which one process sends itself a signal after some passes; each process writes how it ended."""
    from attention_transfer import train_at

    torch.manual_seed(0)
    student, rank, left = create_model("CifarResNet-8", 10), int(os.environ["RANK"]), [options["passes"]]

    def listen(module, arguments, output):
        if module.training and rank == options["rank"]:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), options["signal"])

    student.register_forward_hook(listen)
    results = train_at(options["config"], student=student)
    told = {"status": results["status"], "stopped_by": results["stopped_by"]}
    Path(options["out"]).with_suffix(f".{rank}.json").write_text(json.dumps(told))


class Noisy(nn.Sequential):
    """A student with batch normalisation, whose dropout is seen by the zeros that it leaves."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(
            nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2),
            nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 64), nn.Dropout(0.5),
            nn.Linear(64, 10),
        )  # fmt: skip
        self.masks: list[list[bool]] = []
        self[8].register_forward_hook(self._see)

    def _see(self, module, arguments, output) -> None:
        if module.training:
            self.masks.append((output[0] == 0).tolist())


def confusion_of_shares(network, config, rank):
    """The confusion matrix of a loader that gives each process its share alone."""
    settings = {"num_workers": 0, "image_size": config["image_size"]}
    _, mine, _ = prepare_dataloaders(config["data_dir"], config["batch_size"], rank=rank, world_size=2, **settings)
    runtime = AcceleratedRuntime(resolve_config({"device": "cpu"}))
    try:
        return evaluate_shared(network, mine, resolve_config({}), runtime)["confusion_matrix"]
    finally:
        runtime.close()


def apart(options) -> None:
    """A run in one go, and one that is stopped inside an epoch and goes on; each process writes what it got."""
    from attention_transfer import Callback, evaluate_model, train_at

    class Stop(Callback):
        def batch_trained(self, run, batch, meter) -> None:
            if batch == 5:
                run.stop("enough")

    config, student = options["config"], Noisy()
    whole = train_at({**config, "experiment_name": "whole"}, student=student)
    stopped = train_at({**config, "experiment_name": "parts"}, student=Noisy(), callbacks=[Stop()])
    parts = train_at({**config, "experiment_name": "parts", "resume": "auto"}, student=Noisy())
    size = config["image_size"]
    _, val, test = prepare_dataloaders(config["data_dir"], config["batch_size"], num_workers=0, image_size=size)
    alone = evaluate_model(whole["model"], test)
    rank = int(os.environ["RANK"])
    states = (run["model"].state_dict().values() for run in (whole, parts))
    told = {
        "stopped": stopped["status"],
        "weights": float(torch.cat([x.double().flatten() for x in whole["model"].state_dict().values()]).sum()),
        "same": all(torch.equal(one, other) for one, other in zip(*states, strict=True)),
        "masks": student.masks,
        "shared": {key: value for key, value in whole["test_results"].items() if key != "images_per_second"},
        "alone": {key: value for key, value in alone.items() if key != "images_per_second"},
        "of_shares": confusion_of_shares(whole["model"], config, rank),
        "of_all": evaluate_model(whole["model"], val)["confusion_matrix"],
    }
    Path(options["out"]).with_suffix(f".{rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    settings = json.loads(Path(sys.argv[1]).read_text())
    every = (three_steps, several_times_three_steps, whole_run, diverge, signalled_run, apart)
    things = {f.__name__: f for f in every}
    things[settings["do"]](settings)
