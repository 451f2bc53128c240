//! The file system that a session with namespaces sees: its own folders, the system's programs read-only, and
//! nothing else of the host.
//!
//! | path | what it is |
//! |---|---|
//! | `/workspace` | the session's workspace |
//! | `/tmp`, `/mnt/session/outputs` | folders of the workspace's own `.agent`, so that they follow the session and are counted |
//! | `/mnt/session/uploads` | what the session was given, read-only, from outside of the workspace |
//! | `/usr`, `/bin`, …, the operator's `readable_paths` | the host's, read-only |
//! | `/etc` | the files of [`super::paths`], read-only |
//! | `/dev` | five harmless devices |
//! | `/proc` | of the session's own processes, without the files that tell of the kernel |
//!
//! Everything is put together on a fresh tmpfs that then becomes the root; the host's is unmounted.
//! Landlock stands behind this, see [`super::confine`].

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_change, move_mount,
    open_tree, unmount,
};
use std::ffi::CStr;
use std::path::{Path, PathBuf};

use super::confine::ConfineError;
use super::paths::{DEVICES, SYSTEM_FILES, SYSTEM_FOLDERS};
use super::protocol::Settings;
use super::system::restrict_mount;
use crate::tools::workspace::{self, Inside, SESSION_FOLDERS, Workspace};

const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
const READ_WRITE: u64 = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
/// Folders, links and mount points are all that it holds.
const ROOT_OPTIONS: &CStr = c"mode=755,size=1m,nr_inodes=4k";

/// What the session's `/proc` would tell of the machine as a whole and that no tool needs.
const KERNEL_FILES: &[&str] = &[
    "/proc/cmdline",
    "/proc/config.gz",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/keys",
    "/proc/kmsg",
    "/proc/kpagecount",
    "/proc/kpageflags",
    "/proc/sys/kernel/random/boot_id",
    "/proc/sysrq-trigger",
    "/proc/timer_list",
];

/// Puts the root together, makes it this process's, and returns the settings as they are true inside.
pub(crate) fn enter(settings: Settings) -> Result<Settings, ConfineError> {
    // Nothing that is mounted here may show outside.
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).map_err(failed("/"))?;
    let at = settings.workspace.clone();
    let own = own_folders(&at, &settings.uploads)?;
    // The workspace's own place serves as mount point: of all paths, it is the one known to exist.
    mount("tmpfs", &at, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, ROOT_OPTIONS).map_err(failed(&at))?;
    let root = Root { at };
    for (tree, place, attributes) in &own {
        root.folder(place)?;
        root.attach(tree, place, *attributes)?;
    }
    for folder in SYSTEM_FOLDERS {
        root.system_folder(Path::new(folder))?;
    }
    for path in SYSTEM_FILES {
        root.copy_of(Path::new(path), READ_ONLY)?;
    }
    for path in &settings.readable_paths {
        root.copy_of(path, READ_ONLY)?;
    }
    root.devices()?;
    root.processes()?;
    root.become_root().map_err(failed("pivot_root"))?;
    let (workspace, uploads) = (PathBuf::from(workspace::NAME), PathBuf::from(workspace::UPLOADS));
    Ok(Settings { workspace, uploads, ..settings })
}

/// The session's folders as trees to be attached elsewhere. One that an earlier command made unusable is left out.
fn own_folders(at: &Path, uploads: &Path) -> Result<Vec<(OwnedFd, PathBuf, u64)>, ConfineError> {
    let folders = Workspace::at(at).map_err(|error| ConfineError::Mount(at.to_owned(), error.to_string()))?;
    let workspace = folders.open(&Inside::default(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty());
    let workspace = workspace.map_err(|error| ConfineError::Mount(at.to_owned(), error.to_string()))?;
    let mut trees = vec![(tree_of(&workspace).map_err(failed(at))?, PathBuf::from(workspace::NAME), READ_WRITE)];
    for folder in SESSION_FOLDERS.iter().filter(|folder| folder.is_writable) {
        let Ok(path) = folders.ensure_folder(folder.inside) else { continue };
        let Ok(folder_file) = folders.open(&path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()) else { continue };
        let tree = || tree_of(&folder_file).map_err(failed(folder.path));
        trees.push((tree()?, PathBuf::from(folder.path), READ_WRITE));
        // In its own place too: a mount point cannot be removed, so `git clean` leaves `/tmp` alone.
        trees.push((tree()?, Path::new(workspace::NAME).join(path.as_path()), READ_WRITE));
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let given = rustix::fs::open(uploads, flags, Mode::empty()).map_err(failed(workspace::UPLOADS))?;
    let given = tree_of(&given).map_err(failed(workspace::UPLOADS))?;
    trees.push((given, PathBuf::from(workspace::UPLOADS), READ_ONLY));
    Ok(trees)
}

fn tree_of(file: impl AsFd) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(file, "", flags | OpenTreeFlags::AT_RECURSIVE)
}

struct Root {
    /// Where it is put together.
    at: PathBuf,
}

impl Root {
    fn place(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.at.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn folder(&self, path: impl AsRef<Path>) -> Result<(), ConfineError> {
        let path = path.as_ref();
        std::fs::create_dir_all(self.place(path)).map_err(|error| failed(path)(errno(&error)))
    }

    fn attach(&self, tree: &OwnedFd, path: impl AsRef<Path>, attributes: u64) -> Result<(), ConfineError> {
        let path = path.as_ref();
        restrict_mount(tree, attributes, true)
            .and_then(|()| move_mount(tree, "", CWD, self.place(path), MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH))
            .map_err(failed(path))
    }

    /// The host's `path` at the same path, if there is one. Links are followed.
    fn copy_of(&self, path: &Path, attributes: u64) -> Result<(), ConfineError> {
        let Ok(metadata) = path.metadata() else { return Ok(()) };
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
        let tree = open_tree(CWD, path, flags).map_err(failed(path))?;
        if metadata.is_dir() {
            self.folder(path)?;
        } else {
            path.parent().map_or(Ok(()), |parent| self.folder(parent))?;
            std::fs::write(self.place(path), "").map_err(|error| failed(path)(errno(&error)))?;
        }
        self.attach(&tree, path, attributes)
    }

    /// A folder of programs or libraries, which on many systems is a link to one below `/usr`.
    fn system_folder(&self, path: &Path) -> Result<(), ConfineError> {
        match std::fs::read_link(path) {
            Ok(target) => self.link(path, &target),
            Err(_) => self.copy_of(path, READ_ONLY),
        }
    }

    fn link(&self, path: &Path, target: &Path) -> Result<(), ConfineError> {
        std::os::unix::fs::symlink(target, self.place(path)).map_err(|error| failed(path)(errno(&error)))
    }

    fn devices(&self) -> Result<(), ConfineError> {
        for device in DEVICES {
            // A device on a mount without devices could not be opened.
            self.copy_of(Path::new(device), libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC)?;
        }
        for (path, target) in [
            ("/dev/fd", "/proc/self/fd"),
            ("/dev/stdin", "/proc/self/fd/0"),
            ("/dev/stdout", "/proc/self/fd/1"),
            ("/dev/stderr", "/proc/self/fd/2"),
            ("/dev/shm", "/tmp"),
        ] {
            self.link(Path::new(path), Path::new(target))?;
        }
        Ok(())
    }

    /// The session's own processes. Where the host's `/proc` is covered in part, as in a container, the kernel does
    /// not allow another.
    fn processes(&self) -> Result<(), ConfineError> {
        self.folder("/proc")?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("proc", self.place("/proc"), "proc", flags, None).map_err(failed("/proc"))?;
        for file in KERNEL_FILES.iter().map(Path::new).filter(|file| file.exists()) {
            let nothing =
                open_tree(CWD, "/dev/null", OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC);
            self.attach(&nothing.map_err(failed(file))?, file, libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC)?;
        }
        Ok(())
    }

    fn become_root(&self) -> Result<(), Errno> {
        rustix::process::chdir(&self.at)?;
        rustix::process::pivot_root(".", ".")?;
        // The old root now lies above the new one.
        unmount(".", UnmountFlags::DETACH)?;
        rustix::process::chdir("/")?;
        let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        restrict_mount(&root, READ_ONLY, false)?;
        rustix::process::chdir(workspace::NAME)
    }
}

fn failed(path: impl AsRef<Path>) -> impl FnOnce(Errno) -> ConfineError {
    let path = path.as_ref().to_owned();
    move |source| ConfineError::Mount(path, std::io::Error::from(source).to_string())
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
