"""The number format of a run."""
