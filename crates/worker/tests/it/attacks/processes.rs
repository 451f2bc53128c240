//! Attacks on processes outside, on the processes of the sandbox itself, and ways to outlive a call.

use super::Control::{PlainShell, Unconfined, Unfiltered};
use super::{Attack, Ending, bash, perl};

const UNTOUCHED: &str = "The process outside runs on as it was.";
const REFUSED: &str = "The call is refused.";
const UNREAD: &str = "Nothing of the secret is read.";
const ANSWERS: &str = "The sandbox goes on to answer.";
const DIES: &str = "No process is left.";

pub(super) const ATTACKS: &[Attack] = &[
    // Signals.
    bash("kill-a-process", "Kills a process outside.", UNTOUCHED, "kill -9 %victim%").proven(Unconfined),
    bash("stop-a-process", "Stops a process outside.", UNTOUCHED, "kill -STOP %victim%").proven(Unconfined),
    bash(
        "probe-a-process",
        "Asks by signal 0 whether a process outside exists.",
        REFUSED,
        "kill -0 %victim% && echo %breach%",
    )
    .proven(Unconfined),
    bash("kill-the-worker", "Sends a signal to the worker.", REFUSED, "kill -0 %worker% && echo %breach%")
        .proven(Unconfined),
    bash(
        "kill-the-supervisor",
        "Kills the supervisor that confines and ends the session.",
        "The supervisor runs on.",
        "kill -9 %supervisor%; kill -STOP %supervisor%; kill -9 $PPID",
    ),
    bash(
        "kill-the-file-helper",
        "Stops and kills the process of the file tools.",
        "It runs on.",
        "kill -0 %helper% && echo %breach%; kill -STOP %helper%; kill -9 %helper%",
    )
    .proven(Unconfined),
    bash("kill-everything", "Signals all processes that it may signal.", UNTOUCHED, "kill -9 -1"),
    bash("kill-the-group", "Signals its process group and session.", "The supervisor runs on.", "kill -9 0"),
    perl(
        "kill-every-number",
        "Signals every process id there can be.",
        UNTOUCHED,
        r#"
            open F, "<", "/proc/sys/kernel/pid_max"; my $last = <F> || 40000; $last = 70000 if $last > 70000;
            for (2..$last) { next if $_ == $$ || $_ == getppid;
            kill 9, $_ } kill 9, %victim%, %bystander%, %supervisor%, %helper%"#,
    ),
    perl(
        "signal-a-thread",
        "Signals by `tkill` and `tgkill`.",
        UNTOUCHED,
        r#"gained("tkill", %victim%, 9); gained("tgkill", %victim%, %victim%, 9)"#,
    )
    .proven(Unconfined),
    perl(
        "queue-a-signal",
        "Queues a signal with a forged sender.",
        UNTOUCHED,
        r#"
            my $info = pack "lllllx108", 9, 0, -1, 0, 0;
            gained("rt_sigqueueinfo", %victim%, 9, $info);
            gained("rt_tgsigqueueinfo", %victim%, %victim%, 9, $info)"#,
    )
    .proven(Unconfined),
    perl(
        "signal-by-descriptor",
        "Opens a process outside by `pidfd_open` and signals it.",
        UNTOUCHED,
        r#"my $p = sys("pidfd_open", %victim%, 0); gained("pidfd_send_signal", $p, 9, 0, 0)"#,
    )
    .proven(Unconfined),
    perl(
        "signal-by-owner",
        "Makes a process outside the owner of a socket, whose events then signal it (`F_SETOWN`, `F_SETSIG`).",
        UNTOUCHED,
        r#"
            socketpair(A, B, PF_UNIX, SOCK_STREAM, 0) or die; fcntl A, F_SETOWN, %victim%; fcntl A, 10, 9;
            fcntl A, F_SETFL, fcntl(A, F_GETFL, 0) | 020000 | 04000; syswrite B, "x";
            select undef, undef, undef, 0.05"#,
    )
    .proven(Unconfined),
    perl(
        "signal-by-pipe",
        "Does the same with a pipe and the default signal.",
        UNTOUCHED,
        r#"
            pipe A, B; fcntl A, F_SETOWN, %victim%; fcntl A, F_SETFL, fcntl(A, F_GETFL, 0) | 020000 | 04000;
            syswrite B, "x"; select undef, undef, undef, 0.05"#,
    )
    .proven(Unconfined),
    perl(
        "move-a-process",
        "Moves a process outside into its own group.",
        UNTOUCHED,
        r#"gained("setpgid", %victim%, $$)"#,
    ),
    // Memory and descriptors of others.
    perl(
        "trace-a-process",
        "Attaches to a process outside as a debugger.",
        REFUSED,
        r#"gained("ptrace", 0x4206, %victim%, 0, 0); gained("ptrace", 16, %victim%, 0, 0)"#,
    )
    .proven(Unconfined),
    perl(
        "be-traced-by-the-supervisor",
        "Makes its parent a debugger that does not know it.",
        REFUSED,
        r#"gained("ptrace", 0, 0, 0, 0)"#,
    )
    .proven(Unconfined),
    perl(
        "read-memory",
        "Reads the worker's memory by `process_vm_readv`.",
        UNREAD,
        r#"
            my $buffer = " " x 28; my $local = pack "JJ", at($buffer), 28; my $remote = pack "JJ", %memory%, 28;
            sys("process_vm_readv", %worker%, $local, 1, $remote, 1, 0); print $buffer"#,
    )
    .proven(Unfiltered),
    perl(
        "write-memory",
        "Writes the worker's memory by `process_vm_writev`.",
        "The memory stays as it is.",
        r#"
            my $buffer = "stolen"; my $local = pack "JJ", at($buffer), 6; my $remote = pack "JJ", %memory%, 6;
            sys("process_vm_writev", %worker%, $local, 1, $remote, 1, 0)"#,
    )
    .proven(Unfiltered),
    perl(
        "read-memory-file",
        "Reads the worker's memory through `/proc`.",
        UNREAD,
        r#"
            open F, "<", "/proc/%worker%/mem" or exit; sysseek F, %memory%, 0; sysread F, $x, 28; print $x"#,
    )
    .proven(Unconfined),
    perl(
        "write-memory-file",
        "Writes the worker's memory through `/proc`.",
        "The memory stays as it is.",
        r#"open F, "+<", "/proc/%worker%/mem" or exit; sysseek F, %memory%, 0; syswrite F, "stolen""#,
    )
    .proven(Unconfined),
    bash(
        "read-an-environment",
        "Reads the environment of a process outside.",
        UNREAD,
        "tr '\\0' ' ' </proc/%victim%/environ; tr '\\0' ' ' </proc/%victim%/task/%victim%/environ",
    )
    .proven(Unconfined),
    bash(
        "read-a-memory-map",
        "Reads where a process outside has its memory.",
        "Nothing is told.",
        "for f in maps smaps numa_maps auxv syscall stack pagemap; do [ \"$(head -c 8 \
         /proc/%victim%/$f | tr -d '\\0' | wc -c)\" -gt 0 ] && echo %breach% $f; done; true",
    )
    .proven(Unconfined),
    bash(
        "list-descriptors",
        "Lists the descriptors of a process outside.",
        "Nothing is told.",
        "ls /proc/%victim%/fd/ | grep -q 0 && echo %breach%; ls /proc/%victim%/fdinfo/ \
         /proc/%victim%/map_files/ | grep -q 0 && echo %breach%; true",
    )
    .proven(Unconfined)
    .open_at("landlock", "numbers of descriptors are seen where both run as one user; what they are is not."),
    perl(
        "steal-a-descriptor",
        "Takes a descriptor out of a process outside (`pidfd_getfd`).",
        UNREAD,
        r#"
            my $p = sys("pidfd_open", %victim%, 0); my $f = sys("pidfd_getfd", $p, 0, 0);
            open F, "<&=", $f and print <F>"#,
    )
    .proven(Unfiltered),
    perl(
        "compare-descriptors",
        "Asks whether it shares memory or descriptors with a process outside (`kcmp`).",
        REFUSED,
        r#"gained("kcmp", $$, %victim%, 1, 0, 0); gained("kcmp", $$, %worker%, 2, 0, 0)"#,
    ),
    perl(
        "advise-memory",
        "Gives advice about the memory of a process outside (`process_madvise`).",
        REFUSED,
        r#"
            my $p = sys("pidfd_open", %worker%, 0); my $v = pack "JJ", %memory% & ~4095, 4096;
            gained("process_madvise", $p, $v, 1, 20, 0)"#,
    )
    .proven(Unfiltered),
    perl(
        "move-memory",
        "Moves the memory of a process outside between nodes.",
        REFUSED,
        r#"
            my ($old, $new) = (pack("Q", 1), pack("Q", 1)); gained("migrate_pages", %victim%, 64, $old, $new);
            gained("move_pages", %victim%, 0, 0, 0, 0, 0)"#,
    ),
    perl(
        "release-memory",
        "Asks the kernel to release the memory of a process outside (`process_mrelease`).",
        REFUSED,
        r#"my $p = sys("pidfd_open", %victim%, 0); gained("process_mrelease", $p, 0)"#,
    ),
    perl(
        "robust-list",
        "Asks for the robust futexes of a process outside.",
        REFUSED,
        r#"
            my ($head, $length) = ("\0" x 8, "\0" x 8); gained("get_robust_list", %victim%, $head, $length)"#,
    )
    .proven(Unconfined),
    // Settings of others.
    perl(
        "priority-of-a-process",
        "Makes a process outside yield to others.",
        UNTOUCHED,
        r#"gained("setpriority", 0, %victim%, 19)"#,
    )
    .proven(Unconfined),
    perl(
        "priority-of-a-user",
        "Sets the priority of all processes of the worker's user at once.",
        REFUSED,
        // To the value that they have: should it work, nothing happens.
        r#"let_in("setpriority", 2, 0 + $<, 0)"#,
    ),
    perl(
        "disk-priority-of-a-process",
        "Changes the disk priority of a process outside.",
        REFUSED,
        r#"gained("ioprio_set", 1, %victim%, 3 << 13)"#,
    )
    .proven(Unconfined),
    perl(
        "limits-of-a-process",
        "Lowers the limits of a process outside.",
        UNTOUCHED,
        r#"my $limit = pack "QQ", 1, 1; gained("prlimit64", %victim%, 7, $limit, 0)"#,
    )
    .proven(Unconfined),
    perl(
        "limits-by-high-bits",
        "Does the same with a process id whose high bits are set, which the kernel drops.",
        UNTOUCHED,
        r#"my $limit = pack "QQ", 1, 1; gained("prlimit64", (1 << 32) | %victim%, 7, $limit, 0)"#,
    )
    .proven(Unconfined),
    perl(
        "processors-of-a-process",
        "Binds a process outside to one processor.",
        UNTOUCHED,
        r#"my $mask = pack "Q", 1; gained("sched_setaffinity", %victim%, 8, $mask)"#,
    )
    .proven(Unconfined),
    perl(
        "scheduling-of-a-process",
        "Changes how a process outside is scheduled, by three calls.",
        UNTOUCHED,
        r#"
            my $parameter = pack "l", 0; gained("sched_setscheduler", %victim%, 3, $parameter);
            gained("sched_setparam", %victim%, $parameter);
            my $attributes = pack "LLQlLQQQ", 48, 5, 0, 0, 0, 0, 0, 0;
            gained("sched_setattr", %victim%, $attributes, 0)"#,
    )
    .proven(Unconfined),
    bash(
        "badness-of-a-process",
        "Offers a process outside to the kernel when memory runs out.",
        UNTOUCHED,
        "echo 1000 >/proc/%victim%/oom_score_adj; echo 5000000 >/proc/%victim%/timerslack_ns",
    )
    .proven(Unconfined),
    bash(
        "spare-itself",
        "Protects its own processes when memory runs out, at the cost of others.",
        "Its own value does not fall.",
        "echo -1000 >/proc/self/oom_score_adj && echo %breach%; true",
    ),
    perl(
        "real-time",
        "Makes itself a real-time process that starves others.",
        REFUSED,
        r#"my $parameter = pack "l", 50; gained("sched_setscheduler", 0, 1, $parameter)"#,
    )
    .proven(super::Control::UnconfinedRoot),
    // The shell that the supervisor talks to.
    bash("kill-the-shell", "Kills the shell in the middle of its command.", ANSWERS, "kill -9 $$"),
    bash("stop-the-shell", "Stops the shell, so that no status comes.", ANSWERS, "kill -STOP $$").within_ms(500),
    bash("replace-the-shell", "Replaces the shell by another program.", ANSWERS, "exec sleep 1000").within_ms(500),
    bash(
        "close-the-descriptors",
        "Closes every descriptor of the shell.",
        ANSWERS,
        "for fd in {0..255}; do eval \"exec $fd>&-\"; done; true",
    )
    .within_ms(2000),
    bash(
        "forge-a-status",
        "Writes status lines to every descriptor, to end its call before its commands end.",
        "The call ends with the last command.",
        "for fd in {3..255}; do for n in {1..40}; do echo \"$n 0\" >&$fd; done; done 2>/dev/null; \
         sleep 0.3; echo the real end; (exit 7)",
    )
    .answers(|text| text.ends_with("the real end")),
    bash(
        "forge-a-status-from-a-child",
        "Leaves a process that writes status lines for the commands to come.",
        "The next call is answered by its own command.",
        "(while :; do for fd in 198 199 10 11 12; do for n in {1..40}; do echo \"$n 0\" >&$fd; \
         done; done; done) 2>/dev/null & true",
    ),
    bash(
        "shadow-the-builtins",
        "Replaces the shell's own commands by functions.",
        ANSWERS,
        "builtin() { :; }; eval() { echo %breach%; }; printf() { echo 99 0; }; true",
    )
    .within_ms(1000),
    bash(
        "trap-everything",
        "Runs a command of its own after every command and at the end.",
        ANSWERS,
        "trap 'echo trapped' DEBUG EXIT ERR; trap '' TERM INT HUP QUIT",
    ),
    bash(
        "unfinished-input",
        "Leaves quotes and documents open, so that what follows becomes part of them.",
        ANSWERS,
        "echo ' \" $( <<END",
    ),
    bash(
        "quote-out-of-the-command",
        "Ends the quoting in which the command is handed to the shell.",
        "It is a command like any other.",
        "'; (true >&199) 2>/dev/null && printf %s%s BRE ACH; '\n\\",
    ),
    bash(
        "read-the-next-command",
        "Reads from where the shell gets its commands.",
        "There is nothing to read.",
        "cat; cat <&0; read -t 1 line && echo %breach%; for fd in 10 11 12 255; do read -t 0.05 \
         -u $fd line && echo \"%breach% $line\"; done 2>/dev/null; true",
    ),
    // Outliving the call.
    bash(
        "outlive-a-timeout",
        "Ignores every signal that can be ignored.",
        DIES,
        "bash -c 'trap \"\" TERM HUP INT QUIT; while :; do sleep 1000; done' &",
    )
    .ending(Ending::TimedOut)
    .proven(PlainShell),
    bash("outlive-an-interrupt", "Starts a session of its own.", DIES, "setsid sleep 1000 & sleep 0.05")
        .ending(Ending::Cancelled)
        .proven(PlainShell),
    bash(
        "outlive-a-restart",
        "Leaves through two forks and a session of its own.",
        DIES,
        "(setsid bash -c '(sleep 1000 &) &' &); sleep 0.05",
    )
    .proven(PlainShell),
    bash(
        "outlive-the-session",
        "Becomes a daemon with `nohup` and `disown`.",
        DIES,
        "nohup sleep 1000 >/dev/null 2>&1 & disown -a; sleep 0.05",
    )
    .ending(Ending::Closed)
    .proven(PlainShell),
    bash(
        "outlive-the-worker",
        "Leaves a daemon behind for the moment when the worker dies.",
        DIES,
        "(setsid sleep 1000 &); sleep 0.05",
    )
    .ending(Ending::WorkerDied)
    .proven(PlainShell),
    bash(
        "outlive-by-stopping",
        "Stops itself, so that it cannot be told to end.",
        DIES,
        "bash -c 'kill -STOP $$; sleep 1000' & sleep 0.05",
    )
    .ending(Ending::TimedOut),
    perl(
        "outlive-by-name",
        "Takes a name that looks like another line of `/proc`.",
        DIES,
        r#"exit if fork; exit if fork; $0 = "x) S 1 1 (ATTACK=%token%"; sleep 1000"#,
    )
    .ending(Ending::TimedOut)
    .proven(PlainShell),
    perl(
        "outlive-by-multiplying",
        "Replaces every process that is killed by two.",
        DIES,
        r#"
            exit if fork; for (1..6) { last unless defined fork } $SIG{CHLD} = "IGNORE";
            for (1..200000) { my $pid = fork; next unless defined $pid;
            if ($pid) { exit if rand() < 0.5 } else { POSIX::setsid() if $_ % 2; } } sleep 1000"#,
    )
    .ending(Ending::TimedOut),
    perl(
        "outlive-by-execution",
        "Executes itself again and again.",
        DIES,
        r#"exit if fork; exec "bash", "-c", "while :; do exec bash -c 'exec sleep 1000'; done""#,
    )
    .proven(PlainShell),
    perl(
        "outlive-without-a-parent",
        "Makes a child with the parent of its parent (`CLONE_PARENT`).",
        DIES,
        r#"my $pid = sys("clone", 0x8000 | 17, 0, 0, 0, 0); if ($pid == 0) { sleep 1000 } exit"#,
    )
    .ending(Ending::Cancelled)
    .proven(PlainShell),
    perl(
        "become-a-reaper",
        "Makes itself the reaper of its descendants, so that the supervisor does not see orphans.",
        DIES,
        r#"
            exit if fork; sys("prctl", 36, 1, 0, 0, 0); unless (fork) { exit if fork; sleep 1000 } sleep 1000"#,
    )
    .ending(Ending::TimedOut)
    .proven(PlainShell),
    perl(
        "survive-its-parent",
        "Takes back the signal that comes with the death of its parent.",
        DIES,
        r#"exit if fork; sys("prctl", 1, 0, 0, 0, 0); sleep 1000"#,
    )
    .ending(Ending::WorkerDied)
    .proven(PlainShell),
];
