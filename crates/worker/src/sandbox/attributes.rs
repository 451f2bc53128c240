//! Answers the shell's calls that change a file's mode, owner or times.
//!
//! Landlock does not see them, so a command could make the server's data folder unusable to its own user. Refusing
//! them would break `chmod +x`, `touch`, `git` and `tar`. A second seccomp filter therefore hands each of them to the
//! supervisor, which looks up the file inside the workspace itself and changes it there; the command only sees the
//! answer. What the command does to the path meanwhile can lead to another file of the workspace, never out.
//!
//! An owner can be "changed" to the one it has.

use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;

use super::system::CaughtCall;
use crate::tools::workspace::{Inside, PathError, Workspace};

const SYS_FCHMODAT2: libc::c_long = 452;
/// `chmod` with the bits that let a program run as somebody else left out.
const MODE_BITS: u32 = 0o1777;
const PATH_BYTES_MAX: usize = 4096;

/// The calls to catch for [`perform`].
pub(crate) const CAUGHT: &[libc::c_long] = &[
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    SYS_FCHMODAT2,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lchown,
];

/// Does what a caught call asks for, or says why not.
pub(crate) fn perform(workspace: &Workspace, call: &CaughtCall) -> Result<(), Errno> {
    let [first, second, third, fourth, ..] = call.arguments;
    match call.number {
        libc::SYS_fchmod => change_mode(workspace, call, Target::Descriptor(first), second),
        libc::SYS_fchmodat => change_mode(workspace, call, Target::path(first, second, 0), third),
        SYS_FCHMODAT2 => change_mode(workspace, call, Target::path(first, second, fourth), third),
        libc::SYS_fchown => change_owner(second, third),
        libc::SYS_fchownat => change_owner(third, fourth),
        libc::SYS_utimensat if second == 0 => change_times(workspace, call, Target::Descriptor(first), third),
        libc::SYS_utimensat => change_times(workspace, call, Target::path(first, second, fourth), third),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_chmod => change_mode(workspace, call, Target::path(AT_FDCWD, first, 0), second),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_chown | libc::SYS_lchown => change_owner(second, third),
        _ => Err(Errno::PERM),
    }
}

const AT_FDCWD: u64 = libc::AT_FDCWD as u64;

/// The file that a call names.
enum Target {
    Descriptor(u64),
    Path { folder: u64, address: u64, follows: bool },
}

impl Target {
    fn path(folder: u64, address: u64, flags: u64) -> Self {
        if flags & libc::AT_EMPTY_PATH as u64 != 0 {
            return Self::Descriptor(folder);
        }
        let follows = flags & libc::AT_SYMLINK_NOFOLLOW as u64 == 0;
        Self::Path { folder, address, follows }
    }

    /// The path below the workspace, with every link followed that the call follows.
    fn inside(self, workspace: &Workspace, call: &CaughtCall) -> Result<Inside, Errno> {
        let (path, follows) = match self {
            Self::Descriptor(descriptor) => (opened(call, descriptor)?, true),
            Self::Path { folder, address, follows } => {
                let named = PathBuf::from(OsStr::from_bytes(&text_at(call, address)?));
                let path = if named.is_absolute() { named } else { opened(call, folder)?.join(named) };
                (path, follows)
            }
        };
        let inside = if follows {
            workspace.resolve_path(&path)
        } else {
            let (folder, name) = path.parent().zip(path.file_name()).ok_or(Errno::PERM)?;
            workspace.resolve_path(folder).map(|folder| folder.join(name.as_ref()))
        };
        inside.map_err(refusal)
    }
}

fn change_mode(workspace: &Workspace, call: &CaughtCall, target: Target, mode: u64) -> Result<(), Errno> {
    let inside = target.inside(workspace, call)?;
    let file = workspace.open(&inside, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty()).map_err(refusal)?;
    let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
    if kind.is_symlink() {
        return Err(Errno::OPNOTSUPP);
    }
    let mode = u32::try_from(mode & u64::from(MODE_BITS)).expect("the mask is of 10 bits");
    // A descriptor that only names a file takes no fchmod; its link in /proc does.
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    std::fs::set_permissions(link, Permissions::from_mode(mode)).map_err(errno)
}

fn change_times(workspace: &Workspace, call: &CaughtCall, target: Target, address: u64) -> Result<(), Errno> {
    let times = times_at(call, address)?;
    let inside = target.inside(workspace, call)?;
    let (folder, name) = match (inside.parent(), inside.as_path().file_name()) {
        (Some(folder), Some(name)) => (folder, name),
        _ => (inside.clone(), OsStr::new(".")),
    };
    let folder = workspace.open(&folder, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).map_err(refusal)?;
    // The path was resolved, so a link that is here now was put in the way, or is what is meant itself.
    rustix::fs::utimensat(&folder, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}

/// The two times in the caller's memory; at address 0, now.
fn times_at(call: &CaughtCall, address: u64) -> Result<Timestamps, Errno> {
    let now = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
    if address == 0 {
        return Ok(Timestamps { last_access: now, last_modification: now });
    }
    let mut bytes = [0; 32];
    let memory = File::open(format!("/proc/{}/mem", call.thread)).map_err(errno)?;
    memory.read_exact_at(&mut bytes, address).map_err(|_| Errno::FAULT)?;
    let number = |index: usize| {
        let part = bytes[8 * index..8 * index + 8].try_into().expect("eight of 32 bytes");
        i64::from_ne_bytes(part)
    };
    let time = |index: usize| Timespec { tv_sec: number(index), tv_nsec: number(index + 1) };
    Ok(Timestamps { last_access: time(0), last_modification: time(2) })
}

fn refusal(error: PathError) -> Errno {
    match error {
        PathError::Outside => Errno::PERM,
        PathError::System(errno) => errno,
    }
}

/// Nothing to do for the owner that every file of the workspace has; there is no other.
fn change_owner(user: u64, group: u64) -> Result<(), Errno> {
    let is_own = |id: u64, own: u32| id as u32 == u32::MAX || id as u32 == own;
    let is_unchanged =
        is_own(user, rustix::process::geteuid().as_raw()) && is_own(group, rustix::process::getegid().as_raw());
    if is_unchanged { Ok(()) } else { Err(Errno::PERM) }
}

/// The path behind a descriptor of the caller, or behind its current folder.
fn opened(call: &CaughtCall, descriptor: u64) -> Result<PathBuf, Errno> {
    let link = match descriptor as i32 {
        libc::AT_FDCWD => format!("/proc/{}/cwd", call.thread),
        descriptor => format!("/proc/{}/fd/{descriptor}", call.thread),
    };
    let path = std::fs::read_link(link).map_err(|_| Errno::BADF)?;
    if path.is_absolute() { Ok(path) } else { Err(Errno::PERM) }
}

/// A NUL-terminated string in the caller's memory, read up to page ends, past which nothing may be mapped.
fn text_at(call: &CaughtCall, address: u64) -> Result<Vec<u8>, Errno> {
    const PAGE: u64 = 4096;
    let memory = File::open(format!("/proc/{}/mem", call.thread)).map_err(errno)?;
    let mut text = Vec::new();
    while text.len() < PATH_BYTES_MAX {
        let at = address.checked_add(text.len() as u64).ok_or(Errno::FAULT)?;
        let mut chunk = vec![0; usize::try_from(PAGE - at % PAGE).expect("a page is small")];
        let length = memory.read_at(&mut chunk, at).map_err(|_| Errno::FAULT)?;
        let chunk = &chunk[..length];
        if let Some(end) = chunk.iter().position(|byte| *byte == 0) {
            text.extend_from_slice(&chunk[..end]);
            return if text.is_empty() { Err(Errno::NOENT) } else { Ok(text) };
        }
        if chunk.is_empty() {
            return Err(Errno::FAULT);
        }
        text.extend_from_slice(chunk);
    }
    Err(Errno::NAMETOOLONG)
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::PERM)
}
