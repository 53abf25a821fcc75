"""Where devices connect."""
