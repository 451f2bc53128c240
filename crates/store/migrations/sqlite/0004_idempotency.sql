-- Answers to requests that named an idempotency key, kept for a day. The row is inserted first in the transaction of
-- the request's effect, so that a twin waits for it.
CREATE TABLE idempotency_keys (
    -- Of the credential that sent the request; the credential itself is nowhere.
    credential_hash TEXT NOT NULL,
    key TEXT NOT NULL,
    -- What makes another request under the same key a different one.
    method TEXT NOT NULL,
    path TEXT NOT NULL,
    body_hash TEXT NOT NULL,
    -- The answer; the body is JSON text, empty until the effect has taken place within the same transaction.
    status INTEGER NOT NULL,
    body TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (credential_hash, key)
) STRICT;

CREATE INDEX idempotency_keys_by_creation ON idempotency_keys (created_at);
