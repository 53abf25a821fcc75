"""Bytes and protocols, no I/O."""
