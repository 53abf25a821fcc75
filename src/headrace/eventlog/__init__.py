"""Ordered, durable streams of events: the one place an acknowledged event is safe in."""
