"""From gradients to weights: optimizers, schedules of the learning rate, steps over several batches, averages."""

from attention_transfer.training.optim.optimizers import MakeOptimizer, make_optimizer, parameter_groups
from attention_transfer.training.optim.schedules import MakeScheduler, Schedule, make_scheduler

__all__ = ["MakeOptimizer", "MakeScheduler", "Schedule", "make_optimizer", "make_scheduler", "parameter_groups"]
