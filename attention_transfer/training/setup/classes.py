"""The classes of a run: from the settings, the data set or the labels."""

from __future__ import annotations

from attention_transfer.config import Config
from attention_transfer.data.loading.user_loaders import classes_of, count_classes
from attention_transfer.errors import ConfigError, DataError
from attention_transfer.evaluation import check_class_order
from attention_transfer.training.setup.loaders import Loaders


def with_classes(config: Config, loaders: Loaders) -> Config:
    """The configuration with num_classes and class_names filled in.

    They come from the settings, else from `dataset.classes`, else from one pass over the training labels.

    Raises:
        ConfigError: the settings contradict the data set.
        DataError: the data have a single class, or a loader numbers its classes otherwise.
    """
    names = config.class_names or classes_of(loaders.train)
    for loader in loaders.by_role().values():
        check_class_order(names or (), classes_of(loader) or ())
    number = config.num_classes or (len(names) if names else count_classes(loaders.train))
    if number < 2:
        raise DataError(f"the training data have {number} class; a classifier needs at least 2.")
    if names is not None and len(names) != number:
        raise ConfigError(
            f"num_classes is {number}, but the training data have {len(names)} classes ({', '.join(names[:10])}); "
            "leave num_classes out to read it from the data."
        )
    return config.model_copy(
        update={"num_classes": number, "class_names": names or tuple(str(label) for label in range(number))}
    )
