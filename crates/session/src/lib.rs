//! The rules of a session, and nothing else: no async, no clock, no randomness, no file, no socket.
//!
//! A session is the fold of its log. Four verbs say everything about it:
//!
//! - [`decide`]: what a [`Command`] does to a [`State`], as records to append, or why it is refused;
//! - [`apply`]: how a record changes the state; it never fails, because the log already happened;
//! - [`due`]: what the world owes the session now, from state alone, so that recovery is the ordinary path;
//! - [`view`]: what clients see.
//!
//! Time and ids come in as arguments. Who performs what is due is the business of the crate `engine`.

mod apply;
mod decide;
mod due;
mod workspace;

pub mod agent;
pub mod command;
pub mod content;
pub mod event;
pub mod id;
pub mod manifest;
pub mod state;
pub mod time;
pub mod toolset;
pub mod view;

pub use apply::{apply, fold};
pub use command::{ClientEvent, Command, Poster};
pub use decide::{Decision, Limits, Refusal, decide};
pub use due::{Work, due};
pub use event::{Event, Form, Record};
pub use id::{Identifier, Ids};
pub use state::State;
pub use time::Timestamp;
pub use workspace::{FolderNote, Workspace, without_notice};
