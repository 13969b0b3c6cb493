"""An image file: a path, or its bytes in memory."""

from __future__ import annotations

import os
from io import BytesIO

from PIL import Image

File = str | os.PathLike[str] | bytes


class NamedBytes(bytes):
    """The bytes of a file without a path, with a name for messages."""

    name: str

    def __new__(cls, content: bytes, name: str) -> NamedBytes:
        named = super().__new__(cls, content)
        named.name = name
        return named


def open_image(file: File) -> Image.Image:
    """Open a file with Pillow, which reads only its header."""
    return Image.open(BytesIO(file) if isinstance(file, bytes) else file)


def name_of(file: File) -> str:
    """The name of a file in messages."""
    if isinstance(file, bytes):
        return getattr(file, "name", "an image in memory")
    return os.fspath(file)
