"""Entities for applications, as rows in PostgreSQL."""
