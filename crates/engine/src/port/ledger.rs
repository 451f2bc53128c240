//! What one API key may use.

/// The limits of every API key. `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyLimits {
    /// Sessions that run, which is: are not idle, at the same time.
    pub concurrent_sessions: Option<u32>,
}
