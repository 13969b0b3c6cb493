"""Training: the criterion, an epoch, the state of a run, its callbacks, and the run itself."""
