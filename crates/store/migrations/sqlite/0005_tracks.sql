-- Sessions that change hands, and turns that were lost. One process is one release: there are no tracks here.

-- 1 when the last owner gave the session away in mid-turn and nobody had it since: how the next one knows that it
-- goes on with a turn.
ALTER TABLE sessions ADD COLUMN handed_over INTEGER NOT NULL DEFAULT 0;

-- Turns that nobody drives and nothing would wake: there are none, so that looking for them costs nothing.
CREATE INDEX sessions_lost ON sessions (id)
    WHERE owner IS NULL AND wake_at IS NULL AND deleted_at IS NULL AND status IN ('running', 'rescheduling');
