"""Finds out which folder a checkpoint was trained on, so that it is not evaluated on its training images."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from attention_transfer.config import Config
from attention_transfer.data.sources.split_cut import SplitCut
from attention_transfer.errors import DataError


@dataclass(frozen=True)
class Training:
    """The training images of a checkpoint.

    Attributes:
        data_dir: their folder; None if they came from a user's loaders, or if unknown.
        data_digest: hash of their names and sizes; None if unknown.
        how: a split that has no folder was cut from them.
    """

    data_dir: str | None = None
    data_digest: str | None = None
    how: SplitCut = field(default_factory=SplitCut)

    @classmethod
    def of(cls, path: str) -> Training:
        """Read them from a checkpoint; for bare weights they are unknown.

        Raises:
            CheckpointError: it is a checkpoint of this library, and corrupt.
        """
        from attention_transfer.checkpoint import is_checkpoint, read_checkpoint, read_plain
        from attention_transfer.training.checkpointing.resume import saved_config

        if not is_checkpoint(read_plain(path)):
            return cls()
        content = read_checkpoint(path)
        config, training = saved_config(content, path), content["training"]
        digest = training["data_digest"] if training is not None else None
        is_of_loaders = training is not None and digest is None
        return cls(None if is_of_loaders else config.data_dir, digest, SplitCut.of(config))

    def was_on(self, config: Config) -> bool:
        """Whether the network was trained on the train split of config.data_dir.

        It was if the folder is the same, or if the images have the same names and sizes, as in a folder that was moved
        or copied.

        Raises:
            DataError: it was, but config splits the folder differently from training.
        """
        from attention_transfer.data.sources.digest import samples_digest
        from attention_transfer.data.sources.folder import find_splits

        is_here = self.data_dir is not None and _place(self.data_dir) == _place(config.data_dir)
        if not is_here and self.data_digest is None:
            return False
        try:
            splits = find_splits(config.data_dir, **asdict(self.how))
        except DataError:
            return is_here  # it cannot be split, so that no network was trained on its current images
        if not is_here and samples_digest(splits.train, "size") != self.data_digest:
            return False
        has_folder = {"val": "val" not in splits.cut, "test": splits.is_tested and "test" not in splits.cut}
        now = SplitCut.of(config)
        # where training cut no test, another cut may still take one from the images that it has learned from
        if splits.cut or now.roles([role for role, has in has_folder.items() if has]):
            self._refuse_another(now)
        return True

    def _refuse_another(self, how: SplitCut) -> None:
        for key, then in asdict(self.how).items():
            now = getattr(how, key)
            if now != then:
                raise DataError(
                    f"{key} is {now}, but training cut its images with {then}, and has learned from some of those that "
                    f"another one cuts; leave --{key.replace('_', '-')} out."
                )


def _place(folder: str) -> Path:
    return Path(folder).expanduser().resolve()
