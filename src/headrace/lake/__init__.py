"""History in open tables: Delta/Parquet that any engine reads."""
