-- `sums` holds what was rolled up: every epoch of its key up to and including `epoch`.
CREATE TABLE IF NOT EXISTS entries (
    stage TEXT NOT NULL,
    stream TEXT NOT NULL,
    partition INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    offset_from INTEGER NOT NULL,
    offset_to INTEGER NOT NULL,
    rows_out INTEGER NOT NULL,
    set_aside TEXT NOT NULL,
    PRIMARY KEY (stage, stream, partition, epoch)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sums (
    stage TEXT NOT NULL,
    stream TEXT NOT NULL,
    partition INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    offset_from INTEGER NOT NULL,
    offset_to INTEGER NOT NULL,
    rows_out INTEGER NOT NULL,
    set_aside TEXT NOT NULL,
    PRIMARY KEY (stage, stream, partition)
) WITHOUT ROWID;
