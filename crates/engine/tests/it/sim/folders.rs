//! What must hold of a session's files: a call finds what the calls before it left, or the model is told that files were
//! lost before it is told anything else.

use std::collections::{BTreeMap, BTreeSet};

use engine::port::StoredRecord;
use session::content::ContentBlock;
use session::manifest::ContentHash;
use session::{Event, without_notice};

use super::files::Look;

/// The marks of the calls whose changes a folder holds.
type Marks = BTreeSet<String>;

/// Follows a session's files through its history, and the looks that calls took at them.
pub(crate) fn judge(
    records: &[StoredRecord],
    looks: &[&Look],
    snapshots: &BTreeMap<ContentHash, Marks>,
) -> Vec<String> {
    let mut folder = Folder::new(snapshots);
    let mut looks: Vec<&Look> = looks.to_vec();
    looks.sort_by_key(|look| look.position);
    let mut looks = looks.into_iter().peekable();
    for stored in records {
        let position = stored.record.position;
        while let Some(look) = looks.next_if(|look| look.position < position) {
            folder.look(look);
        }
        folder.hear(position, &stored.record.event);
    }
    looks.for_each(|look| folder.look(look));
    folder.violations
}

/// What is known of the newest folder.
struct Folder<'s> {
    snapshots: &'s BTreeMap<ContentHash, Marks>,
    /// What must be there.
    holds: Marks,
    /// What may be there: marks of calls of which nobody knows how far they came.
    may_hold: Marks,
    /// Every mark that was ever seen.
    ever: Marks,
    /// What is there as far as the model knows, by the result that it was given last.
    known: Marks,
    /// What the call that was begun last saw.
    seen: Marks,
    /// The files were made anew, and no notice came since.
    is_restored: bool,
    violations: Vec<String>,
}

impl<'s> Folder<'s> {
    fn new(snapshots: &'s BTreeMap<ContentHash, Marks>) -> Self {
        Self {
            snapshots,
            holds: Marks::new(),
            may_hold: Marks::new(),
            ever: Marks::new(),
            known: Marks::new(),
            seen: Marks::new(),
            is_restored: false,
            violations: Vec::new(),
        }
    }

    fn look(&mut self, look: &Look) {
        self.is_as_known(&look.saw, &format!("the call announced at {}", look.position));
        self.seen = look.saw.clone();
        self.holds = look.saw.clone();
        self.may_hold = look.mark.iter().cloned().collect();
        self.ever.extend(look.mark.clone());
    }

    fn is_as_known(&mut self, found: &Marks, who: &str) {
        let gone: Vec<&String> = self.holds.difference(found).collect();
        if !gone.is_empty() {
            self.violations.push(format!("{who} misses {gone:?}"));
        }
        let foreign: Vec<&String> =
            found.iter().filter(|mark| !self.holds.contains(*mark) && !self.may_hold.contains(*mark)).collect();
        if !foreign.is_empty() {
            self.violations.push(format!("{who} has {foreign:?}, which are not of this folder"));
        }
    }

    fn hear(&mut self, position: u64, event: &Event) {
        match event {
            Event::WorkspaceSaved { manifest, .. } => {
                let saved = self.snapshots.get(manifest).cloned().unwrap_or_default();
                self.is_as_known(&saved, &format!("the snapshot at {position}"));
                self.holds = saved;
                self.may_hold.clear();
            }
            Event::WorkspaceRestored { manifest, .. } => {
                self.is_restored = true;
                match manifest {
                    Some(manifest) => {
                        self.holds = self.snapshots.get(manifest).cloned().unwrap_or_default();
                        self.may_hold.clear();
                    }
                    // Nothing was ever kept: the worker goes on with whatever it has.
                    None => {
                        self.may_hold = self.ever.clone();
                        self.holds.clear();
                    }
                }
            }
            Event::AgentToolResult { content, .. } => self.hear_result(position, content),
            _ => {}
        }
    }

    fn hear_result(&mut self, position: u64, content: &[ContentBlock]) {
        let sent = without_notice(content);
        let mark = sent.first().and_then(ContentBlock::as_text).unwrap_or_default();
        if !mark.starts_with("worker-") {
            return;
        }
        if sent.len() < content.len() {
            if !self.is_restored {
                self.violations.push(format!("the result at {position} tells of a loss that was none"));
            }
            self.is_restored = false;
        } else if !self.known.is_subset(&self.seen) {
            self.violations.push(format!("the result at {position} does not tell that files were lost"));
        }
        self.known = std::mem::take(&mut self.seen);
        if self.may_hold.remove(mark) {
            self.holds.insert(mark.to_owned());
            self.known.insert(mark.to_owned());
        }
    }
}
