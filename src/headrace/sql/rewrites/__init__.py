"""Rewrites of a plan, one per file: each defines a `sql.rewrite.Rewrite`, found by `core.plugins.collect`."""
