//! Time and randomness, so that a simulation can move and repeat them.
//!
//! Waiting uses tokio's timers, which a paused runtime moves by itself.

use session::Timestamp;

/// Tells what time it is.
pub trait Clock: Send + Sync + 'static {
    fn now(&self) -> Timestamp;
}

/// Draws unguessable numbers.
pub trait Entropy: Send + Sync + 'static {
    fn draw(&self) -> u128;
}
