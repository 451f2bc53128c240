//! The engine driven through its ports, in virtual time.

mod contract;
mod rig;
mod sim;
mod simulation;
mod turns;
