"""Decoding: from an image file to the picture that views are rendered from."""
