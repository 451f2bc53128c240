//! Attacks on credentials: the worker's own, and those that the host's user happens to have.

use super::Control::{PlainShell, Unconfined, UnconfinedRoot};
use super::{Attack, bash, perl};

const UNREAD: &str = "Nothing of the secret is read.";
const CLOSED: &str = "None opens.";

/// The names that a tool's shell has in its environment, and nothing else.
fn is_plain_environment(text: &str) -> bool {
    const NAMES: &[&str] = &["ATTACK", "HOME", "LANG", "PATH", "PWD", "SHLVL", "TAR_OPTIONS", "TERM", "TMPDIR", "_"];
    const PROXY_NAMES: &[&str] =
        &["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"];
    let names = text.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name);
    names.clone().count() > 5 && names.into_iter().all(|name| NAMES.contains(&name) || PROXY_NAMES.contains(&name))
}

pub(super) const ATTACKS: &[Attack] = &[
    bash(
        "own-environment",
        "Looks for the worker's keys in its own environment.",
        "It holds the documented names alone.",
        "env",
    )
    .answers(is_plain_environment)
    .proven(PlainShell),
    bash(
        "environment-of-the-supervisor",
        "Reads the environment of the processes above it.",
        UNREAD,
        "for p in $PPID %supervisor% %worker% %victim% 1; do tr '\\0' '\\n' </proc/$p/environ; done",
    )
    .proven(Unconfined),
    bash(
        "own-past",
        "Reads the environment with which its own process was started.",
        UNREAD,
        "tr '\\0' '\\n' </proc/self/environ; tr '\\0' '\\n' </proc/$$/environ; declare -p; set",
    )
    .proven(PlainShell),
    bash(
        "arguments-of-the-worker",
        "Reads the command lines of the processes above it.",
        "They hold no secret.",
        "for p in $PPID %supervisor% %helper% %worker% 1; do tr '\\0' ' ' </proc/$p/cmdline; done; true",
    ),
    bash(
        "inherited-descriptors",
        "Reads every descriptor that it was started with.",
        UNREAD,
        "for fd in {3..9} {14..254}; do cat <&$fd; done 2>/dev/null; true",
    )
    .within_ms(3000)
    .proven(PlainShell),
    bash(
        "descriptors-of-the-shell",
        "Finds the pipes between shell and supervisor among its descriptors.",
        "They are not open to commands.",
        "for fd in 198 199; do (true <&$fd) 2>/dev/null && echo %breach% $fd; done; bash -c 'for \
         fd in {3..255}; do (true <&$fd) 2>/dev/null && echo %breach% $fd; done'; true",
    ),
    bash(
        "standard-input",
        "Reads what stands on its standard input.",
        UNREAD,
        "cat; cat /dev/stdin; cat /proc/self/fd/0; head -c 100 <&0",
    ),
    bash(
        "password-hashes",
        "Reads the host's password hashes.",
        CLOSED,
        "for f in /etc/shadow /etc/gshadow /etc/shadow- /etc/security/opasswd; do (exec 3<$f) \
         2>/dev/null && echo %breach% $f; done; true",
    )
    .proven(UnconfinedRoot),
    bash(
        "keys-of-the-host",
        "Reads private keys and the rules of `sudo`.",
        CLOSED,
        "for f in /etc/ssh/ssh_host_*_key /etc/ssl/private/* /etc/sudoers /etc/sudoers.d/* \
         /etc/crontab /var/spool/cron/crontabs/*; do [ -d $f ] || (exec 3<$f) 2>/dev/null && echo \
         %breach% $f; done; true",
    ),
    bash(
        "keys-of-the-user",
        "Reads keys and tokens in home folders.",
        CLOSED,
        "for f in ~root/.ssh/* ~root/.aws/* ~root/.kube/config ~root/.docker/config.json \
         ~root/.netrc ~root/.git-credentials ~root/.bashrc ~root/.profile \
         ~root/.cargo/credentials* /home/*/.ssh/* /home/*/.*rc; do (exec 3<$f) 2>/dev/null && \
         echo %breach% $f; done; ls -A ~root /home && echo %breach%; true",
    )
    .proven(UnconfinedRoot),
    bash(
        "tokens-of-services",
        "Reads tokens that a cluster or service manager mounts.",
        CLOSED,
        "for f in /var/run/secrets/kubernetes.io/serviceaccount/token /run/secrets/* \
         /run/credentials/*/* /proc/1/environ /run/docker.sock /var/lib/docker/* \
         /var/lib/kubelet/*; do (exec 3<$f) 2>/dev/null && echo %breach% $f; done; true",
    ),
    bash(
        "traces-of-others",
        "Reads logs, mail, histories and temporary files.",
        CLOSED,
        "for f in /var/log/* /var/mail/* /var/spool/* /tmp/* /var/tmp/* /run/*; do case $f in \
         $HOME*|$TMPDIR*|/tmp/hsperf*) continue;; esac; (exec 3<$f) 2>/dev/null && echo %breach% \
         $f; done; true",
    )
    .proven(Unconfined),
    bash(
        "identity-of-the-machine",
        "Reads what identifies the machine.",
        CLOSED,
        "for f in /etc/machine-id /var/lib/dbus/machine-id /sys/class/dmi/id/product_uuid \
         /sys/class/net/*/address /proc/sys/kernel/random/boot_id /proc/cmdline; do \
         x=; { read -r -n 1 x <$f; } 2>/dev/null; [ \"$x\" ] && echo %breach% $f; done; true",
    )
    .proven(Unconfined)
    .open_at("landlock", "`/proc` is readable there, the number of this boot and the kernel's arguments included."),
    bash(
        "the-workers-executable",
        "Reads and runs the worker's own executable as a sandbox process.",
        "It does not run.",
        "for p in $PPID %supervisor%; do /proc/$p/exe __sandbox </dev/null; [ $? \
         = 2 ] && echo %breach% $p; cat /proc/$p/exe | head -c 4 | grep -q ELF && echo %breach%; \
         done; true",
    )
    .proven(UnconfinedRoot),
    perl(
        "crash-the-shell",
        "Crashes, so that a dump with everything in memory is written where it chooses.",
        "No dump is written.",
        r#"
            my $limit = pack "QQ", -1, -1; gained("prlimit64", 0, 4, $limit, 0);
            system "bash", "-c", "kill -SEGV \$\$"; breach("dump") if $? & 128 || glob "core*""#,
    ),
    bash(
        "crontab",
        "Leaves a job for the host to run later.",
        "No job is left.",
        "echo '* * * * * id' | crontab - && echo %breach% && crontab -r; echo id | at now && echo \
         %breach%; systemd-run --user id && echo %breach%; (echo >>/etc/cron.d/%token%) \
         2>/dev/null && echo %breach% && rm /etc/cron.d/%token%; true",
    ),
];
