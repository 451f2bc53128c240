//! What a database says, in the words of the ports.
//!
//! Messages go to logs and error bodies: they hold what the server said and never a connection string, which sqlx
//! may quote when it cannot be parsed or reached.

use engine::port::StoreError;

/// Tells a database that cannot do its work from one whose content cannot be read.
pub(crate) fn store_error(error: sqlx::Error) -> StoreError {
    match error {
        sqlx::Error::ColumnDecode { .. }
        | sqlx::Error::Decode(_)
        | sqlx::Error::ColumnNotFound(_)
        | sqlx::Error::ColumnIndexOutOfBounds { .. }
        | sqlx::Error::TypeNotFound { .. } => StoreError::Corrupt(error.to_string()),
        sqlx::Error::Database(said) => {
            StoreError::Unavailable(format!("{} (code {})", said.message(), said.code().unwrap_or_default()))
        }
        sqlx::Error::Io(error) => StoreError::Unavailable(format!("connection: {}", error.kind())),
        sqlx::Error::Configuration(_) => StoreError::Unavailable("the connection settings are wrong".to_owned()),
        sqlx::Error::Tls(_) => StoreError::Unavailable("the TLS handshake failed".to_owned()),
        error => StoreError::Unavailable(error.to_string()),
    }
}

/// Whether a statement was refused because a row with the same unique key is there.
pub(crate) fn is_unique_violation(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|said| said.is_unique_violation())
}

/// What cannot be read, and where.
pub(crate) fn corrupt(what: impl std::fmt::Display, error: impl std::fmt::Display) -> StoreError {
    StoreError::Corrupt(format!("{what}: {error}"))
}
