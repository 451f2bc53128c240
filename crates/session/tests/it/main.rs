//! The rules of a session as stories, and as properties over random histories.

mod histories;
mod stories;
mod story;
mod workspaces;
