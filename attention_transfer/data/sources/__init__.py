"""Data sources: what a data set on disk holds."""
