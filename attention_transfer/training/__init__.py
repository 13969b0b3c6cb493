"""Training: the objective, an epoch, the state of a run, its observers, and the run itself."""
