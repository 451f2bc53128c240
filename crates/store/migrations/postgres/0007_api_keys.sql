-- Whose limits a session counts towards.

-- The API key that the session was created with, told by its hash; NULL for sessions of releases that did not record
-- it, which count towards nobody's. Written once.
ALTER TABLE sessions ADD COLUMN api_key_id TEXT COLLATE "C";

-- How many sessions of a key run is counted here, never kept as a number, which a lost replica could leave wrong.
CREATE INDEX sessions_running_by_key ON sessions (api_key_id)
    WHERE api_key_id IS NOT NULL AND status IN ('running', 'rescheduling');

-- What keys that are capped have used, by day of UTC. Several rows a key and day, chosen by the session, so that
-- settlements seldom wait for each other.
CREATE TABLE key_usage (
    api_key_id TEXT COLLATE "C" NOT NULL,
    -- Days since the Unix epoch.
    day BIGINT NOT NULL,
    shard BIGINT NOT NULL,
    tokens BIGINT NOT NULL,
    -- Millionths of a US dollar.
    micro_usd BIGINT NOT NULL,
    -- The part that was settled at a reservation, because nobody knows what was used.
    estimated_tokens BIGINT NOT NULL,
    estimated_micro_usd BIGINT NOT NULL,
    PRIMARY KEY (api_key_id, day, shard)
) WITH (fillfactor = 50);

-- What model requests that are under way may use at most: written with the intent of the request, taken away by the
-- transaction that adds to `key_usage` what came of it.
CREATE TABLE open_reservations (
    -- The id of the request's span.
    request_id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    session_id TEXT COLLATE "C" NOT NULL,
    api_key_id TEXT COLLATE "C" NOT NULL,
    -- The day that it counts towards, whenever it is settled.
    day BIGINT NOT NULL,
    tokens BIGINT NOT NULL,
    micro_usd BIGINT NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.05);

CREATE INDEX open_reservations_by_key ON open_reservations (api_key_id, day);
CREATE INDEX open_reservations_by_session ON open_reservations (session_id);
