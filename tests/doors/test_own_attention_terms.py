"""A loss term and a map function of attention probabilities that a stranger writes, each in one place."""

from __future__ import annotations

import pytest
import torch
from support.transformers import tiny_vit
from torch.nn import functional as F

from attention_transfer import ConfigError, LossTerm, MapFunction, Needs, create_model, train_at

pytestmark = pytest.mark.slow


class SameAttention(LossTerm):
    """MiniLM's: the divergence of the deepest block's attention probabilities, mean over heads."""

    name = "same_attention"

    def __init__(self, weight):
        super().__init__(weight, Needs(attention=True))

    def forward(self, inputs):
        mine = inputs.student.stages("attention_probabilities")[-1].mean(dim=1)
        theirs = inputs.teacher.stages("attention_probabilities")[-1].mean(dim=1)
        assert mine.shape == theirs.shape == (len(mine), 17, 17)
        assert not theirs.requires_grad
        torch.testing.assert_close(mine.sum(dim=2), torch.ones(len(mine), 17))
        return {self.name: F.kl_div(mine.log(), theirs, reduction="batchmean")}


def received(attention):
    """How much attention each patch is given by all others."""
    layout = attention.layout
    given = attention.probabilities(slice(layout.prefix, None)).mean(dim=(1, 2))
    return given[:, layout.prefix :].reshape(-1, *layout.grid)


@pytest.fixture
def recipe(settings, tmp_path):
    return {**settings, "image_size": 32, "epochs": 2, "lr": 0.01, "cache_dir": str(tmp_path / "cache")}


def test_a_term_reads_attention_probabilities_of_both_and_teaches_the_student(recipe):
    networks = {"student": tiny_vit(0), "teacher": tiny_vit(1, num_heads=3, depth=6)}
    results = train_at({**recipe, "beta": 0.0, "epochs": 3}, terms=[SameAttention(10.0)], **networks)
    values = [record["train_same_attention"] for record in results["training_history"]]
    assert values[0] > values[1] > values[2] > 0
    assert results["training_history"][0]["val_same_attention"] > 0


def test_attention_probabilities_of_a_convolutional_network_are_an_error(recipe):
    with pytest.raises(ConfigError, match="needs transformers on both sides, but CifarResNet"):
        train_at(
            {**recipe, "beta": 0.0},
            terms=[SameAttention(10.0)],
            student=create_model("CifarResNet-8", 10),
            teacher=tiny_vit(1),
        )


def test_a_map_function_of_attention_is_cached_like_any_other(recipe, tmp_path):
    own = MapFunction("attention that each patch is given", received, of="attention_probabilities")
    train_at(recipe, student=tiny_vit(0), teacher=tiny_vit(1), map_function=own)
    again = {**recipe, "experiment_name": "again"}
    record = train_at(again, student=tiny_vit(0), teacher=tiny_vit(1), map_function=own)["training_history"][0]
    assert record["train_attention_stage_3"] > 0
    assert "epoch 1: 80 images answered from memory, 0 by" in (tmp_path / "logs" / "again.log").read_text()
