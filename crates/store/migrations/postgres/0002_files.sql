-- Blobs are counted, and files refer to them.

-- Every blob that somebody has put or is about to put. What refers to one is looked up in the tables that do: the
-- column `blob` of records and of files. A row that is old and that nothing refers to is garbage: its bytes and then
-- the row are removed under the row's lock, which every new reference takes too.
CREATE TABLE blobs (
    hash TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    -- NULL for a blob of a release that did not count.
    bytes BIGINT,
    -- When the blob was last announced, or lost its last reference.
    touched_at BIGINT NOT NULL
);

CREATE INDEX blobs_by_age ON blobs (touched_at);

INSERT INTO blobs (hash, bytes, touched_at)
    SELECT DISTINCT blob, NULL::bigint, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
    FROM records WHERE blob IS NOT NULL;

-- Files of the Files API.
CREATE TABLE files (
    id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    filename TEXT NOT NULL,
    mime_type TEXT NOT NULL,
    bytes BIGINT NOT NULL,
    -- The content; NULL once it has expired.
    blob TEXT COLLATE "C",
    created_at BIGINT NOT NULL,
    expires_at BIGINT,
    -- The session that it belongs to and goes with; NULL for an upload.
    session_id TEXT COLLATE "C"
);

CREATE INDEX files_by_creation ON files (created_at, id);
CREATE INDEX files_by_session ON files (session_id, created_at, id) WHERE session_id IS NOT NULL;
CREATE INDEX files_by_blob ON files (blob) WHERE blob IS NOT NULL;
CREATE INDEX files_by_expiry ON files (expires_at) WHERE expires_at IS NOT NULL AND blob IS NOT NULL;
