"""Questions about the past: DuckDB over the lake and the log's recent rows, as if they were one table."""
