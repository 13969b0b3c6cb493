"""From an image file to the picture that views are made of."""
