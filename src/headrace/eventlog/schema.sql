-- One file per stream. `head` is the only row that every append changes; `batches` only grows at its end and shrinks at its
-- beginning, so sequence numbers have no holes and any lookup is a binary search over them.
CREATE TABLE head (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    format INTEGER NOT NULL,
    partitions INTEGER NOT NULL,
    seq INTEGER NOT NULL,       -- of the last batch
    enqueued INTEGER NOT NULL,  -- its stamp, ticks
    next BLOB NOT NULL,         -- per partition, int64: the next offset
    received BLOB NOT NULL,     -- per partition: rows handed to append
    duplicates BLOB NOT NULL    -- per partition: rows of those that were there already
);
CREATE TABLE batches (
    seq INTEGER PRIMARY KEY,
    enqueued INTEGER NOT NULL,
    starts BLOB NOT NULL,       -- per partition: the first offset
    counts BLOB NOT NULL,       -- per partition: rows
    producer TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    ids BLOB NOT NULL,          -- keys of the resendable event ids, 16 bytes each: what de-duplication reads
    data BLOB NOT NULL          -- last, so that reading the columns before it leaves its pages alone
);
CREATE TABLE producers (
    producer TEXT PRIMARY KEY,
    epoch INTEGER NOT NULL,
    rows INTEGER NOT NULL,
    duplicates INTEGER NOT NULL,
    enqueued INTEGER NOT NULL,
    positions BLOB NOT NULL
) WITHOUT ROWID;
