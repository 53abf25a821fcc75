"""The platform's own functions: from the log to where people and applications read."""
