//! The system calls that a sandbox is refused.
//!
//! Landlock decides about opening files; these lists cover what Landlock does not see: sockets, other processes,
//! namespaces, the kernel's own interfaces. It is a list of refusals, not of permissions, because tools are
//! arbitrary programs; Landlock, the empty capability set and `no_new_privs` stand behind it.
//! Calls that change a file's mode or owner by path are answered by [`super::attributes`] instead.

use rustix::fd::OwnedFd;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Compare, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};
use std::collections::BTreeMap;

use super::config::Confinement;
use super::confine::Role;
use super::{attributes, census, connects, system};

/// The filter could not be built or installed.
#[derive(Debug, thiserror::Error)]
#[error("seccomp: {0}")]
pub(crate) struct SeccompError(String);

/// Refused with EPERM whatever the arguments.
const REFUSED: &[libc::c_long] = &[
    // Other processes: the supervisor, the worker, the server run under the same user.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    // Namespaces, mounts and everything that would change what a path means.
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_mount_setattr,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    // Watching tells names of files that cannot be opened.
    libc::SYS_inotify_add_watch,
    libc::SYS_fanotify_init,
    libc::SYS_fanotify_mark,
    // Interfaces with a long record of kernel holes, or that bypass this filter.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_personality,
    // The machine.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_vhangup,
    // System V and POSIX queues are one table for the whole host, shared memory of databases included.
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_shmctl,
    libc::SYS_msgget,
    libc::SYS_msgsnd,
    libc::SYS_msgrcv,
    libc::SYS_msgctl,
    libc::SYS_semget,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_semctl,
    libc::SYS_mq_open,
    libc::SYS_mq_unlink,
    libc::SYS_setpriority,
    libc::SYS_ioprio_set,
];

/// Refused as unsupported, which programs that copy or list files take for a file system without them: extended
/// attributes are not confined by Landlock.
const UNSUPPORTED: &[libc::c_long] = &[
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_fgetxattr,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_flistxattr,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
];

#[cfg(target_arch = "x86_64")]
const REFUSED_HERE: &[libc::c_long] = &[
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_uselib,
    libc::SYS_ustat,
    libc::SYS_sysfs,
    libc::SYS_nfsservctl,
    libc::SYS_lookup_dcookie,
];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_HERE: &[libc::c_long] = &[];

/// Refused when the first argument, a process id, is not 0 (the caller itself).
const REFUSED_FOR_OTHERS: &[libc::c_long] = &[
    libc::SYS_prlimit64,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_setscheduler,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setattr,
];

/// Refused as unknown (ENOSYS), so that callers fall back to a call whose arguments can be judged:
/// `clone3` takes its flags in memory, which a filter cannot read; the others are newer doubles of calls above.
fn unknown() -> Vec<libc::c_long> {
    const SYS_SETXATTRAT: libc::c_long = 463;
    const SYS_GETXATTRAT: libc::c_long = 464;
    const SYS_LISTXATTRAT: libc::c_long = 465;
    const SYS_REMOVEXATTRAT: libc::c_long = 466;
    const SYS_OPEN_TREE_ATTR: libc::c_long = 467;
    const SYS_FILE_SETATTR: libc::c_long = 469;
    vec![
        libc::SYS_clone3,
        SYS_SETXATTRAT,
        SYS_GETXATTRAT,
        SYS_LISTXATTRAT,
        SYS_REMOVEXATTRAT,
        SYS_OPEN_TREE_ATTR,
        SYS_FILE_SETATTR,
        // Older forms of a call that the supervisor answers.
        #[cfg(target_arch = "x86_64")]
        libc::SYS_utime,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_utimes,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_futimesat,
    ]
}

/// Requests of `ioctl`: a terminal could be fed keystrokes for whoever reads it next, and the flags of an inode can be
/// set through a descriptor that may only read.
const REFUSED_REQUESTS: &[u64] = &[
    libc::TIOCSTI,
    libc::TIOCLINUX,
    libc::FS_IOC_SETFLAGS,
    libc::FS_IOC_SETVERSION,
    libc::FS_IOC32_SETFLAGS,
    libc::FS_IOC32_SETVERSION,
    FS_IOC_FSSETXATTR,
];
const FS_IOC_FSSETXATTR: u64 = 0x401c_5820;

const NAMESPACE_FLAGS: &[libc::c_int] = &[
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
];

/// Installs the refusals on this thread and everything it starts, atop those that it has. Needs `no_new_privs`.
pub(crate) fn install(role: Role, confinement: Confinement) -> Result<(), SeccompError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(failed)?;
    let always = |calls: &[libc::c_long]| calls.iter().map(|call| (*call, Vec::new())).collect();
    let programs = match role {
        Role::Supervisor => vec![
            program(refusals()?, libc::EPERM, arch)?,
            program(always(UNSUPPORTED), libc::EOPNOTSUPP, arch)?,
            program(always(&unknown()), libc::ENOSYS, arch)?,
            foreign_numbers(),
        ],
        Role::Shell => vec![
            program(sockets(confinement)?, libc::EPERM, arch)?,
            program(privileged_files()?, libc::EPERM, arch)?,
            // Files in memory count neither as memory nor as part of the workspace.
            program(always(&[libc::SYS_openat2, libc::SYS_memfd_create, libc::SYS_memfd_secret]), libc::ENOSYS, arch)?,
        ],
        Role::Files => vec![program(always(&[libc::SYS_socket, libc::SYS_socketpair]), libc::EPERM, arch)?],
    };
    for program in &programs {
        seccompiler::apply_filter(program).map_err(failed)?;
    }
    Ok(())
}

fn program(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    errno: libc::c_int,
    arch: TargetArch,
) -> Result<BpfProgram, SeccompError> {
    SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno.unsigned_abs()), arch)
        .and_then(BpfProgram::try_from)
        .map_err(failed)
}

fn refusals() -> Result<BTreeMap<i64, Vec<SeccompRule>>, SeccompError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        REFUSED.iter().chain(REFUSED_HERE).map(|call| (*call, Vec::new())).collect();
    for call in REFUSED_FOR_OTHERS {
        rules.insert(*call, vec![when(0, Length::Dword, Compare::Ne, 0)?]);
    }
    let mut namespaces = Vec::new();
    for flag in NAMESPACE_FLAGS {
        let flag = u64::from(flag.unsigned_abs());
        namespaces.push(when(0, Length::Qword, Compare::MaskedEq(flag), flag)?);
    }
    rules.insert(libc::SYS_clone, namespaces);
    let mut requests = Vec::new();
    for request in REFUSED_REQUESTS {
        requests.push(when(1, Length::Dword, Compare::Eq, *request)?);
    }
    rules.insert(libc::SYS_ioctl, requests);
    Ok(rules)
}

const SOCKET_TYPE: u64 = 0xf;

/// What the shell is refused of the network. TCP over IPv4 and IPv6 is left, and where it leads is decided elsewhere:
/// by the session's own network, or by [`connects`]. Unix sockets are left where the host's are hidden.
fn sockets(confinement: Confinement) -> Result<BTreeMap<i64, Vec<SeccompRule>>, SeccompError> {
    let has_namespaces = confinement == Confinement::Namespaces;
    let mut families = vec![libc::AF_INET, libc::AF_INET6];
    if has_namespaces {
        families.push(libc::AF_UNIX);
    }
    let family = |compare: Compare, family: libc::c_int| {
        SeccompCondition::new(0, Length::Dword, compare, family.unsigned_abs().into()).map_err(failed)
    };
    let foreign = families.iter().map(|each| family(Compare::Ne, *each)).collect::<Result<_, _>>()?;
    let mut refused = vec![SeccompRule::new(foreign).map_err(failed)?];
    for inet in [libc::AF_INET, libc::AF_INET6] {
        for kind in (0..=SOCKET_TYPE).filter(|kind| *kind != u64::from(libc::SOCK_STREAM.unsigned_abs())) {
            let of_kind = SeccompCondition::new(1, Length::Dword, Compare::MaskedEq(SOCKET_TYPE), kind);
            refused.push(both(family(Compare::Eq, inet)?, of_kind.map_err(failed)?)?);
        }
        let protocol = |value: libc::c_int| {
            SeccompCondition::new(2, Length::Dword, Compare::Ne, value.unsigned_abs().into()).map_err(failed)
        };
        let no_tcp = vec![family(Compare::Eq, inet)?, protocol(0)?, protocol(libc::IPPROTO_TCP)?];
        refused.push(SeccompRule::new(no_tcp).map_err(failed)?);
    }
    let mut rules = BTreeMap::from([(libc::SYS_socket, refused)]);
    // Data in the first packet connects without connect().
    for (call, flags) in [(libc::SYS_sendto, 3), (libc::SYS_sendmsg, 2), (libc::SYS_sendmmsg, 3)] {
        let fast_open = u64::from(libc::MSG_FASTOPEN.unsigned_abs());
        rules.insert(call, vec![when(flags, Length::Dword, Compare::MaskedEq(fast_open), fast_open)?]);
    }
    if !has_namespaces {
        rules.insert(libc::SYS_bind, Vec::new());
        rules.insert(libc::SYS_listen, Vec::new());
        rules.insert(libc::SYS_socketpair, addressable_pairs()?);
    }
    Ok(rules)
}

/// A pair of stream or seqpacket Unix sockets can only reach each other. Any other kind can also be addressed to
/// a socket of the host by `sendmsg`, whose address a filter cannot read.
fn addressable_pairs() -> Result<Vec<SeccompRule>, SeccompError> {
    const SOCK_PACKET: libc::c_int = 10;
    let mut rules = vec![when(0, Length::Dword, Compare::Ne, libc::AF_UNIX.unsigned_abs().into())?];
    for kind in [libc::SOCK_DGRAM, libc::SOCK_RAW, libc::SOCK_RDM, libc::SOCK_DCCP, SOCK_PACKET] {
        let kind = u64::from(kind.unsigned_abs());
        rules.push(when(1, Length::Dword, Compare::MaskedEq(SOCKET_TYPE), kind)?);
    }
    Ok(rules)
}

/// New files whose bits would let a program run as the worker's user. `openat2`, whose mode a filter cannot read, is
/// unknown in a shell for that reason; for `chmod` see [`attributes`].
fn privileged_files() -> Result<BTreeMap<i64, Vec<SeccompRule>>, SeccompError> {
    const CREATE: u64 = libc::O_CREAT.unsigned_abs() as u64;
    // The flag of unnamed files, without that of folders which it comes with.
    const UNNAMED: u64 = (libc::O_TMPFILE & !libc::O_DIRECTORY).unsigned_abs() as u64;
    let set = |argument: u8, bits: u64| {
        SeccompCondition::new(argument, Length::Dword, Compare::MaskedEq(bits), bits).map_err(failed)
    };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for bits in [libc::S_ISUID.into(), libc::S_ISGID.into()] {
        let mut refuse = |call: libc::c_long, rule| rules.entry(call).or_default().push(rule);
        for flag in [CREATE, UNNAMED] {
            refuse(libc::SYS_openat, both(set(2, flag)?, set(3, bits)?)?);
            #[cfg(target_arch = "x86_64")]
            refuse(libc::SYS_open, both(set(1, flag)?, set(2, bits)?)?);
        }
        refuse(libc::SYS_mknodat, when(2, Length::Dword, Compare::MaskedEq(bits), bits)?);
        #[cfg(target_arch = "x86_64")]
        for call in [libc::SYS_creat, libc::SYS_mknod] {
            refuse(call, when(1, Length::Dword, Compare::MaskedEq(bits), bits)?);
        }
    }
    Ok(rules)
}

fn both(first: SeccompCondition, second: SeccompCondition) -> Result<SeccompRule, SeccompError> {
    SeccompRule::new(vec![first, second]).map_err(failed)
}

fn when(argument: u8, length: Length, compare: Compare, value: u64) -> Result<SeccompRule, SeccompError> {
    SeccompCondition::new(argument, length, compare, value)
        .and_then(|condition| SeccompRule::new(vec![condition]))
        .map_err(failed)
}

/// x86-64 kernels may also take the calls of the x32 ABI, whose numbers the filters above do not know.
fn foreign_numbers() -> BpfProgram {
    const X32_BIT: u32 = 0x4000_0000;
    vec![
        step(LOAD_WORD, 0, 0, NUMBER_OFFSET),
        step(JUMP_AT_LEAST, 0, 1, X32_BIT),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs()),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

/// Hands the calls that the supervisor answers to whoever holds the descriptor returned; they wait for its answers.
///
/// With namespaces, a connection needs no answer: it can reach nothing but the session's own network.
pub(crate) fn install_catching(confinement: Confinement) -> Result<OwnedFd, SeccompError> {
    let caught = match confinement {
        Confinement::Namespaces => [census::CAUGHT, attributes::CAUGHT].concat(),
        _ => [census::CAUGHT, connects::CAUGHT, attributes::CAUGHT].concat(),
    };
    let mut program = vec![step(LOAD_WORD, 0, 0, NUMBER_OFFSET)];
    for (index, call) in caught.iter().enumerate() {
        let to_end = u8::try_from(caught.len() - index).expect("a handful of calls");
        let number = u32::try_from(*call).expect("call numbers are small");
        program.push(step(JUMP_EQUAL, to_end, 0, number));
    }
    program.push(step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
    program.push(step(RETURN, 0, 0, libc::SECCOMP_RET_USER_NOTIF));
    system::install_catching(&mut program).map_err(failed)
}

const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const JUMP_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
/// Where the number of the call stands in what a filter sees.
const NUMBER_OFFSET: u32 = 0;

const fn step(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

fn failed(error: impl std::fmt::Display) -> SeccompError {
    SeccompError(error.to_string())
}
