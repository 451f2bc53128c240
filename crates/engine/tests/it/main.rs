//! The engine driven through its ports, in virtual time.

mod rig;
mod turns;
