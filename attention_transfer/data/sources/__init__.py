"""Data sources: the images and labels of a data set, from disk or elsewhere."""
