"""Rules on streams that open, hold and resolve incidents, and tell people."""
