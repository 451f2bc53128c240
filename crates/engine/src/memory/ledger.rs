//! The ledger in memory.

use async_trait::async_trait;
use session::Timestamp;
use session::id::{ApiKeyId, EventId, SessionId};

use super::store::{MemoryStore, Tables};
use crate::port::ledger::{Amount, DAY_MICROS, KeyUsage, Ledger, LedgerChange};
use crate::port::{AppendError, StoreError};

/// What a request that is under way may use at most.
pub(super) struct Reservation {
    session_id: SessionId,
    api_key_id: ApiKeyId,
    day: i64,
    amount: Amount,
}

impl Tables {
    /// Refuses a reservation that does not fit, before anything is written.
    pub(super) fn check_caps(
        &self,
        key: Option<&ApiKeyId>,
        change: &LedgerChange,
        now: Timestamp,
    ) -> Result<(), AppendError> {
        let (Some(key), LedgerChange::Reserve { amount, caps, .. }) = (key, change) else { return Ok(()) };
        let usage = self.usage(key, day(now));
        Ok(caps.check(usage.settled.plus(usage.reserved), *amount)?)
    }

    /// Does what an append that took place asks.
    pub(super) fn change_ledger(
        &mut self,
        session_id: &SessionId,
        key: Option<&ApiKeyId>,
        change: LedgerChange,
        now: Timestamp,
    ) {
        match (change, key) {
            (LedgerChange::Reserve { request_id, amount, .. }, Some(key)) => {
                self.settle_session(session_id);
                let (session_id, api_key_id) = (session_id.clone(), key.clone());
                let reservation = Reservation { session_id, api_key_id, day: day(now), amount };
                self.reservations.insert(request_id, reservation);
            }
            (LedgerChange::Settle { request_id, spent }, _) => self.settle(&request_id, spent),
            (LedgerChange::Reserve { .. }, None) | (LedgerChange::None, _) => {}
        }
    }

    /// Settles in full whatever the session has open.
    pub(super) fn settle_session(&mut self, session_id: &SessionId) {
        let theirs = self.reservations.iter().filter(|(_, reservation)| reservation.session_id == *session_id);
        let open: Vec<EventId> = theirs.map(|(id, _)| id.clone()).collect();
        open.iter().for_each(|request_id| self.settle(request_id, None));
    }

    fn settle(&mut self, request_id: &EventId, spent: Option<Amount>) {
        let Some(Reservation { api_key_id, day, amount, .. }) = self.reservations.remove(request_id) else { return };
        let (settled, estimated) = self.key_usage.entry((api_key_id, day)).or_default();
        *settled = settled.plus(spent.unwrap_or(amount));
        if spent.is_none() {
            *estimated = estimated.plus(amount);
        }
    }

    fn usage(&self, key: &ApiKeyId, day: i64) -> KeyUsage {
        let (settled, estimated) = self.key_usage.get(&(key.clone(), day)).copied().unwrap_or_default();
        let mut usage = KeyUsage { settled, estimated, ..KeyUsage::default() };
        for open in self.reservations.values().filter(|open| open.api_key_id == *key && open.day == day) {
            usage.reserved = usage.reserved.plus(open.amount);
            usage.open_requests += 1;
        }
        usage
    }
}

fn day(now: Timestamp) -> i64 {
    now.as_micros().div_euclid(DAY_MICROS)
}

#[async_trait]
impl Ledger for MemoryStore {
    async fn key_usage(&self, key: &ApiKeyId) -> Result<KeyUsage, StoreError> {
        let now = self.now();
        Ok(self.tables().usage(key, day(now)))
    }
}
