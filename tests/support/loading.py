"""What the tests of loaders share: loading, and comparing what was loaded."""

from __future__ import annotations

import random

import numpy as np
import torch

from attention_transfer.data import prepare_dataloaders


def load(folder, **settings):
    return prepare_dataloaders(folder, **{"batch_size": 16, "num_workers": 0, "image_size": 32} | settings)


def epoch(loader):
    """One epoch as (views, indices, images, labels)."""
    batches = list(loader)
    columns = [torch.cat([getattr(batch, name) for batch in batches]) for name in ("indices", "images", "labels")]
    return [batch.view for batch in batches], *columns


def same(first, second):
    return first[0] == second[0] and all(map(torch.equal, first[1:], second[1:]))


def global_states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
