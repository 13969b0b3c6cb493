"""Import path of existing notebooks for data and networks; the library is the package `attention_transfer`."""

from attention_transfer import create_model, prepare_dataloaders

__all__ = ["create_model", "prepare_dataloaders"]
