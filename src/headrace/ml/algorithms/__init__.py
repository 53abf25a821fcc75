"""One algorithm a file: an `Algorithm` at module level. No list to edit."""
