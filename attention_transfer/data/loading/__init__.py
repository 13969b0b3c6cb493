"""Loaders: ours, the user's, and the processes that load."""
