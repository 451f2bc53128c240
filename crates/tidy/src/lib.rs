//! Nothing is built from this crate: its tests hold the architecture of the workspace.
//!
//! `tests/it/edges.rs` reads `cargo metadata` and checks who may depend on whom; `tests/it/sources.rs` reads the
//! sources and checks what every module owes its reader. The map that they hold is in `ARCHITECTURE.md`.
