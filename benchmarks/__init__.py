"""Measurements: what the methods are worth, and what they cost. Run alone; none of this is part of the tests."""
