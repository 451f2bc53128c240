//! What clients do with files: upload them, give them to sessions, take them away, delete them.

use std::sync::Arc;

use engine::port::resources::ResourceError;
use engine::port::{Entropy, File, FileResource};
use session::id::{FileId, Identifier, ResourceId, SessionId};

use super::Shared;
use super::cluster::{Cluster, Node};
use super::counts::Count;
use super::files::file;

/// Contents that uploads have, so that some are equal.
const CONTENTS: u64 = 4;

/// Paths that files are mounted at.
const PATHS: u64 = 3;

/// Does one thing with files, over any server. Nothing is sent twice.
pub(crate) async fn act(shared: &Shared, cluster: &Cluster, session_id: &SessionId) {
    let Some(node) = cluster.any(shared).filter(|_| shared.weather.has_object_store) else { return };
    match shared.dice.below(6) {
        0..=2 => {
            let _ = node.request(upload_and_give(shared, &node, session_id)).await;
        }
        3 => {
            let _ = node.request(give_again(shared, &node, session_id)).await;
        }
        4 => {
            let _ = node.request(take_away(shared, &node, session_id)).await;
        }
        _ => {
            let Some(id) = any_upload(shared) else { return };
            let _ = node.request(node.world.files.delete_files(&[id])).await;
        }
    }
}

async fn upload_and_give(shared: &Shared, node: &Arc<Node>, session_id: &SessionId) -> Option<()> {
    let content = format!("upload {}", shared.dice.below(CONTENTS));
    let blobs = node.world.blobs.as_ref().expect("there is an object store");
    let hash = blobs.put(content.into_bytes()).await.ok()?;
    let original = file(FileId::from_bits(shared.dice.draw()), node.world.clock.now(), hash, None);
    node.world.files.create_file(&original, None).await.ok()?;
    shared.note(|notes| notes.uploads.push(original.id.clone()));
    give(shared, node, session_id, original).await
}

async fn give_again(shared: &Shared, node: &Arc<Node>, session_id: &SessionId) -> Option<()> {
    let id = any_upload(shared)?;
    let original = node.world.files.files(&[id]).await.ok()?.pop()?;
    give(shared, node, session_id, original).await
}

/// Gives the session a copy.
async fn give(shared: &Shared, node: &Arc<Node>, session_id: &SessionId, original: File) -> Option<()> {
    let id = FileId::from_bits(shared.dice.draw());
    let copy = File { id, created_at: node.world.clock.now(), session_id: Some(session_id.clone()), ..original };
    let id = ResourceId::from_bits(shared.dice.draw());
    let mount_path = format!("/mnt/session/uploads/{}", shared.dice.below(PATHS));
    let resource = FileResource { id, mount_path, file: copy };
    match node.world.resources.add_resource(&resource, None).await {
        Ok(()) => shared.count(Count::FileGiven, 1),
        Err(error @ (ResourceError::Full | ResourceError::KeyUsed(_))) => {
            shared.violation(format!("{session_id}: {error}"));
        }
        Err(_) => {}
    }
    Some(())
}

async fn take_away(shared: &Shared, node: &Arc<Node>, session_id: &SessionId) -> Option<()> {
    let given = node.world.resources.resources(std::slice::from_ref(session_id)).await.ok()?;
    let resource = given.get(shared.dice.below(given.len().max(1) as u64) as usize)?;
    node.world.resources.remove_resource(session_id, &resource.id).await.ok().map(drop)
}

fn any_upload(shared: &Shared) -> Option<FileId> {
    let notes = shared.notes.lock().unwrap();
    let count = notes.uploads.len() as u64;
    (count > 0).then(|| notes.uploads[shared.dice.below(count) as usize].clone())
}
