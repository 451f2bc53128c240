//! The owner's appends: decided on what was folded, fenced by the claim, tried until the store has answered.

use std::sync::Arc;

use session::event::Event;
use session::id::EventId;
use session::{Command, Decision, Limits, Record, Refusal, Timestamp, Work, decide, due};

use super::{Driver, Retry, Stop};
use crate::observer::{Basis, HandOver, observe_turns};
use crate::port::{
    Amount, Append, AppendError, Appended, Fence, Frame, LedgerChange, OverCap, StoreError, StoredRecord, Wake,
    WorkChange,
};
use crate::sessions::consequences;
use crate::sessions::stored_records;

/// A context larger than this share of its model's window is summarised before the next request.
const CONTEXT_PERCENT_MAX: u64 = 80;

/// Conflicts after which the owner queues with those who post to its session.
const GATE_AFTER: u32 = 2;

/// What became of one try to append.
enum Committed {
    Yes,
    /// It took place, and let the session go.
    Released,
    /// It has to be decided again.
    No,
    /// The reservation of the model request does not fit.
    OverCap(OverCap),
}

impl Driver {
    /// Appends what `command` decides, unless the log has overtaken it. Returns the spans that were tried: one of
    /// them may be open even when the append was found overtaken, because its answer was lost.
    pub(super) async fn append(&mut self, command: Command) -> Result<Vec<EventId>, Stop> {
        self.append_settling(command, None).await
    }

    /// The same; `spent` is what the model request used that the command ends, where that is known.
    pub(super) async fn append_settling(
        &mut self,
        mut command: Command,
        spent: Option<Amount>,
    ) -> Result<Vec<EventId>, Stop> {
        let mut tried = Vec::new();
        let mut retry = Retry::default();
        let mut conflicts = 0;
        let mut _passage = None;
        loop {
            let now = self.shared.world.clock.now();
            let mut ids = self.shared.world.ids();
            let decision = match decide(Some(&self.state), command.clone(), &self.limits(), now, &mut ids) {
                Ok(decision) => decision,
                Err(Refusal::Overtaken | Refusal::Gone(_)) => return Ok(tried),
                Err(refusal) => return Err(Stop::Broken(format!("an owner's command was refused: {refusal}"))),
            };
            if decision.records.is_empty() {
                return Ok(tried);
            }
            tried.extend(decision.records.iter().filter_map(|record| match &record.event {
                Event::ModelRequestStart { id, .. } => Some(id.clone()),
                _ => None,
            }));
            let work = consequences::work_change(&command, Some(&self.state), &decision.state, &mut ids);
            let wake = match due(&decision.state, now).first() {
                None => Wake::Release { wake_at: None },
                Some(Work::Resume { at }) if *at > now => Wake::Release { wake_at: Some(*at) },
                Some(_) => Wake::Keep,
            };
            let ledger = self.ledger_change(&decision.records, spent);
            match self.commit(decision, wake, work, ledger, &mut retry).await? {
                Committed::Yes => return Ok(tried),
                Committed::Released => return Err(Stop::Released),
                Committed::No => {
                    conflicts += 1;
                    if conflicts == GATE_AFTER {
                        // What was appended meanwhile would make the next try a conflict as well.
                        _passage = Some(self.shared.world.gates.pass(&self.claim.session_id).await);
                        self.catch_up().await?;
                    }
                }
                Committed::OverCap(over) => {
                    self.tell_of_cap(&over);
                    command = Command::RefuseModelRequest { message: over.to_string() };
                }
            }
        }
    }

    /// The operator's limits, with the context held to a share of what the session's model can take.
    fn limits(&self) -> Limits {
        let world = &self.shared.world;
        let mut limits = world.limits;
        let window = self.agent().and_then(|agent| world.model.context_window_tokens(&agent.model.id));
        if let Some(window) = window {
            limits.compact_at_tokens = limits.compact_at_tokens.min(window * CONTEXT_PERCENT_MAX / 100);
        }
        limits
    }

    /// Makes sure that the calls at hand have a work item.
    pub(super) async fn ensure_item(&mut self) -> Result<(), Stop> {
        let work = WorkChange::Ensure { work_id: self.shared.world.ids().next() };
        self.commit(self.nothing(), Wake::Keep, work, LedgerChange::None, &mut Retry::default()).await?;
        Ok(())
    }

    /// Lets the session go; `wake_at` is when something will be due, if that is known.
    pub(super) async fn release(&mut self, wake_at: Option<Timestamp>) -> Stop {
        let (wake, retry) = (Wake::Release { wake_at }, &mut Retry::default());
        match self.commit(self.nothing(), wake, WorkChange::None, LedgerChange::None, retry).await {
            Ok(Committed::Yes | Committed::Released) => Stop::Released,
            // The session moved: it has to be looked at again, by anybody.
            Ok(Committed::No | Committed::OverCap(_)) => self.hand_over().await,
            Err(stop) => stop,
        }
    }

    /// Gives the session to whoever claims it next.
    pub(super) async fn hand_over(&mut self) -> Stop {
        let mut retry = Retry::default();
        let handed_over = self.shared.draining.is_cancelled() && self.state.turn.is_some();
        while let Err(error) = self.shared.world.leases.release(&self.claim, handed_over).await {
            tracing::debug!(session_id = %self.claim.session_id, %error, "a claim could not be released");
            if let Err(stop) = retry.pause(&self.shared).await {
                return stop;
            }
        }
        self.shared.world.bell.ring(Frame::Claimable);
        if handed_over {
            self.shared.observer.handed_over(HandOver::Drain);
        }
        Stop::HandedOver
    }

    fn nothing(&self) -> Decision {
        Decision { records: Vec::new(), state: self.state.clone(), posted: Vec::new() }
    }

    /// One try.
    async fn commit(
        &mut self,
        decision: Decision,
        wake: Wake,
        work: WorkChange,
        ledger: LedgerChange,
        retry: &mut Retry,
    ) -> Result<Committed, Stop> {
        let Decision { records, state, .. } = decision;
        let released = matches!(wake, Wake::Release { .. });
        let ensures = matches!(work, WorkChange::Ensure { .. });
        let fence = Fence::Owner(self.claim.clone());
        let append = Append {
            records: records.clone(),
            state: state.clone(),
            fence,
            wake,
            work,
            kept: None,
            running_max: None,
            ledger: ledger.clone(),
            resources: Vec::new(),
        };
        let appended = match self.shared.world.log.append(append).await {
            Ok(appended) => appended,
            Err(AppendError::Conflict) => {
                self.catch_up().await?;
                return Ok(Committed::No);
            }
            Err(AppendError::OverCap(over)) => return Ok(Committed::OverCap(over)),
            Err(AppendError::Fenced | AppendError::TokenEnded) => return Err(Stop::Fenced),
            Err(error @ (AppendError::KeyUsed(_) | AppendError::TooManyRunning(_))) => {
                return Err(Stop::Broken(format!("an owner's append: {error}")));
            }
            Err(AppendError::Store(StoreError::Corrupt(what))) => return Err(Stop::Broken(what)),
            Err(AppendError::Store(StoreError::Unavailable(what))) => {
                tracing::debug!(session_id = %self.claim.session_id, what, "an append has no answer");
                retry.pause(&self.shared).await?;
                return Ok(Committed::No);
            }
        };
        let transcript = self.transcript.as_ref();
        let waiting = |position| transcript.and_then(|transcript| transcript.waiting(position).cloned());
        let (stored, complete) = stored_records(records, waiting);
        observe_turns(&*self.shared.observer, Some(&self.state), &state, &stored);
        self.state = state;
        self.item_ensured |= ensures;
        if complete {
            stored.iter().for_each(|stored| self.take_in(stored));
        }
        self.tell(appended, stored, complete);
        if let LedgerChange::Settle { spent, .. } = ledger {
            self.shared.observer.request_settled(match spent {
                None => Basis::Estimate,
                Some(Amount { tokens: 0, .. }) => Basis::Nothing,
                Some(_) => Basis::Usage,
            });
        }
        Ok(if released { Committed::Released } else { Committed::Yes })
    }

    /// What an append that begins or ends a model request does to the ledger of the session's API key.
    fn ledger_change(&self, records: &[Record], spent: Option<Amount>) -> LedgerChange {
        let caps = self.shared.world.key_limits.caps;
        if !caps.is_set() {
            return LedgerChange::None;
        }
        let change = records.iter().find_map(|record| match &record.event {
            Event::ModelRequestStart { id, .. } => {
                Some(LedgerChange::Reserve { request_id: id.clone(), amount: self.reservation(), caps })
            }
            Event::ModelRequestEnd { model_request_start_id: id, .. } => {
                Some(LedgerChange::Settle { request_id: id.clone(), spent })
            }
            _ => None,
        });
        change.unwrap_or_default()
    }

    fn tell_of_cap(&self, over: &OverCap) {
        let OverCap { cap, limit, used, wanted } = *over;
        let session_id = &self.claim.session_id;
        tracing::warn!(%session_id, setting = cap.setting(), limit, used, wanted, "a model request is over its key's cap");
        self.shared.observer.cap_refused(cap);
    }

    /// Rings for what was appended.
    fn tell(&self, appended: Appended, stored: Arc<[StoredRecord]>, complete: bool) {
        let bell = &self.shared.world.bell;
        if !stored.is_empty() {
            bell.ring(Frame::Appended {
                session_id: self.state.session_id.clone(),
                position: self.state.position,
                records: complete.then_some(stored),
            });
        }
        if appended.queued {
            bell.ring(Frame::WorkQueued);
        }
    }
}
