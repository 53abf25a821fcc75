"""Headrace: real-time IoT data, end to end. Start at `headrace --help` or docs/ARCHITECTURE.md."""

__version__ = "0.1.0"
