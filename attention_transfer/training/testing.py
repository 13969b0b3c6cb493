"""The test split, after the last epoch."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from attention_transfer.data.loading.loaders import own_sampler
from attention_transfer.data.loading.workers import explain_lost_workers
from attention_transfer.errors import AttentionTransferError
from attention_transfer.evaluation import evaluate_shared
from attention_transfer.modules import unwrapped
from attention_transfer.seeding import seed_process
from attention_transfer.training.context import RunContext

logger = logging.getLogger(__name__)


def test_run(run: RunContext, loader: Iterable[Any] | None) -> dict[str, Any]:
    """Test by all processes, which must call this together; a test that fails does not fail the run.

    Args:
        run: whose student has the weights to test.
        loader: over the test images; None without any.

    Returns:
        test_results of the main process (None if there are none), and test_error, why there are none; in every process.
    """
    tested: dict[str, Any] = {"test_results": None, "test_error": None}
    run.runtime.align_buffers(unwrapped(run.state.student))
    if loader is not None:
        runtime = run.runtime
        if runtime.world_size > 1 and own_sampler(loader) is None:
            # a shuffled loader of the user's must give every process the same batches
            seed_process(run.config.seed, runtime.rank, runtime.device, is_own_order=False)
        try:
            with explain_lost_workers():
                results = tested["test_results"] = evaluate_shared(run.state.student, loader, run.config, run.runtime)
            if run.runtime.is_main:
                _log(results)
        except Exception as error:
            tested["test_error"] = f"{type(error).__name__}: {error}"
            if run.runtime.is_main:
                _log_error(error)
    shared: dict[str, Any] = run.runtime.broadcast_object(tested)
    return shared


def _log(results: dict[str, Any]) -> None:
    accuracies = 100 * results["accuracy"], 100 * results["balanced_accuracy"]
    logger.info("test accuracy %.2f%%, balanced %.2f%% on %d images", *accuracies, results["samples"])


def _log_error(error: Exception) -> None:
    logger.error(
        "the network is trained, but there are no test results: %s",
        f"{type(error).__name__}: {error}",
        # our own errors need no traceback
        exc_info=None if isinstance(error, AttentionTransferError) else error,
    )
