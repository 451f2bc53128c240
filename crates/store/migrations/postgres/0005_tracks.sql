-- Two releases side by side, sessions that change hands, and turns that were lost.

-- Where a session falls when sessions are split between two releases: the 32-bit MurmurHash2 of its id, as nginx's
-- split_clients computes it. A row written by a build that does not know the column keeps the last hash of all, which
-- is always stable, until this build appends to it.
ALTER TABLE sessions ADD COLUMN split_hash BIGINT NOT NULL DEFAULT 4294967295;

-- 1 when the last owner gave the session away in mid-turn and nobody had it since: how the next one knows that it
-- goes on with a turn.
ALTER TABLE sessions ADD COLUMN handed_over BIGINT NOT NULL DEFAULT 0;

-- 'stable' or 'canary'.
ALTER TABLE replicas ADD COLUMN track TEXT NOT NULL DEFAULT 'stable';

-- The share of sessions that the canary drives, in hundredths of a percent. The row of the highest epoch counts, and
-- without one everything is stable.
CREATE TABLE rollout_weight (
    epoch BIGINT NOT NULL PRIMARY KEY,
    canary_weight BIGINT NOT NULL CHECK (canary_weight BETWEEN 0 AND 10000)
);

-- Claims look for sessions that are due within a range of hashes. What `sessions_claimable` served, this serves too.
CREATE INDEX sessions_claimable_by_hash ON sessions (wake_at, split_hash)
    WHERE owner IS NULL AND wake_at IS NOT NULL;
DROP INDEX sessions_claimable;

-- Turns that nobody drives and nothing would wake: there are none, so that looking for them costs nothing.
CREATE INDEX sessions_lost ON sessions (id)
    WHERE owner IS NULL AND wake_at IS NULL AND deleted_at IS NULL AND status IN ('running', 'rescheduling');
