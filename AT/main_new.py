"""Import path of existing notebooks for training; the library is the package `attention_transfer`."""

from attention_transfer import (
    DEFAULT_CONFIG,
    compute_at_loss,
    create_at_config,
    extract_attention_maps,
    load_teacher_model,
    train_at,
    train_epoch,
    validate,
    visualize_attention_maps,
)

__all__ = [
    "DEFAULT_CONFIG",
    "compute_at_loss",
    "create_at_config",
    "extract_attention_maps",
    "load_teacher_model",
    "train_at",
    "train_epoch",
    "validate",
    "visualize_attention_maps",
]
