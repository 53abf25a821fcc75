"""Outside systems and files, one a module: where rows come from and go to."""
