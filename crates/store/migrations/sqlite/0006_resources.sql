-- What sessions are given, and what they make. Both are files of the session.

-- Files that are mounted in a session's sandbox. Each has a copy of its own, which goes with it.
CREATE TABLE session_resources (
    id TEXT NOT NULL PRIMARY KEY,
    session_id TEXT NOT NULL,
    file_id TEXT NOT NULL UNIQUE,
    mount_path TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    UNIQUE (session_id, mount_path)
) STRICT, WITHOUT ROWID;

-- Raised with every change of the session's resources, so that a worker can tell whether it has the latest.
ALTER TABLE sessions ADD COLUMN resources_version INTEGER NOT NULL DEFAULT 0;

-- What each path of a session's outputs had last. A client may have deleted the file since.
CREATE TABLE session_outputs (
    session_id TEXT NOT NULL,
    path TEXT NOT NULL,
    file_id TEXT NOT NULL,
    -- Of the content. It keeps no blob: the file does.
    hash TEXT NOT NULL,
    PRIMARY KEY (session_id, path)
) STRICT, WITHOUT ROWID;
