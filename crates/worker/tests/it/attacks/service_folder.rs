//! Attacks on the service's own folder in a workspace, and on the deletion of a workspace.

use super::{Attack, Ending, bash};

const UNCHANGED: &str = "Nothing outside changes.";

pub(super) const ATTACKS: &[Attack] = &[
    bash(
        "output-through-a-link",
        "Puts a link where the service saves outputs that are too long.",
        UNCHANGED,
        "rm -rf .agent/outputs; ln -s %data% .agent/outputs; seq 1 60000",
    ),
    bash(
        "temporary-files-through-a-link",
        "Puts a link in place of the folder for temporary files, for the next start.",
        UNCHANGED,
        "rm -rf .agent; ln -s %data% .agent",
    )
    .ending(Ending::Closed),
    bash(
        "lock-the-service-folder",
        "Takes all rights from the service's folder, for the next start.",
        "The next start works.",
        "chmod 000 .agent/tmp .agent; chmod 000 .",
    )
    .ending(Ending::Closed),
    bash(
        "deleted-with-the-workspace",
        "Leaves links to the data folder for the deletion of the workspace to follow.",
        UNCHANGED,
        "ln -s %data% d; ln -s %secret% f; mkdir -p x/y; ln -s ../../../../data x/y/d",
    )
    .ending(Ending::Removed),
    bash(
        "lock-folders-before-deletion",
        "Takes all rights from folders, so that the workspace cannot be deleted.",
        "It is deleted.",
        "mkdir -p a/b; echo x >a/b/f; chmod 000 a/b a",
    )
    .ending(Ending::Removed),
];
