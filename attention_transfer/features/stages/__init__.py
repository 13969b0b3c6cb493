"""The stages of a network: which modules are compared, and how their outputs are read."""
