"""Loaders: ours, users', and their worker processes."""
