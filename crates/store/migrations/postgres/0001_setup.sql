-- The tables of an installation that keeps its record in PostgreSQL.
--
-- Times are microseconds since the Unix epoch by the database's clock, or the server's where clients see them. Bodies
-- are TEXT, not JSONB, which cannot hold the NUL character that a string may contain: in JSON text it is an escape.
-- Identifiers sort byte by byte (COLLATE "C"), as they do in SQLite and in Rust.

-- One row a session: where its log ends, who drives it, when it is due, and the fold of its log so far.
CREATE TABLE sessions (
    id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    -- Position of the last record: the guard of every append.
    position BIGINT NOT NULL,
    -- Raised with every claim; an owner's append names it. Never lowered, so that no claim is ever repeated.
    epoch BIGINT NOT NULL,
    -- The replica that holds the claim, or NULL. It may be dead.
    owner TEXT COLLATE "C",
    -- From when on somebody has to look at the session; NULL when nothing is due.
    wake_at BIGINT,
    -- What lists filter by, copied from the snapshot.
    status TEXT NOT NULL,
    agent_id TEXT COLLATE "C" NOT NULL,
    agent_version BIGINT NOT NULL,
    environment_id TEXT COLLATE "C" NOT NULL,
    created_at BIGINT NOT NULL,
    archived_at BIGINT,
    deleted_at BIGINT,
    -- The session's state as JSON, written with every append. A snapshot of an unknown format is not read:
    -- the records are folded instead.
    snapshot_format BIGINT NOT NULL,
    snapshot TEXT NOT NULL,
    -- Whether the last append took the claim for its replica: how one statement tells its caller.
    claimed BOOLEAN NOT NULL DEFAULT FALSE
-- Rows are updated with every append: room on the page spares the indexes, and snapshots stay beside their row.
) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.05);

ALTER TABLE sessions ALTER COLUMN snapshot SET STORAGE MAIN;

CREATE INDEX sessions_claimable ON sessions (wake_at) WHERE owner IS NULL AND wake_at IS NOT NULL;
CREATE INDEX sessions_by_owner ON sessions (owner) WHERE owner IS NOT NULL;
CREATE INDEX sessions_by_creation ON sessions (created_at, id) WHERE deleted_at IS NULL;
CREATE INDEX sessions_by_agent ON sessions (agent_id, created_at, id) WHERE deleted_at IS NULL;
CREATE INDEX sessions_by_environment ON sessions (environment_id) WHERE deleted_at IS NULL;
CREATE INDEX sessions_deleted ON sessions (deleted_at) WHERE deleted_at IS NOT NULL;

-- The log of every session. Rows are only ever inserted, and removed with their session.
CREATE TABLE records (
    session_id TEXT COLLATE "C" NOT NULL,
    position BIGINT NOT NULL,
    -- 'internal', 'received' or 'final': how the record takes part in lists.
    form TEXT NOT NULL,
    -- The API's type of what clients see; for a processed event that of the event it refers to.
    kind TEXT NOT NULL,
    event_id TEXT,
    -- For a processed event, the position of the record that holds its content.
    refers_to BIGINT,
    -- The format of the body.
    version BIGINT NOT NULL,
    at BIGINT NOT NULL,
    -- The event as JSON, or NULL when it is so large that it lies in the blob with this hash.
    body TEXT,
    blob TEXT,
    PRIMARY KEY (session_id, position)
);

CREATE INDEX records_by_blob ON records (blob) WHERE blob IS NOT NULL;

-- Agents and their versions. A version's body is never changed.
CREATE TABLE agents (
    id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    latest_version BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    archived_at BIGINT
);

CREATE INDEX agents_by_creation ON agents (created_at, id);

CREATE TABLE agent_versions (
    agent_id TEXT COLLATE "C" NOT NULL,
    version BIGINT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (agent_id, version)
);

-- Environments. `name` is the name as a JSON string, so that both dialects can hold any character in it.
CREATE TABLE environments (
    id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    archived_at BIGINT,
    body TEXT NOT NULL
);

CREATE UNIQUE INDEX environments_active_name ON environments (name) WHERE archived_at IS NULL;
CREATE INDEX environments_by_creation ON environments (created_at, id);

-- Credentials of the workers of self-hosted environments: hashes, never keys.
CREATE TABLE environment_keys (
    id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    environment_id TEXT COLLATE "C" NOT NULL,
    key_hash TEXT NOT NULL UNIQUE,
    created_at BIGINT NOT NULL,
    revoked_at BIGINT
);

CREATE INDEX environment_keys_by_environment ON environment_keys (environment_id, created_at, id);

-- Sessions that wait for a worker, and what became of them.
CREATE TABLE work_items (
    id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    session_id TEXT COLLATE "C" NOT NULL,
    environment_id TEXT COLLATE "C" NOT NULL,
    -- 'cloud' or 'self_hosted': which workers may see the item.
    environment_kind TEXT NOT NULL,
    -- 'queued', 'starting', 'active', 'stopping' or 'stopped'.
    state TEXT NOT NULL,
    metadata TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    -- When the item last became queued: the order in which items are handed out.
    queued_at BIGINT NOT NULL,
    -- When a poll last handed the queued item out; NULL when nobody has it.
    handed_out_at BIGINT,
    acknowledged_at BIGINT,
    started_at BIGINT,
    latest_heartbeat_at BIGINT,
    stop_requested_at BIGINT,
    stopped_at BIGINT,
    lease_ttl_seconds BIGINT NOT NULL,
    -- Hash of the token that the item's present holder was given.
    token_hash TEXT
);

-- A session has at most one item that lives.
CREATE UNIQUE INDEX work_items_live ON work_items (session_id) WHERE state <> 'stopped';
CREATE UNIQUE INDEX work_items_by_token ON work_items (token_hash) WHERE token_hash IS NOT NULL;
CREATE INDEX work_items_queued ON work_items (queued_at, id) WHERE state = 'queued';
CREATE INDEX work_items_held ON work_items (session_id) WHERE state IN ('starting', 'active', 'stopping');
CREATE INDEX work_items_by_creation ON work_items (created_at, id);
CREATE INDEX work_items_by_session ON work_items (session_id);

-- When each worker last polled. `pool` is an environment's id, or 'cloud'.
CREATE TABLE worker_polls (
    pool TEXT COLLATE "C" NOT NULL,
    worker_id TEXT COLLATE "C" NOT NULL,
    polled_at BIGINT NOT NULL,
    PRIMARY KEY (pool, worker_id)
);

-- One row a start of a server process. Nothing here is worth a flush: it is written without waiting for the disk.
CREATE TABLE replicas (
    id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    -- The session-level advisory lock that the living process holds.
    lock_key BIGINT NOT NULL,
    -- Renewed every 200 ms, by the database's clock.
    beat_at BIGINT NOT NULL,
    -- When the process said goodbye.
    retired_at BIGINT
) WITH (fillfactor = 20);
