"""Detectors: they score a series while learning; numbers in, numbers out."""
