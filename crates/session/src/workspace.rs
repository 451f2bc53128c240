//! What a session's state knows of its files: which folder is the newest, what of it is kept, and what was lost.
//!
//! The files lie with a worker. Each start of a call that may change them, and each restoring, gets the folder a
//! new name, its *tip*; a worker goes on with its own folder only if that has this name. A snapshot is of a tip too, and whatever
//! was begun after it is lost with the worker. What was lost is told to the model with the next result of a tool,
//! here, so that it is told once, whichever worker comes to deliver it.

use serde::{Deserialize, Serialize};

use crate::content::ContentBlock;
use crate::id::EventId;
use crate::manifest::ContentHash;
use crate::time::Timestamp;

/// How every notice of lost files begins. A result without it is what the worker sent.
const NOTICE: &str = "[Notice from the server: the worker that held this session's files was lost. ";

/// A session's files, as far as its log tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workspace {
    /// Names the newest folder: drawn for each call that may change it, and for each restoring that makes one.
    /// `None` for a folder that nothing has changed yet.
    pub tip: Option<EventId>,
    /// The last call that may have changed files.
    pub changed_by: Option<EventId>,
    /// Calls that may have changed files and are not in the last snapshot.
    pub unsaved: u32,
    pub saved: Option<Saved>,
    /// What the model has not been told yet.
    pub lost: Option<Lost>,
}

/// The last snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    pub manifest: ContentHash,
    /// Size of all its files.
    pub bytes: u64,
    pub at: Timestamp,
}

/// Changes that are gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// How many calls made them.
    pub calls: u32,
    /// When the files were kept that the session goes on with; `None` if none ever were.
    pub saved_at: Option<Timestamp>,
}

/// What a worker notes of a folder that it has: which one it is, as the session's log names it.
///
/// A call that may change files gets the folder a new tip, noted before the call is announced, so that a crash at any
/// moment leaves a note that is right.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FolderNote {
    /// `None` for a session's first folder, as long as nothing has changed it.
    pub tip: Option<EventId>,
    /// The next tip, which the log may name already.
    pub next: Option<EventId>,
}

impl FolderNote {
    /// The folder that the log calls `tip`.
    pub fn at(tip: Option<EventId>) -> Self {
        Self { tip, next: None }
    }

    /// Whether the folder is the one that the log calls `tip`.
    pub fn is_of(&self, tip: Option<&EventId>) -> bool {
        self.tip.as_ref() == tip || tip.is_some() && self.next.as_ref() == tip
    }

    /// A call that may change the folder is about to be announced under this tip.
    pub fn starting(&mut self, next: EventId) {
        self.next = Some(next);
    }

    /// The log has the call that was announced last.
    pub fn started(&mut self) {
        if let Some(next) = self.next.take() {
            self.tip = Some(next);
        }
    }
}

impl Workspace {
    /// A call that may change files begins.
    pub(crate) fn change(&mut self, tool_use_id: &EventId, tip: Option<&EventId>) {
        if self.changed_by.as_ref() != Some(tool_use_id) {
            self.tip = Some(tip.unwrap_or(tool_use_id).clone());
            self.changed_by = Some(tool_use_id.clone());
            self.unsaved += 1;
        }
    }

    pub(crate) fn save(&mut self, manifest: &ContentHash, bytes: u64, tip: Option<&EventId>, at: Timestamp) {
        self.saved = Some(Saved { manifest: manifest.clone(), bytes, at });
        self.unsaved = if self.tip.as_ref() == tip { 0 } else { self.unsaved.min(1) };
    }

    /// The folder was made anew from the last snapshot. Without one it is whatever its worker has, as it will be at the
    /// next such move: so the same calls are lost again, or back again, and the model is told again.
    pub(crate) fn restore(&mut self, tip: &EventId) {
        self.tip = Some(tip.clone());
        if self.unsaved == 0 {
            return;
        }
        self.lost = Some(match &self.saved {
            Some(saved) => {
                let before = self.lost.take().map_or(0, |lost| lost.calls);
                Lost { calls: before + std::mem::take(&mut self.unsaved), saved_at: Some(saved.at) }
            }
            None => Lost { calls: self.unsaved, saved_at: None },
        });
    }

    /// A result that tells of what was lost has been recorded.
    pub(crate) fn hear(&mut self, content: &[ContentBlock]) {
        if content.first().is_some_and(is_notice) {
            self.lost = None;
        }
    }

    /// A worker's result, after what the model has to know first.
    pub(crate) fn with_notice(&self, content: Vec<ContentBlock>) -> Vec<ContentBlock> {
        let mut told: Vec<ContentBlock> = self.lost.iter().map(|lost| ContentBlock::text(notice(lost))).collect();
        told.extend(content);
        told
    }
}

/// A result as its worker sent it, without what the model was told first of files that were lost.
pub fn without_notice(content: &[ContentBlock]) -> &[ContentBlock] {
    match content.split_first() {
        Some((first, rest)) if is_notice(first) => rest,
        _ => content,
    }
}

fn is_notice(block: &ContentBlock) -> bool {
    matches!(block, ContentBlock::Text { text, .. } if text.starts_with(NOTICE))
}

fn notice(lost: &Lost) -> String {
    let Lost { calls, saved_at } = lost;
    let (calls, is) =
        if *calls == 1 { ("the last call".to_owned(), "is") } else { (format!("the last {calls} calls"), "are") };
    let (state, is) = match saved_at {
        Some(at) => (format!("are again as they were at {at}"), is),
        None => ("may be missing, because no state of them was ever saved".to_owned(), "may be"),
    };
    format!(
        "{NOTICE}Its files {state}; what {calls} of bash, write or edit before this one changed {is} lost. Check the \
         files before you rely on them.]"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_right_before_and_after_the_call_is_announced() {
        let (a, b, c): (EventId, EventId, EventId) = ("a".into(), "b".into(), "c".into());
        let mut note = FolderNote::at(Some(a.clone()));
        note.starting(b.clone());
        assert!(note.is_of(Some(&a)) && note.is_of(Some(&b)));
        assert!(!note.is_of(Some(&c)) && !note.is_of(None));
        note.started();
        assert!(note.is_of(Some(&b)) && !note.is_of(Some(&a)));
        let mut first = FolderNote::default();
        first.starting(b.clone());
        assert!(first.is_of(None) && first.is_of(Some(&b)) && !first.is_of(Some(&a)));
        assert!(FolderNote::default().is_of(None) && !FolderNote::at(Some(a)).is_of(None));
    }
}
