//! What passes between a session's sandbox and the Files API: [`uploads`] are mounted in it, read-only, and [`outputs`]
//! come out of it. `queue::exchange` moves their content.

pub(crate) mod outputs;
pub(crate) mod uploads;
