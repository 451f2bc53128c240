//! Answers the shell's calls that change a file's mode or owner.
//!
//! Landlock does not see them, so a command could make the server's data folder unusable to its own user. Refusing
//! them would break `chmod +x`, `git` and `tar`. A second seccomp filter therefore hands each of them to the
//! supervisor, which looks up the file inside the workspace itself and changes it there; the command only sees the
//! answer. What the command does to the path meanwhile can lead to another file of the workspace, never out.
//!
//! An owner can be "changed" to the one it has. Times of files (`utimensat`) are not covered: a command can set
//! those of any file of its user, which tells and destroys nothing.

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;

use super::system::CaughtCall;
use crate::tools::workspace::{PathError, Workspace};

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
}

fn change_mode(workspace: &Workspace, call: &CaughtCall, target: Target, mode: u64) -> Result<(), Errno> {
    let (path, follows) = match target {
        Target::Descriptor(descriptor) => (opened(call, descriptor)?, true),
        Target::Path { folder, address, follows } => {
            let named = PathBuf::from(OsStr::from_bytes(&text_at(call, address)?));
            let path = if named.is_absolute() { named } else { opened(call, folder)?.join(named) };
            (path, follows)
        }
    };
    let text = |path: &OsStr| path.to_str().map(str::to_owned).ok_or(Errno::PERM);
    let inside = if follows {
        workspace.resolve(&text(path.as_os_str())?)
    } else {
        let (folder, name) = path.parent().zip(path.file_name()).ok_or(Errno::PERM)?;
        workspace.resolve(&text(folder.as_os_str())?).map(|folder| folder.join(name.as_ref()))
    };
    let file = inside
        .and_then(|inside| workspace.open(&inside, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty()))
        .map_err(|error| match error {
            PathError::Outside => Errno::PERM,
            PathError::System(errno) => errno,
        })?;
    let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
    if kind.is_symlink() {
        return Err(Errno::OPNOTSUPP);
    }
    let mode = u32::try_from(mode & u64::from(MODE_BITS)).expect("the mask is of 10 bits");
    // A descriptor that only names a file takes no fchmod; its link in /proc does.
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    std::fs::set_permissions(link, Permissions::from_mode(mode)).map_err(errno)
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
