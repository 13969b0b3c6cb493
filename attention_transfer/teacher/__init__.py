"""The teacher: recognising its checkpoint, running it, and what it answers."""
