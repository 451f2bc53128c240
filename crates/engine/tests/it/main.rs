//! The engine driven through its ports, in virtual time.

mod rig;
mod sim;
mod simulation;
mod turns;
