"""Relabelling of a run's loaders, so that each class has the same label in all of them."""

from __future__ import annotations

import logging

from attention_transfer.class_names import Classes, match
from attention_transfer.config import Config
from attention_transfer.data.loading.relabelled import Relabelled
from attention_transfer.data.loading.user_loaders import classes_of
from attention_transfer.errors import DataError
from attention_transfer.training.setup.data.loaders import Loader, Loaders

logger = logging.getLogger(__name__)


def number_alike(config: Config, loaders: Loaders) -> None:
    """Relabel each loader with the run's labels; classes are matched by name.

    A loader may number its classes differently, and lack some of them. One without class names is left unchanged.

    Raises:
        DataError: a loader has a class that the run does not have.
    """
    names = config.class_names
    if names is None:
        return
    own = [id(loader) for loader in loaders.own]
    chosen: dict[str, Loader] = {
        role: _numbered_as(names, role, loader, f"the {role} split" if id(loader) in own else f"{role}_loader")
        for role, loader in loaders.by_role().items()
    }
    loaders.train, loaders.val, loaders.test = chosen["train"], chosen.get("val"), chosen.get("test")


def _numbered_as(names: tuple[str, ...], role: str, loader: Loader, owner: str) -> Loader:
    in_loader = classes_of(loader)
    if in_loader is None and role == "train":
        return loader  # class_names is in the order of its labels
    run = Classes("the setting class_names" if role == "train" else "the training set", names)
    try:
        found = match(run, Classes(owner, in_loader))
    except DataError as error:
        remedy = "leave class_names out" if role == "train" else "call the classes the same in all splits"
        raise DataError(f"{error}; {remedy}.") from None
    if found.note is not None:
        logger.info("%s", found.note)
    return loader if found.positions is None else Relabelled(loader, found.positions, names, owner)
