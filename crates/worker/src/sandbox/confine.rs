//! Takes a sandbox process's rights away, before it touches anything that a model wrote.
//!
//! There are three roles. The *supervisor* may read `/proc`, write the workspace and start the other two.
//! The *shell* may read and execute system paths and write the workspace. The *file helper* may touch the
//! workspace, read what the session was given, and nothing else. Shell and helper each stand in a Landlock domain nested in the supervisor's, so
//! neither can signal or trace the supervisor, the worker or each other.
//! What Landlock does not see is refused by [`super::seccomp`]. With namespaces, [`super::namespaces`] has hidden the
//! host before any of this.

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus, NetPort, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, Scope, make_bitflags,
};
use rustix::process::{DumpableBehavior, Resource, Rlimit, Signal};
use rustix::thread::{CapabilitySet, CapabilitySets};
use std::path::{Path, PathBuf};

use super::config::{Confinement, Limits};
use super::paths::{DEVICES, SYSTEM_FILES, SYSTEM_FOLDERS};
use super::protocol::Settings;
use super::seccomp::{self, SeccompError};
use crate::tools::workspace::SESSION_FOLDERS;

/// Without ABI 3 (Linux 6.2) a file outside could be truncated.
const ABI_MIN: ABI = ABI::V3;
const ABI_BEST: ABI = ABI::V9;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Supervisor,
    Shell,
    Files,
}

/// A part of the confinement could not be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfineError {
    #[error("landlock (ABI 3, Linux 6.2 or newer, enabled in `lsm=`) is needed: {0}")]
    Landlock(String),
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
    #[error("the session's file system: {0}: {1}")]
    Mount(PathBuf, String),
    #[error("{what}: {source}")]
    Kernel { what: &'static str, source: rustix::io::Errno },
}

/// Confines this process and all it will start. Returns the Landlock ABI in force, none with confinement off.
pub(crate) fn apply(role: Role, settings: &Settings) -> Result<Option<u32>, ConfineError> {
    match role {
        Role::Supervisor => {
            // A signal to the worker's process group, such as Ctrl-C, must not end the one that cleans up.
            rustix::process::setsid().map_err(kernel("setsid"))?;
            rustix::process::set_child_subreaper(rustix::process::getpid().into())
                .map_err(kernel("child subreaper"))?;
            rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(kernel("not dumpable"))?;
        }
        Role::Shell | Role::Files => {
            // Should the supervisor be killed all the same, its children go with it.
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(kernel("death signal"))?;
            rustix::process::setsid().map_err(kernel("setsid"))?;
            limit(&settings.limits)?;
        }
    }
    if settings.confinement == Confinement::Off {
        return Ok(None);
    }
    if role == Role::Supervisor {
        drop_capabilities()?;
        rustix::thread::set_no_new_privs(true).map_err(kernel("no_new_privs"))?;
    }
    let abi = restrict_paths(role, settings)?;
    seccomp::install(role, settings.confinement)?;
    Ok(Some(abi))
}

fn limit(limits: &Limits) -> Result<(), ConfineError> {
    for (resource, value) in [
        (Resource::Core, 0),
        (Resource::Data, limits.process_memory_bytes_max),
        (Resource::Fsize, limits.file_bytes_max),
        (Resource::Nofile, limits.open_files_max),
        (Resource::Cpu, limits.cpu_seconds_max),
        (Resource::Memlock, 64 * 1024),
    ] {
        let now = rustix::process::getrlimit(resource);
        let value = now.maximum.map_or(value, |maximum| value.min(maximum));
        let limit = Rlimit { current: Some(value), maximum: Some(value) };
        rustix::process::setrlimit(resource, limit).map_err(kernel("resource limits"))?;
    }
    Ok(())
}

/// Root without capabilities is an ordinary user that happens to own root's files.
fn drop_capabilities() -> Result<(), ConfineError> {
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        // Past the last capability, or without the right to change the bounding set: then there is nothing in
        // the permitted set either, and no_new_privs keeps it so.
        if rustix::thread::remove_capability_from_bounding_set(capability).is_err() {
            break;
        }
    }
    let _ = rustix::thread::clear_ambient_capability_set();
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, none).map_err(kernel("drop capabilities"))
}

fn restrict_paths(role: Role, settings: &Settings) -> Result<u32, ConfineError> {
    let landlock = |error: &dyn std::fmt::Display| ConfineError::Landlock(error.to_string());
    let has_namespaces = settings.confinement == Confinement::Namespaces;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI_MIN))
        .and_then(|rules| rules.set_compatibility(CompatLevel::BestEffort).handle_access(AccessFs::from_all(ABI_BEST)))
        .and_then(|rules| rules.scope(Scope::from_all(ABI_BEST)))
        .map_err(|error| landlock(&error))?;
    if !has_namespaces {
        // The second wall: the first is that the supervisor answers every connect().
        rules = rules.handle_access(AccessNet::from_all(ABI_BEST)).map_err(|error| landlock(&error))?;
    }
    let mut rules = rules.create().map_err(|error| landlock(&error))?;

    let run = READ | AccessFs::Execute;
    rules = allow(rules, &settings.workspace, workspace_access(settings.confinement), true)?;
    if has_namespaces {
        for folder in SESSION_FOLDERS.iter().filter(|folder| folder.is_writable) {
            rules = allow(rules, Path::new(folder.path), workspace_access(settings.confinement), false)?;
        }
    }
    // No rule for a folder above it grants more.
    rules = allow(rules, &settings.uploads, READ, true)?;
    if role != Role::Files {
        rules = if has_namespaces {
            // Nothing is there but what `super::root` put there.
            allow(rules, Path::new("/"), run, true)?
        } else {
            allow_system(rules, settings)?
        };
        for path in DEVICES {
            rules = allow(rules, Path::new(path), AccessFs::ReadFile | AccessFs::WriteFile, false)?;
        }
    }
    if role == Role::Supervisor
        && let (false, Some(port)) = (has_namespaces, settings.proxy_port)
    {
        rules = rules
            .set_compatibility(CompatLevel::BestEffort)
            .add_rule(NetPort::new(port, AccessNet::ConnectTcp))
            .map_err(|error| landlock(&error))?;
    }
    let status = rules.restrict_self().map_err(|error| landlock(&error))?;
    match status.landlock {
        LandlockStatus::Available { effective_abi, .. } => Ok(effective_abi as u32),
        LandlockStatus::NotEnabled => Err(landlock(&"not enabled at boot")),
        LandlockStatus::NotImplemented => Err(landlock(&"not built into this kernel")),
    }
}

const READ: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | ReadDir});

/// The host's system paths. Of `/proc` Landlock itself hides the environment, memory and descriptors of processes
/// outside; their command lines stay visible, so none ever holds a secret.
fn allow_system(mut rules: RulesetCreated, settings: &Settings) -> Result<RulesetCreated, ConfineError> {
    let run = READ | AccessFs::Execute;
    for path in SYSTEM_FOLDERS.iter().map(Path::new).chain(settings.readable_paths.iter().map(PathBuf::as_path)) {
        rules = allow(rules, path, run, false)?;
    }
    for path in SYSTEM_FILES {
        rules = allow(rules, Path::new(path), READ, false)?;
    }
    allow(rules, Path::new("/proc"), READ, true)
}

/// Everything but devices; sockets where those of the host are hidden.
fn workspace_access(confinement: Confinement) -> BitFlags<AccessFs> {
    let socket = if confinement == Confinement::Namespaces { AccessFs::MakeSock.into() } else { BitFlags::EMPTY };
    socket
        | AccessFs::Execute
        | AccessFs::ReadFile
        | AccessFs::ReadDir
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::MakeSym
        | AccessFs::MakeFifo
        | AccessFs::Refer
}

/// Adds a rule for `path`, skipping one that does not exist unless it is `required`.
fn allow(
    rules: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
    required: bool,
) -> Result<RulesetCreated, ConfineError> {
    let rule = |error: &dyn std::fmt::Display| ConfineError::Landlock(format!("rule for {}: {error}", path.display()));
    let (file, is_dir) = match (PathFd::new(path), path.metadata()) {
        (Ok(file), Ok(metadata)) => (file, metadata.is_dir()),
        (Err(error), _) if required => return Err(rule(&error)),
        (_, Err(error)) if required => return Err(rule(&error)),
        _ => return Ok(rules),
    };
    let access = if is_dir { access } else { access & AccessFs::from_file(ABI_BEST) };
    rules.add_rule(PathBeneath::new(file, access)).map_err(|error| rule(&error))
}

fn kernel(what: &'static str) -> impl FnOnce(rustix::io::Errno) -> ConfineError {
    move |source| ConfineError::Kernel { what, source }
}
