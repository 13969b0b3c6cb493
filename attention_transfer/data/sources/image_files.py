"""Recognising image files: by their suffix, and those without one by their first bytes."""

from __future__ import annotations

import os
from collections.abc import Mapping

from PIL import Image

_NO_PICTURES = frozenset({"EPS", "WMF", "MPEG", "FLI", "HDF5", "GRIB", "BUFR", "IPTC", "GBR", "PDF"})
"""Formats that Pillow registers but that are not images of data sets: documents, films, arrays, brushes."""

# A JPEG file of several pictures, which Pillow opens as a JPEG, so that the format has no opener of its own.
_OPENED_AS_JPEG = frozenset({".mpo"})
_RECOGNISABLE = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM", "PSD", "QOI", "DDS")
"""Formats with magic bytes; the others would match files of any content."""
_NAMED = 8


def image_suffixes() -> frozenset[str]:
    """The suffixes of all image files that Pillow can open here, in lower case, with the dot.

    They depend on how Pillow was built and on registered plugins (.avif, .heic). Formats
    that are documents, films or arrays of numbers (.pdf, .eps, .mpg, .h5) are left out by name.
    """
    registered = Image.registered_extensions()
    opened = {suffix for suffix, name in registered.items() if name in Image.OPEN and name not in _NO_PICTURES}
    return frozenset(opened) | _OPENED_AS_JPEG


def suffix_of(name: str) -> str:
    """The suffix of a file's name in lower case, with the dot; '' where there is none."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 - ten times faster, over a million names


def begins_like_an_image(path: str | os.PathLike[str]) -> bool:
    """Whether a file's first bytes are those of an image; nothing is decoded.

    Raises:
        OSError: the file cannot be opened.
    """
    Image.init()
    formats = [name for name in _RECOGNISABLE if name in Image.OPEN]
    with open(path, "rb") as file:  # noqa: PTH123 - so that an error of Pillow's is one of its content
        try:
            with Image.open(file, formats=formats):
                return True
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            return True  # the decoder raises the error for it
        except Exception:
            return False  # a text file that begins like an image may raise any error


def in_words(passed_over: Mapping[str, int]) -> str:
    """The number of files of each suffix as text, the most frequent first.

    Example:
        >>> in_words({".txt": 2, "": 1})
        '2 .txt, 1 without a suffix'
    """
    ordered = sorted(passed_over.items(), key=lambda item: (-item[1], item[0]))
    words = [f"{count:,} {suffix or 'without a suffix'}" for suffix, count in ordered[:_NAMED]]
    more = len(ordered) - _NAMED
    return ", ".join(words) + (f" and {more} other suffixes" if more > 0 else "")
