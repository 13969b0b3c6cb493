"""A digest at the end of a zip archive, which tells that every byte before it is the one that was written.

torch.save writes a zip archive, and torch.load does not compare its checksums: a bit that flips inside a tensor is
loaded as it is. A zip archive may end with a comment, which readers skip. Ours is

    attention-transfer sha256 <64 hexadecimal digits>

the SHA-256 of all bytes before it, the comment's own length among them. It tells of damage, not of malice: whoever
changes a file on purpose can seal it again.
"""

from __future__ import annotations

import hashlib
import os
from io import BytesIO
from typing import BinaryIO

MARK = b"attention-transfer sha256 "
LENGTH = len(MARK) + 64
# the record that ends an archive without a comment: its signature, 16 bytes, and the length of the comment
END, END_LENGTH, NO_COMMENT = b"PK\x05\x06", 22, b"\0\0"

_BLOCK = 1 << 20


def seal(archive: BytesIO) -> bytes:
    """The comment that seals an archive, whose length is noted in it; to be written behind it."""
    archive.seek(-len(NO_COMMENT), os.SEEK_END)
    archive.write(LENGTH.to_bytes(len(NO_COMMENT), "little"))
    return MARK + hashlib.sha256(archive.getbuffer()).hexdigest().encode()


def is_sealed(file: BinaryIO) -> bool:
    """Whether a file ends as a sealed one does; nothing is said of its content yet."""
    return _tail(file, LENGTH).startswith(MARK)


def is_intact(file: BinaryIO) -> bool:
    """Whether every byte of a sealed file is the one that was written; it is then at its beginning again."""
    rest = file.seek(0, os.SEEK_END) - LENGTH
    file.seek(0)
    digest = hashlib.sha256()
    while rest > 0 and (block := file.read(min(_BLOCK, rest))):
        digest.update(block)
        rest -= len(block)
    told = file.read(LENGTH)
    file.seek(0)
    return told == MARK + digest.hexdigest().encode()


def ends_unsealed(file: BinaryIO) -> bool:
    """Whether a file ends as an archive without a comment does."""
    end = _tail(file, END_LENGTH)
    return end.startswith(END) and end.endswith(NO_COMMENT)


def _tail(file: BinaryIO, length: int) -> bytes:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - length))
    return file.read(length)
