-- `changes` gives out sequence numbers (and with them etags); AUTOINCREMENT never hands one out twice.
CREATE TABLE IF NOT EXISTS documents (
    collection TEXT NOT NULL,
    id TEXT NOT NULL,
    etag TEXT NOT NULL,
    body TEXT NOT NULL,
    updated INTEGER NOT NULL,
    expires INTEGER,
    PRIMARY KEY (collection, id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS documents_expires ON documents (expires) WHERE expires IS NOT NULL;
CREATE TABLE IF NOT EXISTS changes (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    collection TEXT NOT NULL,
    id TEXT NOT NULL,
    etag TEXT NOT NULL,
    body TEXT,
    made INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS changes_collection ON changes (collection, sequence);
CREATE INDEX IF NOT EXISTS changes_document ON changes (collection, id, sequence);
