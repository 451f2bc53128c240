//! The engine driven through its ports, in virtual time.

mod bells;
mod contract;
mod drains;
mod feeds;
mod ledger;
mod rig;
mod sim;
mod simulation;
mod transcripts;
mod turns;
