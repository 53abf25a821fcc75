"""Reads: what the pages, and programs that people write, ask of the console."""
