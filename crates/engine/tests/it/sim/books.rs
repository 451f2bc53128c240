//! The books: what really was reserved and settled, held against the histories and the store's ledger.

use std::collections::BTreeMap;

use engine::port::ledger::{Amount, KeyUsage, Ledger, LedgerChange};
use session::event::ModelUsage;
use session::id::EventId;
use session::{Event, Record, State};

use super::Shared;
use super::actors::PRICE;

/// Every change of the ledger that took place.
#[derive(Default)]
pub(crate) struct Books {
    reserved: BTreeMap<EventId, Amount>,
    settled: BTreeMap<EventId, Option<Amount>>,
    violations: Vec<String>,
}

/// What the histories say of the requests of all sessions.
#[derive(Default)]
pub(crate) struct Requests {
    /// Every request that was begun.
    begun: Vec<EventId>,
    /// Those that ended: whether without an answer, and what they used as far as the session was told.
    ended: BTreeMap<EventId, (bool, ModelUsage)>,
    /// Those that are open.
    open: Vec<EventId>,
}

impl Requests {
    pub(crate) fn take_in(&mut self, record: &Record) {
        match &record.event {
            Event::ModelRequestStart { id, .. } => self.begun.push(id.clone()),
            Event::ModelRequestEnd { model_request_start_id: id, is_error, model_usage, .. } => {
                self.ended.insert(id.clone(), (*is_error, *model_usage));
            }
            _ => {}
        }
    }

    pub(crate) fn take_in_state(&mut self, state: &State) {
        let request = state.turn.as_ref().and_then(|turn| turn.request.as_ref());
        self.open.extend(request.map(|request| request.span_id.clone()));
    }
}

impl Books {
    pub(crate) fn take_in(&mut self, change: LedgerChange) {
        let (request_id, is_first) = match change {
            LedgerChange::None => return,
            LedgerChange::Reserve { request_id, amount, caps } => {
                if let Err(over) = caps.check(self.used(), amount) {
                    self.violations.push(format!("{request_id}: {over}"));
                }
                (request_id.clone(), self.reserved.insert(request_id, amount).is_none())
            }
            LedgerChange::Settle { request_id, spent } => {
                let is_first = self.settled.insert(request_id.clone(), spent).is_none();
                (request_id.clone(), is_first && self.reserved.contains_key(&request_id))
            }
        };
        if !is_first {
            self.violations.push(format!("{request_id}: the ledger was changed twice, or out of order"));
        }
    }

    /// What is used and reserved now.
    fn used(&self) -> Amount {
        let counts = |(id, reserved): (&EventId, &Amount)| match self.settled.get(id) {
            Some(Some(spent)) => *spent,
            Some(None) | None => *reserved,
        };
        self.reserved.iter().map(counts).fold(Amount::default(), Amount::plus)
    }

    /// Every request is reserved once and settled once, at what its history says; the ledger is the sum, and what is
    /// open is what is under way.
    pub(crate) async fn judge(mut self, requests: &Requests, shared: &Shared, free_failures: u32) -> Vec<String> {
        let caps = shared.weather.key_limits.caps;
        let ledger = shared.store.key_usage(&"apikey_01".into()).await.expect("the store in memory answers");
        if !caps.is_set() {
            if ledger != KeyUsage::default() || !self.reserved.is_empty() || !self.settled.is_empty() {
                self.violations.push(format!("nobody is capped, and the ledger has {ledger:?}"));
            }
            return self.violations;
        }
        let mut expected = KeyUsage::default();
        let mut free = 0;
        for id in &requests.begun {
            let Some(reserved) = self.reserved.get(id).copied() else {
                self.violations.push(format!("{id} was begun without a reservation"));
                continue;
            };
            let (Some((failed, usage)), Some(spent)) = (requests.ended.get(id), self.settled.get(id)) else {
                let is_open = requests.open.contains(id) && !self.settled.contains_key(id);
                if !is_open {
                    self.violations.push(format!("{id} has ended and is not settled, or the other way round"));
                }
                expected.reserved = expected.reserved.plus(reserved);
                expected.open_requests += 1;
                continue;
            };
            let used = Amount::of(usage, Some(PRICE));
            match spent {
                Some(spent) if *spent != Amount::default() && *spent == used => {}
                Some(spent) if *spent == Amount::default() && *failed => free += 1,
                None if *failed => expected.estimated = expected.estimated.plus(reserved),
                _ => self.violations.push(format!("{id} used {used:?} and was settled at {spent:?}")),
            }
            expected.settled = expected.settled.plus(spent.unwrap_or(reserved));
        }
        if self.reserved.len() != requests.begun.len() {
            self.violations.push("there are reservations of requests that were never begun".to_owned());
        }
        if ledger != expected {
            self.violations.push(format!("the ledger has {ledger:?}, and its requests come to {expected:?}"));
        }
        if free > free_failures {
            self.violations.push(format!("{free} requests cost nothing, and the provider refused {free_failures}"));
        }
        self.violations
    }
}
