//! Commands of workers about the session's files.

use super::{Draft, Refusal};
use crate::event::Event;
use crate::id::EventId;
use crate::manifest::ContentHash;

impl Draft<'_> {
    /// Takes a snapshot that holds everything that was changed until now, and no other: whoever keeps files says what
    /// named them, and a call that was begun since then makes them old.
    pub(super) fn save_workspace(
        &mut self,
        manifest: ContentHash,
        bytes: u64,
        tip: Option<EventId>,
    ) -> Result<(), Refusal> {
        let workspace = &self.state.workspace;
        if workspace.tip != tip {
            return Err(Refusal::conflict("a call has changed the files since they were read; read them again"));
        }
        let saved = workspace.saved.as_ref();
        if saved.is_some_and(|saved| saved.manifest == manifest) && workspace.unsaved == 0 {
            return Ok(());
        }
        let tool_use_id = workspace.changed_by.clone();
        self.emit(Event::WorkspaceSaved { manifest, bytes, tip, tool_use_id });
        Ok(())
    }

    pub(super) fn restore_workspace(
        &mut self,
        manifest: Option<ContentHash>,
        tip: Option<EventId>,
    ) -> Result<(), Refusal> {
        let workspace = &self.state.workspace;
        if workspace.tip != tip || workspace.saved.as_ref().map(|saved| &saved.manifest) != manifest.as_ref() {
            return Err(Refusal::conflict("the session has other files by now; look again"));
        }
        let tip = self.id();
        self.emit(Event::WorkspaceRestored { tip, manifest });
        Ok(())
    }
}
