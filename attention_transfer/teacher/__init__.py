"""The teacher: recognising its checkpoint, running it, and caching its outputs."""
