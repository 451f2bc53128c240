//! Drives sessions: loads, folds, asks what is due, records the intent, performs it, appends the outcome.
//!
//! The rules are the crate `session`'s; the world is behind [`port`].

pub mod port;
