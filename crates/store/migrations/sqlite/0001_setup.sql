-- The tables of an installation that keeps its record in one SQLite file.
--
-- Times are microseconds since the Unix epoch. Bodies are JSON text: a NUL character in a string is the escape \u0000
-- there. Positions, epochs and counters are 64-bit integers. `STRICT` tables refuse values of another type;
-- `WITHOUT ROWID` keeps the rows in order of their key.

-- One row a session: where its log ends, who drives it, when it is due, and the fold of its log so far.
CREATE TABLE sessions (
    id TEXT NOT NULL PRIMARY KEY,
    -- Position of the last record: the guard of every append.
    position INTEGER NOT NULL,
    -- Raised with every claim; an owner's append names it. Never lowered, so that no claim is ever repeated.
    epoch INTEGER NOT NULL,
    -- The replica that holds the claim, or NULL. It may be dead.
    owner TEXT,
    -- From when on somebody has to look at the session; NULL when nothing is due.
    wake_at INTEGER,
    -- What lists filter by, copied from the snapshot.
    status TEXT NOT NULL,
    agent_id TEXT NOT NULL,
    agent_version INTEGER NOT NULL,
    environment_id TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    archived_at INTEGER,
    deleted_at INTEGER,
    -- The session's state as JSON, written with every append. A snapshot of an unknown format is not read:
    -- the records are folded instead.
    snapshot_format INTEGER NOT NULL,
    snapshot TEXT NOT NULL
) STRICT;

CREATE INDEX sessions_claimable ON sessions (wake_at) WHERE wake_at IS NOT NULL;
CREATE INDEX sessions_by_owner ON sessions (owner) WHERE owner IS NOT NULL;
CREATE INDEX sessions_by_creation ON sessions (created_at, id) WHERE deleted_at IS NULL;
CREATE INDEX sessions_by_agent ON sessions (agent_id, created_at, id) WHERE deleted_at IS NULL;
CREATE INDEX sessions_by_environment ON sessions (environment_id) WHERE deleted_at IS NULL;
CREATE INDEX sessions_deleted ON sessions (deleted_at) WHERE deleted_at IS NOT NULL;

-- The log of every session. Rows are only ever inserted, and removed with their session.
CREATE TABLE records (
    session_id TEXT NOT NULL,
    position INTEGER NOT NULL,
    -- 'internal', 'received' or 'final': how the record takes part in lists.
    form TEXT NOT NULL,
    -- The API's type of what clients see; for a processed event that of the event it refers to.
    kind TEXT NOT NULL,
    event_id TEXT,
    -- For a processed event, the position of the record that holds its content.
    refers_to INTEGER,
    -- The format of the body.
    version INTEGER NOT NULL,
    at INTEGER NOT NULL,
    -- The event as JSON, or NULL when it is so large that it lies in the blob with this hash.
    body TEXT,
    blob TEXT,
    PRIMARY KEY (session_id, position)
) STRICT, WITHOUT ROWID;

CREATE INDEX records_by_blob ON records (blob) WHERE blob IS NOT NULL;

-- Agents and their versions. A version's body is never changed.
CREATE TABLE agents (
    id TEXT NOT NULL PRIMARY KEY,
    latest_version INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    archived_at INTEGER
) STRICT, WITHOUT ROWID;

CREATE INDEX agents_by_creation ON agents (created_at, id);

CREATE TABLE agent_versions (
    agent_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (agent_id, version)
) STRICT, WITHOUT ROWID;

-- Environments. `name` is the name as a JSON string, so that both dialects can hold any character in it.
CREATE TABLE environments (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    archived_at INTEGER,
    body TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX environments_active_name ON environments (name) WHERE archived_at IS NULL;
CREATE INDEX environments_by_creation ON environments (created_at, id);

-- Credentials of the workers of self-hosted environments: hashes, never keys.
CREATE TABLE environment_keys (
    id TEXT NOT NULL PRIMARY KEY,
    environment_id TEXT NOT NULL,
    key_hash TEXT NOT NULL UNIQUE,
    created_at INTEGER NOT NULL,
    revoked_at INTEGER
) STRICT, WITHOUT ROWID;

CREATE INDEX environment_keys_by_environment ON environment_keys (environment_id, created_at, id);

-- Sessions that wait for a worker, and what became of them.
CREATE TABLE work_items (
    id TEXT NOT NULL PRIMARY KEY,
    session_id TEXT NOT NULL,
    environment_id TEXT NOT NULL,
    -- 'cloud' or 'self_hosted': which workers may see the item.
    environment_kind TEXT NOT NULL,
    -- 'queued', 'starting', 'active', 'stopping' or 'stopped'.
    state TEXT NOT NULL,
    metadata TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    -- When the item last became queued: the order in which items are handed out.
    queued_at INTEGER NOT NULL,
    -- When a poll last handed the queued item out; NULL when nobody has it.
    handed_out_at INTEGER,
    acknowledged_at INTEGER,
    started_at INTEGER,
    latest_heartbeat_at INTEGER,
    stop_requested_at INTEGER,
    stopped_at INTEGER,
    lease_ttl_seconds INTEGER NOT NULL,
    -- Hash of the token that the item's present holder was given.
    token_hash TEXT
) STRICT, WITHOUT ROWID;

-- A session has at most one item that lives.
CREATE UNIQUE INDEX work_items_live ON work_items (session_id) WHERE state <> 'stopped';
CREATE UNIQUE INDEX work_items_by_token ON work_items (token_hash) WHERE token_hash IS NOT NULL;
CREATE INDEX work_items_queued ON work_items (queued_at, id) WHERE state = 'queued';
CREATE INDEX work_items_held ON work_items (session_id) WHERE state IN ('starting', 'active', 'stopping');
CREATE INDEX work_items_by_creation ON work_items (created_at, id);
CREATE INDEX work_items_by_session ON work_items (session_id);

-- When each worker last polled. `pool` is an environment's id, or 'cloud'.
CREATE TABLE worker_polls (
    pool TEXT NOT NULL,
    worker_id TEXT NOT NULL,
    polled_at INTEGER NOT NULL,
    PRIMARY KEY (pool, worker_id)
) STRICT, WITHOUT ROWID;
