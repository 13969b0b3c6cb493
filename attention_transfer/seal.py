"""A SHA-256 digest at the end of a zip archive, which detects corruption of any byte before it.

torch.save writes a zip archive, and torch.load does not compare its checksums: a flipped bit inside a tensor is loaded
unnoticed. A zip archive may end with a comment, which readers skip. Ours is

    attention-transfer sha256 <64 hexadecimal digits>

the SHA-256 of all bytes before it, including the comment's own length. It detects corruption, not tampering: a file
that was changed on purpose can be sealed again.
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
    """The comment that seals an archive, to be appended to it; its length is written into the archive here."""
    archive.seek(-len(NO_COMMENT), os.SEEK_END)
    archive.write(LENGTH.to_bytes(len(NO_COMMENT), "little"))
    return MARK + hashlib.sha256(archive.getbuffer()).hexdigest().encode()


def is_sealed(file: BinaryIO) -> bool:
    """Whether a file ends with the comment of a sealed one; its content is not checked."""
    return _tail(file, LENGTH).startswith(MARK)


def is_intact(file: BinaryIO) -> bool:
    """Whether the content of a sealed file matches its digest; the file is then positioned at its beginning."""
    rest = file.seek(0, os.SEEK_END) - LENGTH
    file.seek(0)
    digest = hashlib.sha256()
    while rest > 0 and (block := file.read(min(_BLOCK, rest))):
        digest.update(block)
        rest -= len(block)
    comment = file.read(LENGTH)
    file.seek(0)
    return comment == MARK + digest.hexdigest().encode()


def ends_unsealed(file: BinaryIO) -> bool:
    """Whether a file ends as an archive without a comment does."""
    end = _tail(file, END_LENGTH)
    return end.startswith(END) and end.endswith(NO_COMMENT)


def _tail(file: BinaryIO, length: int) -> bytes:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - length))
    return file.read(length)
