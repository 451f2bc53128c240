//! The machine's clock and randomness, behind the engine's ports.

use engine::port::{Clock, Entropy};
use session::Timestamp;

/// The clock of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        now()
    }
}

/// What the machine's clock says.
#[expect(clippy::disallowed_methods, reason = "this is the adapter behind the port Clock")]
pub fn now() -> Timestamp {
    Timestamp::from_micros(jiff::Timestamp::now().as_microsecond())
}

/// The operating system's randomness, through a generator of each thread that it seeds.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    #[expect(clippy::disallowed_methods, reason = "this is the adapter behind the port Entropy")]
    fn draw(&self) -> u128 {
        rand::random()
    }
}

/// A secret of 256 random bits after `prefix`.
pub fn draw_key(prefix: &str) -> String {
    use base64::Engine as _;
    let mut bits = [0; 32];
    bits[..16].copy_from_slice(&SystemEntropy.draw().to_be_bytes());
    bits[16..].copy_from_slice(&SystemEntropy.draw().to_be_bytes());
    format!("{prefix}{}", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_and_carry_their_prefix() {
        let (one, other) = (draw_key("sk-"), draw_key("sk-"));
        assert!(one.starts_with("sk-") && one.len() == 46 && one != other);
    }
}
