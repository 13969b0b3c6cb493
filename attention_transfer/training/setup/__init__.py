"""Everything that is settled before the first epoch."""
