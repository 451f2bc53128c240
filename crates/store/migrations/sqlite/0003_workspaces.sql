-- Sessions refer to the chunks of their workspace snapshots.

-- Which blobs a session may read, and need not upload: manifests and chunks of its snapshots. Rows go with the
-- session, and some time after the last snapshot that needed them.
CREATE TABLE session_chunks (
    session_id TEXT NOT NULL,
    hash TEXT NOT NULL,
    -- When the session last asked for the reference.
    referred_at INTEGER NOT NULL,
    PRIMARY KEY (session_id, hash)
) STRICT, WITHOUT ROWID;

CREATE INDEX session_chunks_by_hash ON session_chunks (hash);
