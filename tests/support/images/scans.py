"""What the tests of pixel_range share: images of more than 8 bits, and how many grey levels are left of them."""

from __future__ import annotations

import numpy as np

from attention_transfer.data.decoding.depth import FULL


def scan_of_12_bits(image):
    return (image * 4071).round().astype(np.uint16)


def tomogram(image):
    return (image * 4000 - 1000).round().astype(np.int32)


KINDS = {
    "12 bits in a 16-bit PNG": (scan_of_12_bits, "png", (0.0, 4095.0), "16-bit"),
    "16 bits": (lambda image: (image * 65535).astype(np.uint16), "tif", FULL, "16-bit"),
    "10 bits, big-endian": (lambda image: (image * 1023).astype(">u2"), "tif", (0.0, 1023.0), "16-bit"),
    "signed 16 bits": (tomogram, "tif", (-1024.0, 4095.0), "16-bit"),
    "32-bit integers": (lambda image: (image * 1_000_000).astype(np.int32), "tif", (0.0, 1048575.0), "32-bit"),
    "whole floats": (lambda image: scan_of_12_bits(image).astype(np.float32), "tif", (0.0, 4095.0), "floating-point"),
    "floats in [0, 1]": (lambda image: (image * 0.8).astype(np.float32), "tif", (0.0, 1.0), "floating-point"),
}


def levels(dataset):
    return max(len(np.unique(dataset.picture(index))) for index in range(0, len(dataset), 5))
