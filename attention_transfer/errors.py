"""Every error that this library raises on purpose.

    AttentionTransferError
    ├── ConfigError        a setting is unknown, of the wrong type, out of range or contradictory
    ├── DataError          a folder, an image, a label or a loader is not what training needs
    │   └── UnguardedScriptError   a script that starts processes does not check that it is the main program
    ├── CheckpointError    a file is not a checkpoint of this library, is corrupt or does not fit
    ├── TeacherError       the teacher cannot be recognised, loaded or compared with the student
    ├── CacheError         the cache cannot be written, or an entry is corrupt
    ├── WriteError         a file of a run cannot be written: no room, no permission, a read-only disk
    └── DivergenceError    the loss is no longer a finite number

Catch the base class to catch them all; the command line prints the message and exits with 2.
"""

from __future__ import annotations


class AttentionTransferError(Exception):
    """Base of all errors below; the message says what is wrong and what to do."""


class ConfigError(AttentionTransferError, ValueError):
    """A setting is unknown, of the wrong type, out of range or contradicts another one."""


class DataError(AttentionTransferError, ValueError):
    """A data folder, an image, a label or a loader is not what training needs."""


class UnguardedScriptError(DataError):
    """A script that starts processes has no `if __name__ == "__main__"`, so each of them would run it again."""


class CheckpointError(AttentionTransferError, ValueError):
    """A file is not a checkpoint of this library, is corrupt, or does not fit the run."""


class VersionError(CheckpointError):
    """A checkpoint was written by another version of this library, which can still read it."""


class TeacherError(AttentionTransferError, ValueError):
    """The teacher cannot be recognised, loaded or compared with the student."""


class CacheError(AttentionTransferError, OSError):
    """The cache cannot be written, or an entry is corrupt."""


class WriteError(AttentionTransferError, OSError):
    """A file of a run cannot be written; its previous version is intact."""


class DivergenceError(AttentionTransferError, ArithmeticError):
    """The loss is no longer a finite number; training has stopped."""
