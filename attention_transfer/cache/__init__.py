"""The cache on disk, shared between epochs and runs: files of records, and their folder."""
