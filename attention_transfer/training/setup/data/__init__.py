"""The data of a run: its loaders opened, their classes and first batches checked."""
