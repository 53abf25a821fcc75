"""Many small files into few big ones, without a visible change.

Appends every two seconds make 43,200 files a day. Joining rewrites files and commits their replacement in one step, which
conflicts with no append; the replaced files stay for readers that still hold them, until `retention_h` has passed.
"""

from __future__ import annotations

from deltalake import DeltaTable, WriterProperties

TARGET_BYTES = 128 * 1024 * 1024
RETENTION_H = 1
WRITER = WriterProperties(compression="ZSTD", compression_level=1)


def join_files(table: DeltaTable, *, target_bytes: int = TARGET_BYTES) -> int:
    """Join the small files of each partition; returns how many files fewer the table has."""
    # One bin at a time: a joiner beside live traffic should take its time, not the memory.
    result = table.optimize.compact(target_size=target_bytes, max_concurrent_tasks=1, writer_properties=WRITER)
    return int(result["numFilesRemoved"]) - int(result["numFilesAdded"])


def remove_replaced(table: DeltaTable, *, retention_h: int = RETENTION_H) -> int:
    """Delete files that no version of the last `retention_h` hours uses; returns how many."""
    return len(table.vacuum(retention_hours=retention_h, enforce_retention_duration=False, dry_run=False))
