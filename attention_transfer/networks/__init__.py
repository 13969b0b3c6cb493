"""The networks that can be built by name, one family a file, and the registry that finds them."""
