"""The teacher's cached outputs: one record for each sample and view."""
