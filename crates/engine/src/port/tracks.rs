//! Two releases side by side: which sessions belong to the canary.
//!
//! A session's place is a hash of its id, so it is the same on every replica and in the proxy: nginx's
//! `split_clients` over the id in the path cuts the same 32-bit MurmurHash2 into the same ranges, the canary's first.
//! Raising the weight moves sessions to the canary and none back. Only claims are ruled by it: any replica serves
//! any session, and a turn that runs is never moved.
//!
//! A store of one process has one release, and does not implement [`Tracks`].

use async_trait::async_trait;
use session::id::SessionId;

use super::StoreError;

/// A track of which no replica has lived for this long leaves its sessions to anybody, in milliseconds.
pub const TRACK_ABANDONED_MS: i64 = 10_000;

/// Which release a replica runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Track {
    #[default]
    Stable,
    Canary,
}

impl Track {
    /// The word for it in settings, tables, labels and log lines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stable => "stable",
            Self::Canary => "canary",
        }
    }

    /// The track that a session belongs to under this weight.
    pub fn of(session_id: &SessionId, canary_weight: CanaryWeight) -> Self {
        if split_hash(session_id) < canary_weight.hashes_below() { Self::Canary } else { Self::Stable }
    }
}

/// The share of sessions that the canary drives, in hundredths of a percent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct CanaryWeight(u16);

impl CanaryWeight {
    /// Everything.
    pub const ALL: Self = Self(10_000);

    /// So many hundredths of a percent; `None` above 100 %.
    pub fn from_hundredths(hundredths: u16) -> Option<Self> {
        (hundredths <= Self::ALL.0).then_some(Self(hundredths))
    }

    /// In hundredths of a percent.
    pub const fn hundredths(self) -> u16 {
        self.0
    }

    /// The first hash that is not the canary's, rounded as nginx does. So one hash in 2³² stays stable at 100 %.
    pub fn hashes_below(self) -> u32 {
        let below = u64::from(self.0) * u64::from(u32::MAX) / u64::from(Self::ALL.0);
        u32::try_from(below).unwrap_or(u32::MAX)
    }
}

/// A weight, numbered by who sets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RolloutWeight {
    /// Raised with every change; the highest one is in force.
    pub epoch: u64,
    pub canary_weight: CanaryWeight,
}

/// The weight that claims obey.
#[async_trait]
pub trait Tracks: Send + Sync + 'static {
    /// The weight in force; without one, everything is stable.
    async fn rollout_weight(&self) -> Result<Option<RolloutWeight>, StoreError>;

    /// Puts a weight in force; false if one of the same epoch or a later one is there already.
    async fn set_rollout_weight(&self, weight: RolloutWeight) -> Result<bool, StoreError>;
}

/// The 32-bit MurmurHash2 of a session's id with seed 0, as `ngx_murmur_hash2` has it.
pub fn split_hash(session_id: &SessionId) -> u32 {
    const MULTIPLIER: u32 = 0x5bd1_e995;
    let bytes = session_id.as_str().as_bytes();
    // The seed takes up the length, of which nginx too keeps 32 bits.
    let mut hash = bytes.len() as u32;
    let mut words = bytes.chunks_exact(4);
    for word in words.by_ref() {
        let mut mixed = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(MULTIPLIER);
        mixed ^= mixed >> 24;
        hash = hash.wrapping_mul(MULTIPLIER) ^ mixed.wrapping_mul(MULTIPLIER);
    }
    let rest = words.remainder();
    for (index, byte) in rest.iter().enumerate() {
        hash ^= u32::from(*byte) << (8 * index);
    }
    if !rest.is_empty() {
        hash = hash.wrapping_mul(MULTIPLIER);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(MULTIPLIER);
    hash ^ hash >> 15
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rising_weight_moves_sessions_to_the_canary_and_none_back() {
        let ids: Vec<SessionId> = (0..1_000).map(|number| format!("sesn_01{number:022}").into()).collect();
        let mut before = 0;
        for hundredths in [0, 1_000, 2_500, 5_000, 7_500, 10_000] {
            let weight = CanaryWeight::from_hundredths(hundredths).expect("it is a share");
            let canary = ids.iter().filter(|id| Track::of(id, weight) == Track::Canary).count();
            assert!(canary >= before && canary.abs_diff(usize::from(hundredths) / 10) < 50, "{hundredths}: {canary}");
            before = canary;
        }
        assert_eq!(before, ids.len());
        assert_eq!(CanaryWeight::from_hundredths(10_001), None);
    }
}
