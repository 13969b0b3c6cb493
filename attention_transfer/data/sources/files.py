"""FileSource: image files with a class each, as listed by `find_splits`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attention_transfer.data.sources.base import Mark, Sample
from attention_transfer.data.sources.digest import samples_digest


class FileSource:
    """The `Source` of one split of a data folder.

    Args:
        samples: the files, in the order of their positions.
        classes: names of the classes.
    """

    def __init__(self, samples: Sequence[Sample], classes: Sequence[str]) -> None:
        self.samples = tuple(samples)
        self.classes = tuple(classes)
        self.labels: Sequence[int] = [sample.label for sample in self.samples]
        self.place = str(Path(self.samples[0].path).parent.parent) if self.samples else "no images"
        self._fingerprints: dict[Mark, str] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def open(self, index: int) -> str:
        """The path of a file."""
        return self.samples[index].path

    def identity(self, index: int) -> str:
        """Its path relative to the data folder."""
        return self.samples[index].relative

    def fingerprint(self, mark: Mark) -> str:
        """See `samples_digest`; computed once."""
        if mark not in self._fingerprints:
            self._fingerprints[mark] = samples_digest(self.samples, mark)
        return self._fingerprints[mark]
