"""Writes that people make in the console."""
