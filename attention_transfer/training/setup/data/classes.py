"""The classes of a run: from the settings, the data set or the labels."""

from __future__ import annotations

from attention_transfer.class_names import in_words
from attention_transfer.config import Config
from attention_transfer.data.loading.user_loaders import classes_of, count_classes
from attention_transfer.errors import ConfigError, DataError
from attention_transfer.training.setup.data.loaders import Loaders


def with_classes(config: Config, loaders: Loaders) -> Config:
    """The configuration with num_classes filled in, and class_names if the classes have names.

    They come from the settings, else from `dataset.classes`, else from one pass over the training labels, without
    names.

    Raises:
        ConfigError: the settings contradict the data set.
        DataError: the data have a single class.
    """
    names = config.class_names or classes_of(loaders.train)
    number = config.num_classes or (len(names) if names else count_classes(loaders.train))
    if number < 2:
        raise DataError(f"the training data have {number} class; a classifier needs at least 2.")
    if names is not None and len(names) != number:
        raise ConfigError(
            f"num_classes is {number}, but the training data have {len(names)} classes ({in_words(names)}); "
            "leave num_classes out to read it from the data."
        )
    return config.model_copy(update={"num_classes": number, "class_names": names})
