CREATE TABLE IF NOT EXISTS sessions (
    client_id TEXT PRIMARY KEY, user TEXT NOT NULL, expiry_s INTEGER NOT NULL,
    ended INTEGER NOT NULL,  -- ticks when its connection was lost; 0 while it has one
    will BLOB, will_delay_s INTEGER NOT NULL, will_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS subscriptions (
    client_id TEXT NOT NULL, filter BLOB NOT NULL, qos INTEGER NOT NULL, no_local INTEGER NOT NULL,
    as_published INTEGER NOT NULL, identifier INTEGER NOT NULL, PRIMARY KEY (client_id, filter)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS messages (id INTEGER PRIMARY KEY, message BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS deliveries (
    id INTEGER PRIMARY KEY, client_id TEXT NOT NULL, message INTEGER NOT NULL, qos INTEGER NOT NULL,
    retain INTEGER NOT NULL, identifiers TEXT NOT NULL, share BLOB NOT NULL,
    packet_id INTEGER NOT NULL, state INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS held (
    client_id TEXT NOT NULL, packet_id INTEGER NOT NULL, mark TEXT NOT NULL, message BLOB NOT NULL,
    PRIMARY KEY (client_id, packet_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS retained (topic BLOB PRIMARY KEY, message BLOB NOT NULL) WITHOUT ROWID;
