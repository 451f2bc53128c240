//! What every perl attempt starts with: system calls by name, and one way to tell success.
//!
//! `perl-base` is in every Debian image and its `syscall` reaches the kernel with any arguments, so no compiler is
//! needed to attack one. The numbers are those of the machine that the tests were built for.

use std::fmt::Write as _;

use super::BREACH;

/// `sys` makes a call and returns -1 where it failed. `gained` tells a breach if a call succeeded. `let_in` tells
/// one even if the call failed, unless it was refused: it is for calls with arguments that do nothing.
/// `ask` sends a request to the proxy that the environment names, or to any address where there is none, and returns
/// the answer.
const SUBS: &str = r#"
use Socket qw(:DEFAULT inet_pton pack_sockaddr_in6); use Fcntl; use POSIX (); use Errno;
$| = 1;
sub sys { my $name = shift; exists $n{$name} ? syscall($n{$name}, @_) : -1 }
sub breach { print "%head%", "%tail%: @_\n" }
sub gained { my $name = $_[0]; my $result = sys(@_); breach($name) if $result != -1; $result }
sub let_in { my $name = $_[0]; return unless exists $n{$name}; my $result = sys(@_);
  breach("$name: $!") unless $result == -1 && ($!{EPERM} || $!{ENOSYS} || $!{EACCES} || $!{EOPNOTSUPP}) }
sub ask {
  my ($host, $port) = ($ENV{http_proxy} || "http://127.0.0.1:9") =~ m{([\d.]+):(\d+)};
  socket my $proxy, PF_INET, SOCK_STREAM, 0 or return "";
  connect $proxy, pack_sockaddr_in($port, inet_aton($host)) or return "";
  syswrite $proxy, $_[0];
  my ($answer, $ready) = ("");
  while (vec($ready, fileno $proxy, 1) = 1, select $ready, undef, undef, 0.3) {
    sysread $proxy, my $part, 4096 or last;
    $answer .= $part;
    syswrite $proxy, "more" if $answer =~ /^HTTP\S+ 200/;
  }
  $answer
}
sub at { unpack "J", pack "P", $_[0] }
"#;

/// The program with its prelude.
pub(super) fn program(body: &str) -> String {
    let mut numbers = String::new();
    for (name, number) in NUMBERS.iter().chain(NUMBERS_HERE) {
        write!(numbers, "{name} => {number}, ").expect("a string takes it");
    }
    // In two halves, because a shell quotes a program that crashed, and that is no success.
    let (head, tail) = BREACH.split_at(3);
    format!("%n = ({numbers});{}{body}", SUBS.replace("%head%", head).replace("%tail%", tail))
}

macro_rules! numbers {
    ($($name:ident $number:expr;)*) => { &[$((stringify!($name), $number)),*] };
}

const NUMBERS: &[(&str, libc::c_long)] = numbers! {
    accept4 libc::SYS_accept4;
    acct libc::SYS_acct;
    add_key libc::SYS_add_key;
    adjtimex libc::SYS_adjtimex;
    bpf libc::SYS_bpf;
    capget libc::SYS_capget;
    capset libc::SYS_capset;
    chroot libc::SYS_chroot;
    clock_adjtime libc::SYS_clock_adjtime;
    clock_settime libc::SYS_clock_settime;
    clone libc::SYS_clone;
    clone3 libc::SYS_clone3;
    close libc::SYS_close;
    connect libc::SYS_connect;
    delete_module libc::SYS_delete_module;
    execveat libc::SYS_execveat;
    fanotify_init libc::SYS_fanotify_init;
    fchdir libc::SYS_fchdir;
    fchmodat2 libc::SYS_fchmodat2;
    file_setattr 469;
    finit_module libc::SYS_finit_module;
    fsconfig libc::SYS_fsconfig;
    fsmount libc::SYS_fsmount;
    fsopen libc::SYS_fsopen;
    fspick libc::SYS_fspick;
    get_robust_list libc::SYS_get_robust_list;
    getxattr libc::SYS_getxattr;
    init_module libc::SYS_init_module;
    inotify_add_watch libc::SYS_inotify_add_watch;
    inotify_init1 libc::SYS_inotify_init1;
    io_uring_enter libc::SYS_io_uring_enter;
    io_uring_register libc::SYS_io_uring_register;
    io_uring_setup libc::SYS_io_uring_setup;
    ioctl libc::SYS_ioctl;
    ioprio_set libc::SYS_ioprio_set;
    kcmp libc::SYS_kcmp;
    kexec_file_load libc::SYS_kexec_file_load;
    kexec_load libc::SYS_kexec_load;
    keyctl libc::SYS_keyctl;
    landlock_add_rule libc::SYS_landlock_add_rule;
    landlock_create_ruleset libc::SYS_landlock_create_ruleset;
    landlock_restrict_self libc::SYS_landlock_restrict_self;
    linkat libc::SYS_linkat;
    memfd_create libc::SYS_memfd_create;
    migrate_pages libc::SYS_migrate_pages;
    mkdirat libc::SYS_mkdirat;
    mmap libc::SYS_mmap;
    mount libc::SYS_mount;
    mount_setattr libc::SYS_mount_setattr;
    move_mount libc::SYS_move_mount;
    move_pages libc::SYS_move_pages;
    mq_open libc::SYS_mq_open;
    mq_unlink libc::SYS_mq_unlink;
    msgget libc::SYS_msgget;
    name_to_handle_at libc::SYS_name_to_handle_at;
    open_by_handle_at libc::SYS_open_by_handle_at;
    open_tree libc::SYS_open_tree;
    open_tree_attr 467;
    openat libc::SYS_openat;
    openat2 libc::SYS_openat2;
    perf_event_open libc::SYS_perf_event_open;
    personality libc::SYS_personality;
    pidfd_getfd libc::SYS_pidfd_getfd;
    pidfd_open libc::SYS_pidfd_open;
    pidfd_send_signal libc::SYS_pidfd_send_signal;
    pivot_root libc::SYS_pivot_root;
    prctl libc::SYS_prctl;
    prlimit64 libc::SYS_prlimit64;
    process_madvise libc::SYS_process_madvise;
    process_mrelease libc::SYS_process_mrelease;
    process_vm_readv libc::SYS_process_vm_readv;
    process_vm_writev libc::SYS_process_vm_writev;
    ptrace libc::SYS_ptrace;
    quotactl libc::SYS_quotactl;
    quotactl_fd libc::SYS_quotactl_fd;
    read libc::SYS_read;
    reboot libc::SYS_reboot;
    recvmsg libc::SYS_recvmsg;
    renameat2 libc::SYS_renameat2;
    request_key libc::SYS_request_key;
    rt_sigqueueinfo libc::SYS_rt_sigqueueinfo;
    rt_tgsigqueueinfo libc::SYS_rt_tgsigqueueinfo;
    sched_setaffinity libc::SYS_sched_setaffinity;
    sched_setattr libc::SYS_sched_setattr;
    sched_setparam libc::SYS_sched_setparam;
    sched_setscheduler libc::SYS_sched_setscheduler;
    seccomp libc::SYS_seccomp;
    semget libc::SYS_semget;
    sendmmsg libc::SYS_sendmmsg;
    sendmsg libc::SYS_sendmsg;
    sendto libc::SYS_sendto;
    setdomainname libc::SYS_setdomainname;
    setgid libc::SYS_setgid;
    setgroups libc::SYS_setgroups;
    sethostname libc::SYS_sethostname;
    setns libc::SYS_setns;
    setpgid libc::SYS_setpgid;
    setpriority libc::SYS_setpriority;
    setresuid libc::SYS_setresuid;
    settimeofday libc::SYS_settimeofday;
    setuid libc::SYS_setuid;
    setxattr libc::SYS_setxattr;
    setxattrat 463;
    shmat libc::SYS_shmat;
    shmget libc::SYS_shmget;
    socket libc::SYS_socket;
    socketpair libc::SYS_socketpair;
    swapoff libc::SYS_swapoff;
    swapon libc::SYS_swapon;
    syslog libc::SYS_syslog;
    tgkill libc::SYS_tgkill;
    tkill libc::SYS_tkill;
    truncate libc::SYS_truncate;
    umount2 libc::SYS_umount2;
    unshare libc::SYS_unshare;
    userfaultfd libc::SYS_userfaultfd;
    utimensat libc::SYS_utimensat;
    vhangup libc::SYS_vhangup;
    write libc::SYS_write;
};

#[cfg(target_arch = "x86_64")]
const NUMBERS_HERE: &[(&str, libc::c_long)] = numbers! {
    ioperm libc::SYS_ioperm;
    iopl libc::SYS_iopl;
    lookup_dcookie libc::SYS_lookup_dcookie;
    modify_ldt libc::SYS_modify_ldt;
    sysfs libc::SYS_sysfs;
    uselib libc::SYS_uselib;
    ustat libc::SYS_ustat;
    x32_getpid 0x4000_0000 + libc::SYS_getpid;
    x32_socket 0x4000_0000 + libc::SYS_socket;
};
#[cfg(not(target_arch = "x86_64"))]
const NUMBERS_HERE: &[(&str, libc::c_long)] = &[];
