-- Sessions refer to the chunks of their workspace snapshots.

-- Which blobs a session may read, and need not upload: manifests and chunks of its snapshots. Rows go with the
-- session, and some time after the last snapshot that needed them.
CREATE TABLE session_chunks (
    session_id TEXT COLLATE "C" NOT NULL,
    hash TEXT COLLATE "C" NOT NULL,
    -- When the session last asked for the reference.
    referred_at BIGINT NOT NULL,
    PRIMARY KEY (session_id, hash)
);

CREATE INDEX session_chunks_by_hash ON session_chunks (hash);
