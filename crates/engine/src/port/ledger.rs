//! The ledger: what each API key has used today, and what its model requests under way may still use.
//!
//! Before a model request, in the transaction of its intent, the most that it may use is *reserved*. In the
//! transaction of its outcome the reservation is *settled*: at what was used where that is known, and in full, marked
//! as estimated, where it is not. A reservation is a row that its settlement takes away, so that none is settled twice;
//! whoever records the end of a request settles it, the taker of a lost session included, so that none is forgotten.
//! Days are those of UTC by the store's clock, and a reservation counts towards the day on which it was made.
//!
//! The ledger is kept only while a key is capped. A reservation that a change of the settings has left behind is
//! settled in full by the session's next one, or with the session.

use std::fmt;

use async_trait::async_trait;
use session::event::ModelUsage;
use session::id::{ApiKeyId, EventId};

use super::StoreError;

/// Microseconds of a day.
pub const DAY_MICROS: i64 = 86_400_000_000;

/// For how many days the ledger is kept.
pub const LEDGER_DAYS: i64 = 35;

/// The limits of every API key. `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyLimits {
    /// Sessions that run, which is: are not idle, at the same time.
    pub concurrent_sessions: Option<u32>,
    pub caps: Caps,
}

/// What one API key may use in a day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caps {
    pub tokens_per_day: Option<u64>,
    /// Millionths of a US dollar.
    pub micro_usd_per_day: Option<u64>,
}

/// Which cap it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cap {
    Tokens,
    Spend,
}

/// What was used, or may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Of every kind: input, cached or not, and output.
    pub tokens: u64,
    /// Millionths of a US dollar; 0 for a model without a price.
    pub micro_usd: u64,
}

/// What a model charges, in millionths of a US dollar for a million tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Price {
    pub input: u64,
    pub output: u64,
    pub cache_read: u64,
    pub cache_write: u64,
}

/// What an append does to the ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LedgerChange {
    #[default]
    None,
    /// The intent of the request with this span: reserves, or is refused.
    Reserve { request_id: EventId, amount: Amount, caps: Caps },
    /// The end of the request with this span. Without a reservation nothing changes.
    Settle {
        request_id: EventId,
        /// What it used; `None` where nobody knows, and the reservation counts in full.
        spent: Option<Amount>,
    },
}

/// A reservation that does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverCap {
    pub cap: Cap,
    /// What the key may use in a day, has used or reserved today, and was to reserve.
    pub limit: u64,
    pub used: u64,
    pub wanted: u64,
}

/// The ledger of one key, today.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyUsage {
    /// What settled requests used; `estimated` is the part of it that is.
    pub settled: Amount,
    pub estimated: Amount,
    /// What open reservations hold, and how many there are.
    pub reserved: Amount,
    pub open_requests: u64,
}

/// Reads the ledger, which appends write ([`super::Append::ledger`]).
#[async_trait]
pub trait Ledger: Send + Sync + 'static {
    async fn key_usage(&self, key: &ApiKeyId) -> Result<KeyUsage, StoreError>;
}

impl Caps {
    pub fn is_set(&self) -> bool {
        *self != Self::default()
    }

    /// Refuses `wanted` where it does not fit beside what is used.
    pub fn check(&self, used: Amount, wanted: Amount) -> Result<(), OverCap> {
        let caps = [
            (Cap::Tokens, self.tokens_per_day, used.tokens, wanted.tokens),
            (Cap::Spend, self.micro_usd_per_day, used.micro_usd, wanted.micro_usd),
        ];
        for (cap, limit, used, wanted) in caps {
            if let Some(limit) = limit.filter(|limit| used.saturating_add(wanted) > *limit) {
                return Err(OverCap { cap, limit, used, wanted });
            }
        }
        Ok(())
    }
}

impl Amount {
    /// What this usage comes to.
    pub fn of(usage: &ModelUsage, price: Option<Price>) -> Self {
        let ModelUsage { input_tokens, output_tokens, cache_read_input_tokens, cache_creation_input_tokens } = *usage;
        let counts = [input_tokens, output_tokens, cache_read_input_tokens, cache_creation_input_tokens];
        let tokens = counts.into_iter().fold(0, u64::saturating_add);
        let Price { input, output, cache_read, cache_write } = price.unwrap_or_default();
        let charged = counts.into_iter().zip([input, output, cache_read, cache_write]);
        let charged: u128 = charged.map(|(tokens, price)| u128::from(tokens) * u128::from(price)).sum();
        Self { tokens, micro_usd: u64::try_from(charged.div_ceil(1_000_000)).unwrap_or(u64::MAX) }
    }

    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            tokens: self.tokens.saturating_add(other.tokens),
            micro_usd: self.micro_usd.saturating_add(other.micro_usd),
        }
    }
}

impl Price {
    /// The dearer of two prices of each kind.
    #[must_use]
    pub fn or_dearer(self, other: Self) -> Self {
        Self {
            input: self.input.max(other.input),
            output: self.output.max(other.output),
            cache_read: self.cache_read.max(other.cache_read),
            cache_write: self.cache_write.max(other.cache_write),
        }
    }
}

impl Cap {
    /// What the settings call it.
    pub fn setting(self) -> &'static str {
        match self {
            Self::Tokens => "limits.tokens_per_day",
            Self::Spend => "limits.usd_per_day",
        }
    }

    fn show(self, number: u64) -> String {
        match self {
            Self::Tokens => format!("{number} tokens"),
            Self::Spend => format!("${}.{:06}", number / 1_000_000, number % 1_000_000),
        }
    }
}

/// For the client: what was refused, why, and what to do.
impl fmt::Display for OverCap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cap, limit, used, wanted } = *self;
        write!(
            f,
            "the session's API key may use {} a day ({} of the server), has used or reserved {} today, and this \
             request may need {}: send a message again after 00:00 UTC, or have the limit raised",
            cap.show(limit),
            cap.setting(),
            cap.show(used),
            cap.show(wanted)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_is_rounded_up() {
        let usage = ModelUsage {
            input_tokens: 1,
            output_tokens: 2,
            cache_read_input_tokens: 3,
            cache_creation_input_tokens: 4,
        };
        let price = Price { input: 3_000_000, output: 15_000_000, cache_read: 300_000, cache_write: 3_750_000 };
        assert_eq!(Amount::of(&usage, None), Amount { tokens: 10, micro_usd: 0 });
        assert_eq!(Amount::of(&usage, Some(price)), Amount { tokens: 10, micro_usd: 49 });
        let huge = ModelUsage { input_tokens: u64::MAX, ..usage };
        assert_eq!(Amount::of(&huge, Some(price)), Amount { tokens: u64::MAX, micro_usd: u64::MAX });
    }

    #[test]
    fn a_cap_is_met_exactly() {
        let caps = Caps { tokens_per_day: Some(100), micro_usd_per_day: Some(2_500_000) };
        let amount = |tokens, micro_usd| Amount { tokens, micro_usd };
        assert_eq!(caps.check(amount(60, 0), amount(40, 2_500_000)), Ok(()));
        let over = caps.check(amount(60, 0), amount(41, 0)).unwrap_err();
        assert_eq!(over, OverCap { cap: Cap::Tokens, limit: 100, used: 60, wanted: 41 });
        let over = caps.check(amount(0, 2_500_000), amount(0, 1)).unwrap_err();
        assert_eq!(
            over.to_string(),
            "the session's API key may use $2.500000 a day (limits.usd_per_day of the server), has used or reserved \
             $2.500000 today, and this request may need $0.000001: send a message again after 00:00 UTC, or have the \
             limit raised"
        );
        assert_eq!(Caps::default().check(amount(u64::MAX, 0), amount(u64::MAX, 0)), Ok(()));
    }
}
