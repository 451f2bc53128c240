//! Identifiers: a prefix that names the resource, an underscore and 24 alphanumeric characters.
//!
//! Ids are opaque to clients and to us: nothing but the prefix is ever looked at.
//! The crate draws no randomness; [`Ids`] turns one number drawn by the caller into as many ids as a decision needs.

use std::borrow::Borrow;
use std::fmt;

use serde::{Deserialize, Serialize};

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// A resource's identifier, told apart from other resources' by its type.
pub trait Identifier: From<String> {
    /// What every id of this kind starts with, underscore included.
    const PREFIX: &'static str;

    /// The id whose body is made from 128 random bits.
    fn from_bits(mut bits: u128) -> Self {
        let mut id = String::with_capacity(Self::PREFIX.len() + 24);
        id.push_str(Self::PREFIX);
        id.push_str("01");
        for _ in 0..22 {
            id.push(ALPHABET[(bits % 62) as usize] as char);
            bits /= 62;
        }
        Self::from(id)
    }
}

macro_rules! identifiers {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl Identifier for $name {
            const PREFIX: &'static str = $prefix;
        }

        impl $name {
            /// The id as clients see it.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<String> for $name {
            fn from(id: String) -> Self {
                Self(id)
            }
        }

        impl From<&str> for $name {
            fn from(id: &str) -> Self {
                Self(id.to_owned())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    )*};
}

identifiers! {
    /// An API key, told by its hash; never the key itself.
    ApiKeyId = "apikey_";
    /// An agent definition.
    AgentId = "agent_";
    /// A file of the Files API.
    FileId = "file_";
    /// An environment that sessions run in.
    EnvironmentId = "env_";
    /// The record of one environment key; never the key itself.
    EnvironmentKeyId = "envkey_";
    /// A session.
    SessionId = "sesn_";
    /// An event of a session, also the `tool_use_id` of a tool call.
    EventId = "sevt_";
    /// A file, or something else, that a session is given.
    ResourceId = "sesrsc_";
    /// A thread of a session; every session has a primary one.
    ThreadId = "sthr_";
    /// An item of the work queue.
    WorkId = "work_";
    /// One start of one server process.
    ReplicaId = "rplc_";
    /// One HTTP request, echoed in the `request-id` header.
    RequestId = "req_";
}

/// Ids drawn beforehand: a finite decision takes what it needs, in an order fixed by the seed.
#[derive(Clone, Debug)]
pub struct Ids {
    state: [u64; 2],
}

impl Ids {
    /// A source whose ids are as unguessable and as unique as `seed`, which the caller draws afresh for each decision.
    pub fn from_seed(seed: u128) -> Self {
        Self { state: [seed as u64, (seed >> 64) as u64] }
    }

    /// The next id of the kind that the caller asks for.
    #[expect(clippy::should_implement_trait, reason = "an iterator has one item type; this yields any kind of id")]
    pub fn next<I: Identifier>(&mut self) -> I {
        I::from_bits(u128::from(self.split(0)) << 64 | u128::from(self.split(1)))
    }

    /// A number from `low` to `high`, both included, for spreading waits.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.split(0) % (high - low + 1)
    }

    /// One step of SplitMix64 on half of the seed: a bijection of the counter, so a source never repeats itself.
    fn split(&mut self, half: usize) -> u64 {
        self.state[half] = self.state[half].wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.state[half];
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_carry_their_prefix_and_do_not_repeat() {
        let mut ids = Ids::from_seed(7);
        let drawn: std::collections::BTreeSet<EventId> = (0..1000).map(|_| ids.next()).collect();
        assert_eq!(drawn.len(), 1000);
        assert!(drawn.iter().all(|id| id.as_str().starts_with("sevt_01") && id.as_str().len() == 29));
    }

    #[test]
    fn the_same_seed_yields_the_same_ids() {
        let first: SessionId = Ids::from_seed(42).next();
        let second: SessionId = Ids::from_seed(42).next();
        assert_eq!(first, second);
    }
}
