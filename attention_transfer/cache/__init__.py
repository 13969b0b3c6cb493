"""What is kept on disk between epochs and runs: files of records, and the folder that they lie in."""
