"""User code on a stream, in its own process."""
