//! A session's files as a snapshot: read from its workspace, and made from it again on another worker.
//!
//! [`scan`] reads and [`restore`] makes; [`place`] is where a worker notes what it has. `session::manifest` says what a
//! snapshot is, and `queue::files` when one is taken.

pub(crate) mod place;
pub(crate) mod restore;
pub(crate) mod scan;

#[cfg(test)]
mod tree_tests;
