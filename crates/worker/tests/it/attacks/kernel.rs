//! Attacks on the kernel's own interfaces: namespaces, privileges, filters, and calls with a long record of holes.

use super::Control::{Unconfined, UnconfinedRoot, Unfiltered};
use super::{Attack, bash, perl};

const REFUSED: &str = "The call is refused.";
const UNREAD: &str = "Nothing of the secret is read.";
const UNSHARED: &str = "The host's table does not hold it.";

pub(super) const ATTACKS: &[Attack] = &[
    // Namespaces.
    perl(
        "new-user-namespace",
        "Makes a user namespace, in which it would have every capability.",
        REFUSED,
        r#"gained("unshare", 0x10000000)"#,
    )
    .proven(Unfiltered),
    perl(
        "new-namespaces",
        "Makes each other kind of namespace.",
        REFUSED,
        r#"
            gained("unshare", $_) for 0x20000, 0x40000000, 0x20000000, 0x8000000, 0x4000000, 0x2000000, 0x80"#,
    )
    .proven(UnconfinedRoot),
    perl(
        "clone-with-a-namespace",
        "Asks for a user namespace in the call that starts a process.",
        REFUSED,
        r#"
            my $pid = sys("clone", 0x10000000 | 17, 0, 0, 0, 0); breach("clone") if $pid >= 0; exit if $pid == 0"#,
    )
    .proven(Unfiltered),
    perl(
        "clone3-with-a-namespace",
        "Does the same with `clone3`, whose flags no filter can read.",
        REFUSED,
        r#"
            my $arguments = pack "Q8", 0x10000000, 0, 0, 0, 17, 0, 0, 0;
            my $pid = sys("clone3", $arguments, 64); breach("clone3") if $pid >= 0; exit if $pid == 0"#,
    )
    .proven(Unfiltered),
    perl(
        "enter-a-namespace",
        "Enters the namespaces of a process outside.",
        REFUSED,
        r#"
            my $p = sys("pidfd_open", %victim%, 0); gained("setns", $p, $_) for 0x4000000, 0x20000, 0x40000000;
            for (qw(mnt net pid user uts ipc)) { open F, "<", "/proc/1/ns/$_" or next;
            gained("setns", fileno(F), 0) }"#,
    )
    .proven(UnconfinedRoot),
    // Privileges.
    perl(
        "use-a-capability",
        "Looks for a capability that was left, and takes back all.",
        "There is none.",
        r#"
            my ($header, $data) = (pack("Ll", 0x20080522, 0), "\0" x 24); sys("capget", $header, $data);
            breach("capabilities") if $data =~ /[^\0]/;
            my $wanted = pack "L6", 1, 1, 1, 0, 0, 0; gained("capset", $header, $wanted);
            gained("prctl", 47, 2, 0, 0, 0)"#,
    )
    .proven(UnconfinedRoot),
    perl(
        "become-somebody-else",
        "Changes its user, group and groups.",
        REFUSED,
        r#"
            gained("setresuid", 12345, 12345, 12345); gained("setgroups", 0, 0); gained("setgid", 12345);
            gained("setuid", 0) if $<"#,
    )
    .proven(UnconfinedRoot),
    perl(
        "gain-by-execution",
        "Asks whether a set-id program would still change its user.",
        "It would not.",
        r#"
            sys("prctl", 38, 0, 0, 0, 0); breach("no_new_privs is off") if sys("prctl", 39, 0, 0, 0, 0) != 1"#,
    )
    .proven(Unfiltered),
    bash(
        "run-set-id-programs",
        "Runs `su` and its like to become another user.",
        "They do not change the user.",
        "[ \"$(su nobody -s /bin/sh -c 'id -u' </dev/null)\" = 65534 ] && echo %breach%; for p in \
         sudo pkexec; do [ \"$($p -n -u nobody id -u </dev/null)\" = 65534 ] && echo %breach%; \
         done; [ $(id -u) = 0 ] || su -c 'echo %breach%' </dev/null; true",
    )
    .proven(UnconfinedRoot),
    bash(
        "change-passwords",
        "Changes passwords and accounts through the system's programs.",
        "Nothing is changed.",
        "echo root:x | chpasswd && echo %breach%; passwd -d %token% && echo %breach%; useradd \
         %token% && userdel %token% && echo %breach%; true",
    ),
    // Its own confinement.
    perl(
        "replace-the-filter",
        "Installs a seccomp filter that allows everything, then tries again.",
        REFUSED,
        r#"
            my $code = pack "SCCL", 6, 0, 0, 0x7fff0000; my $filter = pack "Sx6J", 1, at($code);
            sys("prctl", 38, 1, 0, 0, 0); sys("seccomp", 1, 0, $filter); gained("unshare", 0x10000000)"#,
    )
    .proven(Unfiltered),
    perl(
        "answer-its-own-calls",
        "Installs a filter that hands caught calls to itself instead of the supervisor.",
        REFUSED,
        r#"
            my $code = pack "SCCL", 6, 0, 0, 0x7fff0000; my $filter = pack "Sx6J", 1, at($code);
            sys("prctl", 38, 1, 0, 0, 0); gained("seccomp", 1, 8, $filter)"#,
    )
    .proven(Unfiltered),
    perl(
        "outrank-the-supervisor",
        "Installs a filter that lets a tracer decide about the calls that others decide about.",
        "The others decide.",
        r#"
            my $code = join "", map { pack "SCCL", @$_ } [0x20, 0, 0, 0], [0x15, 2, 0, $n{fchmodat2}], [0x15,
            1, 0, $n{unshare}], [6, 0, 0, 0x7fff0000], [6, 0, 0, 0x7ff00000];
            my $filter = pack "Sx6J", 5, at($code);
            breach("no filter") if sys("seccomp", 1, 0, $filter) == -1; my $own = "own"; open F, ">", $own;
            sys("fchmodat2", -100, $own, 06755, 0); my $secret = "%secret%";
            gained("fchmodat2", -100, $secret, 0777, 0); gained("unshare", 0x10000000)"#,
    ),
    perl(
        "landlock-again",
        "Enters a Landlock domain of its own that allows everything.",
        UNREAD,
        r#"
            my $attribute = pack "Q", 0x7fff; my $ruleset = sys("landlock_create_ruleset", $attribute, 8, 0);
            my $root = "/"; my $d = sys("openat", -100, $root, 0x200000);
            my $rule = pack "Ql", 0x7fff, $d; sys("landlock_add_rule", $ruleset, 1, $rule, 0);
            sys("landlock_restrict_self", $ruleset, 0); open F, "<", "%secret%"; print <F>"#,
    )
    .proven(Unconfined),
    perl(
        "landlock-to-the-brim",
        "Stacks domains until the kernel takes no more, for a child to have none.",
        UNREAD,
        r#"
            my $attribute = pack "Q", 1; for (1..20) { my $r = sys("landlock_create_ruleset", $attribute, 8,
            0); sys("landlock_restrict_self", $r, 0) } system "cat %secret% 2>/dev/null";
            open F, "<", "%secret%"; print <F>"#,
    ),
    perl(
        "foreign-call-numbers",
        "Makes calls by the numbers of the x32 interface.",
        REFUSED,
        r#"gained("x32_getpid"); gained("x32_socket", 16, 3, 0)"#,
    ),
    perl(
        "foreign-instructions",
        "Runs a program that makes its calls by the 32-bit interface.",
        "It does not run.",
        r#"
            exit unless exists $n{iopl}; my $code = pack "H*",
            "b814000000cd8085c07e0cbf2a000000b83c0000000f0531ffb83c0000000f05"; my $length = 120 + length $code;
            open F, ">", "p"; print F pack("C16SSLQQQLS6", 127, 69, 76, 70, 2, 1, 1, (0) x 9, 2, 62, 1,
            0x400078, 64, 0, 0, 64, 56, 1, 0, 0, 0), pack("LLQ6", 1, 5, 0, 0x400000, 0x400000, $length,
            $length, 4096), $code;
            close F; chmod 0755, "p"; system "./p"; breach("the call was answered") if $? >> 8 == 42"#,
    ),
    perl(
        "high-bits-of-a-call",
        "Sets the high bits of arguments that the kernel reads as 32 bits wide.",
        REFUSED,
        r#"
            my $high = 1 << 32; gained("unshare", $high | 0x10000000);
            my $pid = sys("clone", $high | 0x10000000 | 17, 0, 0, 0, 0); breach("clone") if $pid >= 0;
            exit if $pid == 0;
            my $x = "x"; my $result = sys("ioctl", 0, $high | 0x5412, $x);
            breach("ioctl") unless $result == -1 && $!{EPERM}"#,
    )
    .proven(Unconfined),
    // Interfaces with a record.
    perl(
        "io-uring",
        "Sets up a ring through which calls pass no filter.",
        REFUSED,
        r#"
            let_in("io_uring_setup", 1, 0); let_in("io_uring_enter", -1, 0, 0, 0, 0, 0);
            let_in("io_uring_register", -1, 0, 0, 0)"#,
    )
    .proven(Unfiltered),
    perl("bpf", "Loads a program into the kernel.", REFUSED, r#"let_in("bpf", 0, 0, 0); let_in("bpf", 5, 0, 0)"#)
        .proven(UnconfinedRoot),
    perl("performance-events", "Opens performance counters.", REFUSED, r#"let_in("perf_event_open", 0, 0, -1, -1, 0)"#)
        .proven(Unfiltered),
    perl(
        "user-faults",
        "Handles the page faults of the kernel itself.",
        REFUSED,
        r#"let_in("userfaultfd", 0x7fffffff)"#,
    )
    .proven(Unfiltered),
    perl(
        "keyrings",
        "Reads, adds and requests keys of the worker's user.",
        REFUSED,
        r#"
            my ($kind, $name) = ("user", "%token%"); let_in("keyctl", 0, -4, 0);
            let_in("keyctl", 11, -4, 0, 0); gained("add_key", $kind, $name, $name, 4, -1);
            let_in("request_key", $kind, $name, 0, 0)"#,
    )
    .proven(Unfiltered),
    perl(
        "modules",
        "Loads and unloads modules.",
        REFUSED,
        r#"
            my $none = "nowhere"; let_in("init_module", $none, 4, $none);
            let_in("finit_module", -1, $none, 0); let_in("delete_module", $none, 0x800)"#,
    ),
    perl(
        "another-kernel",
        "Restarts the machine or loads another kernel.",
        REFUSED,
        r#"
            let_in("reboot", 0, 0, 0, 0); let_in("kexec_load", 0, 0, 0, -1);
            let_in("kexec_file_load", -1, -1, 0, 0, -1)"#,
    )
    .proven(UnconfinedRoot),
    perl(
        "swap-and-accounting",
        "Swaps to, and accounts into, files of its choice.",
        REFUSED,
        r#"
            my $path = "/nowhere"; let_in("swapon", $path, 0); let_in("swapoff", $path); let_in("acct", $path)"#,
    )
    .proven(UnconfinedRoot),
    perl(
        "kernel-log",
        "Reads and clears the kernel's log.",
        REFUSED,
        r#"let_in("syslog", 10, 0, 0); let_in("syslog", 3, -1, 0)"#,
    )
    .proven(UnconfinedRoot),
    perl(
        "clocks",
        "Sets and slews the machine's clock.",
        REFUSED,
        r#"
            let_in("settimeofday", 0, 0); let_in("clock_settime", 0, -1); my $slew = "\0" x 208;
            let_in("adjtimex", $slew); let_in("clock_adjtime", 0, $slew)"#,
    )
    .proven(UnconfinedRoot),
    perl(
        "names-of-the-machine",
        "Changes the names of the machine.",
        REFUSED,
        r#"
            my $name = "%token%"; let_in("sethostname", $name, 4096); let_in("setdomainname", $name, 4096)"#,
    )
    .proven(UnconfinedRoot),
    perl(
        "personality",
        "Switches off the randomisation of addresses for programs that it starts.",
        REFUSED,
        r#"gained("personality", 0x40000)"#,
    )
    .proven(Unfiltered),
    perl(
        "ports-of-the-machine",
        "Asks for direct access to the machine's ports, and for descriptor tables of its own.",
        REFUSED,
        r#"
            let_in("iopl", 0); let_in("ioperm", 0, 1, 0); let_in("modify_ldt", 0, -1, 0); let_in("sysfs", 3);
            let_in("ustat", 0, -1); let_in("uselib", 0); let_in("lookup_dcookie", 0, 0, 0)"#,
    ),
    perl(
        "feed-a-terminal",
        "Puts keystrokes into the terminal of whoever started the worker.",
        REFUSED,
        r#"
            my $x = "x"; for (0x5412, 0x541c) { my $result = sys("ioctl", 0, $_, $x);
            breach("ioctl $_") unless $result == -1 && $!{EPERM} } open T, "+>", "/dev/tty" and breach("tty")"#,
    )
    .proven(Unconfined),
    // Tables that the host shares.
    perl(
        "shared-memory",
        "Makes a segment of System V shared memory, which other sessions and databases share.",
        UNSHARED,
        r#"my $id = sys("shmget", %key%, 4096, 01666); sys("shmat", $id, 0, 0)"#,
    )
    .proven(Unfiltered),
    perl("message-queue", "Makes a System V message queue.", UNSHARED, r#"sys("msgget", %key%, 01666)"#)
        .proven(Unfiltered),
    perl("semaphores", "Makes System V semaphores.", UNSHARED, r#"sys("semget", %key%, 1, 01666)"#).proven(Unfiltered),
    perl(
        "posix-queue",
        "Makes and removes a POSIX message queue.",
        REFUSED,
        r#"my $name = "%token%"; gained("mq_open", $name, 0102, 0666, 0); gained("mq_unlink", $name)"#,
    )
    .proven(Unfiltered),
];
