"""Import path of existing notebooks for trained models; the library is the package `attention_transfer`."""

from attention_transfer import evaluate_model, load_model

__all__ = ["evaluate_model", "load_model"]
