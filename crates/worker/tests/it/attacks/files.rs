//! Attacks on files outside the workspace, through bash.

use super::Control::{PlainShell, Unconfined, UnconfinedRoot, Unfiltered};
use super::{Attack, bash, perl};

const UNREAD: &str = "Nothing of the secret is read.";
const UNCHANGED: &str = "Nothing outside changes.";
const REFUSED: &str = "The call is refused.";

pub(super) const ATTACKS: &[Attack] = &[
    // By name.
    bash("read-by-dotdot", "Climbs out of the workspace with `..`.", UNREAD, "cat ../../data/secret")
        .proven(Unconfined),
    bash("read-by-absolute-path", "Names a file of the server by its absolute path.", UNREAD, "cat %secret%")
        .proven(Unconfined),
    bash("read-by-redirection", "Lets the shell itself open the file.", UNREAD, "echo \"$(<%secret%)\"")
        .proven(Unconfined),
    bash("source-a-secret", "Sources a secret, so that the shell's error quotes it.", UNREAD, ". %secret%")
        .proven(Unconfined),
    bash(
        "list-a-folder",
        "Lists the server's data folder.",
        "No name is told.",
        "ls %data% | grep -q secret && echo %breach%",
    )
    .proven(Unconfined),
    bash(
        "list-by-glob",
        "Lets the shell expand names in the data folder.",
        "No name is told.",
        "[ -n \"$(echo %data%/s*t)\" ] && set -- %data%/s*t && [ \"$1\" = %secret% ] && [ \
         \"$(echo %data%/*)\" != '%data%/*' ] && echo %breach%",
    )
    .proven(Unconfined),
    bash("run-a-program", "Runs a script of the data folder.", "It does not run.", "%data%/program").proven(Unconfined),
    bash(
        "run-by-the-loader",
        "Lets the dynamic loader run a program of the data folder.",
        "It does not run.",
        "for loader in /lib*/ld-linux*.so* /lib/*/ld-linux*.so*; do \"$loader\" %data%/echo \
         %breach% && break; done",
    )
    .proven(Unconfined),
    bash(
        "copy-a-folder",
        "Copies the data folder into the workspace.",
        UNREAD,
        "cp -a %data%/. stolen; cat stolen/secret",
    )
    .proven(Unconfined),
    bash("pack-a-folder", "Packs the data folder into an archive.", UNREAD, "tar cf - -C %data% secret | tr -d '\\0'")
        .proven(Unconfined),
    // By link.
    bash("symlink-to-a-file", "Reads through a symbolic link to the secret.", UNREAD, "ln -s %secret% l; cat l")
        .proven(Unconfined),
    bash(
        "symlink-to-a-folder",
        "Reads through a symbolic link to the data folder.",
        UNREAD,
        "ln -s %data% d; cat d/secret",
    )
    .proven(Unconfined),
    bash(
        "symlink-chain",
        "Reads through links that lead to each other and then out.",
        UNREAD,
        "ln -s b a; ln -s c/.. b; mkdir x; ln -s x/../d c; ln -s %data%/empty d; cat a/secret",
    )
    .proven(Unconfined),
    bash(
        "symlink-to-the-root",
        "Reads through a link to the root of the file system.",
        UNREAD,
        "ln -s / r; cat r%secret%",
    )
    .proven(Unconfined),
    bash("hard-link-to-a-secret", "Makes a hard link to the secret and reads that.", UNREAD, "ln %secret% h; cat h")
        .proven(Unconfined),
    perl(
        "hard-link-by-descriptor",
        "Links a system program into the workspace by its descriptor, to change it there.",
        "The link is not made.",
        r#"
            sysopen(F, "/usr/bin/env", 0); my ($from, $to) = ("/proc/self/fd/" . fileno(F), "env");
            gained("linkat", -100, $from, -100, $to, 0x400); gained("linkat", fileno(F), "", -100, $to, 0x1000);
            link("/usr/bin/env", "env") and breach("link")"#,
    ),
    bash("rename-a-secret", "Moves the secret into the workspace.", UNREAD, "mv %secret% stolen && cat stolen")
        .proven(Unconfined),
    bash(
        "rename-a-folder",
        "Moves the data folder into the workspace.",
        UNREAD,
        "mv %data% stolen && cat stolen/secret",
    )
    .proven(Unconfined),
    perl(
        "exchange-names",
        "Exchanges a file of its own with the secret in one step.",
        UNCHANGED,
        r#"
            open F, ">", "own"; close F; my ($own, $secret) = ("own", "%secret%");
            sys("renameat2", -100, $own, -100, $secret, 2); open F, "<", "own"; print <F>"#,
    )
    .proven(Unconfined),
    bash(
        "rename-over-a-secret",
        "Moves a file of its own over the secret.",
        UNCHANGED,
        "echo x >own; mv -f own %secret%",
    )
    .proven(Unconfined),
    bash(
        "swap-links-under-bash",
        "Swaps a folder with a link while reading through it.",
        UNREAD,
        "mkdir real; echo harmless >real/secret; (for i in {1..60}; do ln -sfn %data% x; mv -T x \
         y; mv -T real x; mv -T x real; done) & for i in {1..60}; do cat x/secret y/secret; done \
         2>/dev/null | sort -u; wait",
    )
    .proven(Unconfined),
    // By descriptor and handle.
    perl(
        "open-a-path-only",
        "Opens the data folder with `O_PATH` and a file below that descriptor.",
        UNREAD,
        r#"
            my ($data, $secret) = ("%data%", "secret"); my $d = sys("openat", -100, $data, 0x200000);
            my $f = sys("openat", $d, $secret, 0);
            open F, "<&=", $f and print <F>"#,
    )
    .proven(Unconfined),
    perl(
        "change-folder-by-descriptor",
        "Makes the data folder its current one by descriptor, then reads a relative name.",
        UNREAD,
        r#"
            my $data = "%data%"; my $d = sys("openat", -100, $data, 0x200000); sys("fchdir", $d);
            open F, "<", "secret"; print <F>"#,
    )
    .proven(Unconfined),
    perl(
        "open-in-another-root",
        "Resolves the path in a root of its choice (`openat2`, `RESOLVE_IN_ROOT`).",
        UNREAD,
        r#"
            my ($root, $secret) = ("/", "%secret%"); my $d = sys("openat", -100, $root, 0x200000);
            my $how = pack "QQQ", 0, 0, 0x10; my $f = sys("openat2", $d, $secret, $how, 24);
            open F, "<&=", $f and print <F>"#,
    )
    .proven(Unconfined),
    perl(
        "open-by-handle",
        "Asks for the handle of the secret and opens the handle.",
        UNREAD,
        r#"
            my ($secret, $root) = ("%secret%", "%data%"); my $handle = pack("Ll", 128, 0) . "\0" x 128;
            my $mount = pack "l", 0;
            sys("name_to_handle_at", -100, $secret, $handle, $mount, 0); my $d = sys("openat", -100, $root, 0);
            my $f = sys("open_by_handle_at", $d == -1 ? -100 : $d, $handle, 0); open F, "<&=", $f and print <F>"#,
    )
    .proven(UnconfinedRoot),
    bash("root-of-itself", "Reads below `/proc/self/root`.", UNREAD, "cat /proc/self/root%secret%").proven(Unconfined),
    bash(
        "root-of-a-process",
        "Reads below the root of a process outside.",
        UNREAD,
        "cat /proc/%victim%/root%secret% /proc/1/root%secret%",
    )
    .proven(Unconfined),
    bash(
        "folder-of-a-process",
        "Reads below the current folder of a process outside.",
        UNREAD,
        "cat /proc/%victim%/cwd/secret",
    )
    .proven(Unconfined),
    bash(
        "descriptor-of-a-process",
        "Opens the descriptor of a process outside.",
        UNREAD,
        "cat /proc/%victim%/fd/0; cat /proc/%victim%/task/%victim%/fd/0",
    )
    .proven(Unconfined),
    perl(
        "program-from-memory",
        "Runs a program from memory, so that it has no path that could be confined.",
        UNREAD,
        r#"
            my $name = "m"; my $m = sys("memfd_create", $name, 0); open F, "<", "/bin/cat"; local $/;
            my $bytes = <F>;
            sys("write", $m, $bytes, length $bytes); my ($cat, $secret, $empty) = ("cat\0", "%secret%\0", "");
            my $arguments = pack "JJJ", at($cat), at($secret), 0; my $environment = pack "J", 0;
            sys("execveat", $m, $empty, $arguments, $environment, 0x1000)"#,
    )
    .proven(Unconfined),
    // Changing.
    bash("overwrite-a-file", "Writes over the secret.", UNCHANGED, "echo x >%secret%").proven(Unconfined),
    bash("append-to-a-file", "Appends to the secret.", UNCHANGED, "echo x >>%secret%").proven(Unconfined),
    perl(
        "truncate-a-file",
        "Cuts the secret off by path.",
        UNCHANGED,
        r#"my $path = "%secret%"; sys("truncate", $path, 0)"#,
    )
    .proven(Unconfined),
    bash("create-a-file", "Creates a file in the data folder.", UNCHANGED, ": >%data%/new").proven(Unconfined),
    bash("create-a-folder", "Creates a folder in the data folder.", UNCHANGED, "mkdir %data%/new").proven(Unconfined),
    bash("create-a-link", "Creates a symbolic link in the data folder.", UNCHANGED, "ln -s x %data%/new")
        .proven(Unconfined),
    bash("create-a-pipe", "Creates a named pipe in the data folder.", UNCHANGED, "mkfifo %data%/new")
        .proven(Unconfined),
    bash(
        "link-into-a-folder",
        "Makes a hard link of its own file in the data folder.",
        UNCHANGED,
        "echo x >own; ln own %data%/new",
    )
    .proven(Unconfined),
    bash("remove-a-file", "Removes the secret.", UNCHANGED, "rm -f %secret%").proven(Unconfined),
    bash("remove-a-folder", "Removes an empty folder of the server.", UNCHANGED, "rmdir %data%/empty")
        .proven(Unconfined),
    bash("open-a-folder-to-all", "Makes the data folder readable for all users.", UNCHANGED, "chmod 777 %data%")
        .proven(Unconfined),
    bash("lock-a-folder", "Takes all rights from the data folder's owner.", UNCHANGED, "chmod 000 %data%")
        .proven(Unconfined),
    bash(
        "mode-of-a-file",
        "Changes the mode of the secret, directly and through a link.",
        UNCHANGED,
        "chmod 640 %secret%; ln -s %secret% l; chmod 604 l; chmod -R a+rw ../../data",
    )
    .proven(Unconfined),
    perl(
        "mode-by-the-newest-call",
        "Changes the mode with `fchmodat2`.",
        UNCHANGED,
        r#"my $path = "%secret%"; sys("fchmodat2", -100, $path, 0777, 0)"#,
    )
    .proven(Unfiltered),
    perl(
        "mode-by-a-racing-link",
        "Swaps a link while `chmod` waits for the supervisor's answer.",
        UNCHANGED,
        r#"
            open F, ">", "own"; close F; my $pid = fork; if (!$pid) { for (1..1500) { unlink "x";
            symlink "%secret%", "x"; unlink "x"; link "own", "x" } exit }
            chmod 0777, "x" until waitpid $pid, 1"#,
    )
    .proven(Unconfined),
    bash(
        "owner-of-a-file",
        "Gives the secret to another user.",
        UNCHANGED,
        "chown 12345:12345 %secret%; chown -h 12345 %data%/link",
    )
    .proven(UnconfinedRoot),
    perl(
        "attribute-of-a-file",
        "Sets an extended attribute of the secret, by the old call and the new.",
        UNCHANGED,
        r#"
            my ($path, $name, $value) = ("%secret%", "user.stolen", "x");
            sys("setxattr", $path, $name, $value, 1, 0);
            my $arguments = pack "QLL", at($value), 1, 0; sys("setxattrat", -100, $path, 0, $name, $arguments,
            16)"#,
    )
    .proven(Unconfined),
    bash("times-of-a-file", "Sets the times of the secret.", UNCHANGED, "touch -c -d @1000 %secret%")
        .proven(Unconfined),
    perl(
        "flags-of-a-system-file",
        "Sets the inode flags of a system program through a descriptor that may only read.",
        REFUSED,
        r#"
            sysopen(F, "/usr/bin/env", 0) or exit; my $flags = pack "L!", 0;
            ioctl(F, 0x80086601, $flags) and ioctl(F, 0x40086602, $flags) and breach("flags were set")"#,
    ),
    perl(
        "times-of-a-system-file",
        "Sets the times of a system program through a descriptor that may only read.",
        REFUSED,
        r#"
            sysopen(F, "/usr/bin/env", 0) or exit; my @times = (stat F)[8, 9];
            my $spec = pack "qqqq", $times[0], 0, 0, 0x3ffffffe;
            my $result = sys("utimensat", fileno(F), 0, $spec, 0); breach("times were set") if $result != -1"#,
    ),
    // Metadata.
    bash(
        "size-of-a-file",
        "Asks for the size of a file that it cannot open.",
        "The file seems not to exist.",
        "[ \"$(stat -c %s %secret%)\" = 28 ] && echo %breach%",
    )
    .proven(Unconfined)
    .open_at("landlock", "Landlock hides content and names of folders, not metadata."),
    bash("target-of-a-link", "Reads the target of a symbolic link in the data folder.", UNREAD, "readlink %data%/link")
        .proven(Unconfined)
        .open_at("landlock", "Landlock hides content and names of folders, not targets of links."),
    perl(
        "attribute-value",
        "Reads an extended attribute of a file that it cannot open.",
        UNREAD,
        r#"
            my ($path, $name, $value) = ("%secret%", "user.secret", " " x 64);
            sys("getxattr", $path, $name, $value, 64); print $value"#,
    )
    .proven(Unconfined),
    perl(
        "watch-a-folder",
        "Watches the data folder for names (inotify).",
        REFUSED,
        r#"
            my $path = "%data%"; my $i = sys("inotify_init1", 0); gained("inotify_add_watch", $i, $path, 0xfff)"#,
    )
    .proven(Unconfined),
    perl(
        "watch-a-file-system",
        "Watches a whole file system (fanotify).",
        REFUSED,
        r#"let_in("fanotify_init", 0xffffff, 0)"#,
    )
    .proven(UnconfinedRoot),
    // Roots and mounts.
    perl(
        "chroot-out",
        "Makes a folder its root and climbs out of it.",
        UNREAD,
        r#"
            mkdir "r"; chroot "r" and breach("chroot"); chdir "../../../../../../../.."; chroot ".";
            open F, "<", "%secret%"; print <F>"#,
    )
    .proven(UnconfinedRoot),
    perl("pivot-root", "Exchanges the root.", REFUSED, r#"my $x = "x"; let_in("pivot_root", $x, $x)"#)
        .proven(UnconfinedRoot),
    perl(
        "bind-mount",
        "Mounts the data folder into the workspace.",
        UNREAD,
        r#"
            mkdir "%token%"; my ($from, $to, $none) = ("%data%", "%token%", "");
            sys("mount", $from, $to, $none, 4096, $none); open F, "<", "%token%/secret"; print <F>;
            my ($bad) = ("/nowhere"); let_in("mount", $bad, $bad, $none, 4096, $none)"#,
    ),
    perl(
        "mount-by-descriptor",
        "Clones a mount with the newer calls and opens a file below.",
        REFUSED,
        r#"
            my ($data, $tmpfs, $empty) = ("%data%", "tmpfs", ""); my $d = gained("open_tree", -100, $data, 1);
            sys("open_tree_attr", -100, $data, 1, 0, 0);
            gained("fsopen", $tmpfs, 0); gained("fspick", -100, $data, 0); my $secret = "secret";
            my $f = sys("openat", $d, $secret, 0); open F, "<&=", $f and print <F>"#,
    )
    .proven(UnconfinedRoot),
    perl(
        "change-a-mount",
        "Moves, changes and configures mounts.",
        REFUSED,
        r#"
            my $x = "/nowhere"; let_in("move_mount", -1, $x, -1, $x, 0);
            let_in("mount_setattr", -1, $x, 0, $x, 32);
            let_in("fsconfig", -1, 0, $x, $x, 0); let_in("fsmount", -1, 0, 0)"#,
    )
    .proven(UnconfinedRoot),
    perl("unmount", "Unmounts a folder of the host.", REFUSED, r#"my $x = "/nowhere"; let_in("umount2", $x, 2)"#)
        .proven(UnconfinedRoot),
    perl(
        "quotas",
        "Changes quotas of the host's file systems.",
        REFUSED,
        r#"
            my $x = "/dev/nowhere"; let_in("quotactl", 0x800002 << 8, $x, 0, $x);
            let_in("quotactl_fd", 0, 0x800002 << 8, 0, $x)"#,
    ),
    // Devices and the kernel's file systems.
    bash(
        "make-a-device",
        "Makes a device file of the disk in the workspace.",
        "There is no device file.",
        "mknod disk b 8 0; mknod mem c 1 1; mknod null c 1 3",
    )
    .proven(UnconfinedRoot),
    bash(
        "open-devices",
        "Opens every device but the five harmless ones.",
        "None opens.",
        "for d in /dev/* /dev/*/*; do case $d in \
         /dev/null|/dev/zero|/dev/full|/dev/random|/dev/urandom|/dev/std*|/dev/fd*) continue;; \
         esac; [ -b $d -o -c $d ] && (exec 3<$d) 2>/dev/null && echo %breach% $d; done; (exec \
         3</dev/kmsg) && echo %breach% kmsg; (exec 3</dev/mem) && echo %breach% mem; (exec \
         3<>/dev/ptmx) && echo %breach% ptmx; true",
    ),
    bash(
        "write-kernel-settings",
        "Opens settings of the kernel for writing.",
        "None opens.",
        "for f in kernel/core_pattern kernel/hostname kernel/modprobe vm/drop_caches \
         vm/overcommit_memory fs/binfmt_misc/register net/ipv4/ip_forward; do (exec \
         3>>/proc/sys/$f) 2>/dev/null && echo %breach% $f; done; (exec 3>>/proc/sysrq-trigger) && \
         echo %breach% sysrq; true",
    )
    .proven(UnconfinedRoot),
    bash(
        "write-sysfs",
        "Opens files of `/sys` for writing and makes a control group.",
        "None opens, none is made.",
        "for f in /sys/kernel/uevent_helper /sys/kernel/mm/ksm/run /sys/power/state \
         /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/*/cgroup.procs \
         /sys/fs/cgroup/*/release_agent; do (exec 3>>$f) 2>/dev/null && echo %breach% $f; done; \
         mkdir /sys/fs/cgroup/%token% /sys/fs/cgroup/*/%token% && echo %breach%; rmdir \
         /sys/fs/cgroup/%token% /sys/fs/cgroup/*/%token% 2>/dev/null; true",
    ),
    bash(
        "read-debug-files",
        "Reads the kernel's debugging and configuration files.",
        "Nothing is read.",
        "for f in /proc/kcore /proc/kallsyms /proc/kpagecount /proc/keys /proc/timer_list \
         /proc/config.gz /sys/kernel/debug/x /sys/kernel/tracing/trace /sys/firmware/efi/vars \
         /boot/*; do [ \"$(head -c 8 $f | tr -d '\\0' | wc -c)\" -gt 0 ] 2>/dev/null && echo \
         %breach% $f; done; true",
    )
    .proven(Unconfined)
    .open_at("landlock", "`/proc` is readable there: names of the kernel's symbols, without their addresses."),
    // Folders that everybody shares.
    bash(
        "write-shared-folders",
        "Leaves a file in the folders that everybody shares.",
        "No process outside finds it.",
        "for d in /tmp /var/tmp /dev/shm /run; do echo x >$d/%token%; done",
    )
    .proven(Unconfined),
    bash(
        "write-system-folders",
        "Puts a program where root would run it.",
        "No process outside finds it.",
        "for d in /usr/local/bin /etc /root; do echo x >$d/%token%; done",
    ),
    bash(
        "leave-a-set-id-program",
        "Makes a program that runs as the worker's user for whoever starts it.",
        "The bit is not set.",
        "cp /bin/sh s; chmod 4755 s; chmod u+s,g+s s; mkdir d; chmod 2755 d",
    )
    .proven(Unconfined),
    perl(
        "leave-a-set-id-file-at-creation",
        "Creates a file with the set-id bits in the call that makes it.",
        "The bits are not set.",
        r#"
            umask 0; sysopen(F, "s", 0101, 06755); my $d = "d"; sys("mkdirat", -100, $d, 03755)"#,
    )
    .proven(Unconfined),
    bash(
        "unlimited-core",
        "Raises the limit of core dumps, whose pattern may be a program of the host.",
        "The limit stays.",
        "ulimit -c unlimited && echo %breach%; ulimit -Hc unlimited && echo %breach%; true",
    )
    .proven(PlainShell),
];
