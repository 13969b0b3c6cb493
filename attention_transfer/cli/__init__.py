"""The command line `attention-transfer`: one file a command; torch is imported when a command runs, not before."""
