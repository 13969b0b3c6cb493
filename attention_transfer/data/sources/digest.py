"""Knowing a data set again: by what its files are called, how large they are and when they changed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from attention_transfer.data.sources.folder import Sample
from attention_transfer.progress import progress_bar


def samples_digest(samples: Sequence[Sample], *, hash_files: bool = False) -> str:
    """SHA-256 of the samples in their order: relative paths with sizes and times, or with the files' content.

    Sizes and times cost nothing and see nearly every change (a few images are compared besides); content is for data
    that are copied about and lose their times, or keep them though they change. Labels are no part of it, for neither
    pixels nor a teacher's answers depend on them.

    Args:
        samples: in the order that gives them their positions.
        hash_files: read every file.
    """
    digest = hashlib.sha256()
    for sample in progress_bar(samples, desc="hashing files", unit="image") if hash_files else samples:
        what = _content(sample.path) if hash_files else f"{sample.size} {sample.mtime_ns}"
        digest.update(f"{sample.relative}\0{what}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _content(path: str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
