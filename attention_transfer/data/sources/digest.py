"""Digest of a data set, by which it is recognised in later runs: names, sizes and times of its files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from attention_transfer.data.sources.base import Mark, Sample
from attention_transfer.progress import progress_bar


def samples_digest(samples: Sequence[Sample], mark: Mark) -> str:
    """SHA-256 of the samples in their order: the relative path of each and a mark of its file.

    Sizes and times cost nothing and detect nearly every change (a few images are compared besides); content is for data
    that lose their times when copied, or change without a new time; sizes alone survive a copy. Labels are not part of
    it, because neither pixels nor a teacher's outputs depend on them.

    Args:
        samples: in the order that gives them their positions.
        mark: 'content' reads every file. Checkpoints store the digest of sizes, and cache keys contain one of the
            others; changing a mark would invalidate them.
    """
    marks: dict[Mark, Callable[[Sample], str]] = {
        "size": lambda sample: str(sample.size),
        "size and time": lambda sample: f"{sample.size} {sample.mtime_ns}",
        "content": lambda sample: _content(sample.path),
    }
    digest, mark_of = hashlib.sha256(), marks[mark]
    for sample in progress_bar(samples, desc="hashing files", unit="image") if mark == "content" else samples:
        digest.update(f"{sample.relative}\0{mark_of(sample)}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _content(path: str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
