"""Features of any network: which modules are tapped, the attention maps of their outputs, and how stages are paired."""
