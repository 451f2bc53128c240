//! Attacks on what sessions share: processes, memory, descriptors, disk, processor time, and the patience of tools.
//!
//! Sandboxes of the corpus have small limits, see `limits` in [`super::scene`].

use super::Control::PlainShell;
use super::{Attack, bash, perl, tool};

const ANSWERS: &str = "The session ends it and goes on to answer, and so do others.";
const HELD: &str = "It is held at the limit.";

pub(super) const ATTACKS: &[Attack] = &[
    // Processes.
    bash(
        "fork-bomb",
        "Starts processes that start processes.",
        ANSWERS,
        "bomb() { bomb | bomb & }; bomb 2>/dev/null; sleep 1000",
    )
    .within_ms(1500),
    perl(
        "fork-flood",
        "Starts as many processes as it can.",
        HELD,
        r#"
            my $count = 0; for (1..200) { my $pid = fork; last unless defined $pid;
            if (!$pid) { sleep 1000 } $count++ } breach("$count processes") if $count > 100"#,
    )
    .proven(PlainShell),
    perl(
        "zombie-flood",
        "Leaves processes that have ended and are never waited for.",
        HELD,
        r#"
            my $count = 0; for (1..200) { my $pid = fork; last unless defined $pid; exit unless $pid;
            $count++ } breach("$count processes") if $count > 100; sleep 1"#,
    )
    .proven(PlainShell),
    perl(
        "fork-and-leave",
        "Starts processes that leave at once, so that no count sees them as children.",
        HELD,
        r#"
            my $count = 0; for (1..200) { my $pid = fork; last unless defined $pid;
            if (!$pid) { my $next = fork; exit if $next || !defined $next; sleep 1000 } waitpid $pid, 0;
            last if $?; $count++ } select undef, undef, undef, 0.2;
            my $alive = 0; opendir D, "/proc" or exit; for (readdir D) { /^\d+$/ or next;
            open F, "<", "/proc/$_/cmdline" or next; local $/;
            $alive++ if <F> =~ /fork-and-leave|next = fork/ } breach("$alive processes") if $alive > 100"#,
    )
    .proven(PlainShell),
    perl(
        "call-flood",
        "Keeps the supervisor answering caught calls from many processes at once.",
        ANSWERS,
        r#"for (1..12) { last if !fork } open F, ">", "f$$"; while (1) { chmod 0600, "f$$" }"#,
    )
    .within_ms(700),
    perl(
        "caught-and-killed",
        "Kills processes while the supervisor answers for them.",
        ANSWERS,
        r#"
            for (1..60) { my $pid = fork // last; if (!$pid) { while (1) { chmod 0600, "own" } } kill 9, $pid;
            waitpid $pid, 0 }"#,
    ),
    // Memory.
    perl(
        "memory-of-one",
        "Fills one process with memory.",
        HELD,
        r#"my $x = "x" x (400 << 20); breach("it has 400 MiB") if length $x"#,
    )
    .proven(PlainShell),
    perl(
        "memory-of-many",
        "Fills many processes with memory, each below the limit of one.",
        HELD,
        r#"
            for (1..6) { my $pid = fork // die; if (!$pid) { my $x = "x" x (60 << 20); sleep 1000 } } sleep 2;
            breach("they have 360 MiB")"#,
    )
    .proven(PlainShell)
    .within_ms(20_000),
    perl(
        "shared-memory-of-one",
        "Fills shared memory, which the limit of private memory does not count.",
        HELD,
        r#"
            my $size = 360 << 20; my $at = sys("mmap", 0, $size, 3, 0x21, -1, 0); exit if $at == -1;
            open Z, "<", "/dev/zero"; for (my $done = 0; $done < $size;
            $done += 1 << 20) { sys("read", fileno(Z), $at + $done, 1 << 20) } sleep 2; breach("it has 360 MiB")"#,
    )
    .proven(PlainShell)
    .within_ms(20_000),
    perl(
        "memory-in-files",
        "Fills files that live in memory (`memfd_create`) and belong to no process's memory.",
        HELD,
        r#"
            my $name = "m"; my $bytes = "x" x (4 << 20); my $count = 0;
            for (1..90) { my $m = sys("memfd_create", $name, 0);
            last if $m == -1 || sys("write", $m, $bytes, length $bytes) != length $bytes; $count++ } sleep 2;
            breach("they have 360 MiB") if $count == 90"#,
    )
    .proven(PlainShell)
    .within_ms(20_000),
    perl(
        "memory-in-pipes",
        "Fills as many pipes as it can open.",
        ANSWERS,
        r#"
            my @keep; for (1..110) { pipe my $r, my $w or last; fcntl $w, 1031, 1 << 20;
            fcntl $w, F_SETFL, 04001; 1 while syswrite $w, "x" x 65536; push @keep, $r, $w } sleep 1"#,
    ),
    bash("endless-recursion", "Calls a function that calls itself.", ANSWERS, "ulimit -Ss 1024; f() { f; }; f"),
    bash(
        "large-environment",
        "Exports more than fits the arguments of a program.",
        ANSWERS,
        "export LARGE=$(head -c 4000000 /dev/zero | tr '\\0' x); ls; true",
    ),
    bash(
        "raise-limits",
        "Raises the limits of files, descriptors, memory and time.",
        "They stay.",
        "for l in f n d t; do ulimit -S$l unlimited; ulimit -H$l unlimited; [ $(ulimit -S$l) = \
         unlimited ] && echo %breach% $l; done; true",
    )
    .proven(PlainShell),
    // Descriptors and disk.
    perl(
        "descriptor-flood",
        "Opens as many files as it can.",
        HELD,
        r#"
            my @keep; for (1..600) { open my $f, "<", "/dev/null" or last;
            push @keep, $f } breach(scalar @keep) if @keep > 260"#,
    )
    .proven(PlainShell),
    bash(
        "large-file",
        "Writes one file until it is larger than the limit.",
        HELD,
        "head -c 20000000 /dev/zero >f; [ $(stat -c %s f) -gt 8388608 ] && echo %breach%; true",
    )
    .proven(PlainShell),
    bash(
        "sparse-file",
        "Makes a file of a size that the disk has not got.",
        HELD,
        "truncate -s 1000G f; fallocate -l 20M g; for f in f g; do [ -e $f ] && [ $(stat -c %s \
         $f) -gt 8388608 ] && echo %breach%; done; true",
    )
    .proven(PlainShell),
    bash(
        "fill-the-disk",
        "Fills the disk with files, each below the limit of one.",
        "The workspace has a limit too.",
        "for i in {1..40}; do head -c 8000000 /dev/zero >f$i || exit 1; done; echo %breach%",
    )
    .proven(PlainShell)
    .within_ms(20_000),
    perl(
        "fill-the-inodes",
        "Makes empty files until the file system has no more.",
        "The workspace has a limit of files too.",
        r#"mkdir "d"; for (1..20000) { open my $f, ">", "d/$_" or exit } breach("20000 files")"#,
    )
    .proven(PlainShell)
    .within_ms(20_000),
    // Time and output.
    bash(
        "burn-processors",
        "Keeps every processor busy.",
        ANSWERS,
        "for i in {1..4}; do while :; do :; done & done; wait",
    )
    .within_ms(700),
    bash("never-end", "Waits for what never comes.", ANSWERS, "mkfifo p; cat <p").within_ms(200),
    bash("endless-output", "Prints without an end.", ANSWERS, "yes").within_ms(500),
    bash(
        "long-output",
        "Prints fifty megabytes in one line.",
        "The answer is short, and so is what the supervisor keeps.",
        "head -c 50000000 /dev/zero | tr '\\0' x",
    )
    .answers(|text| text.len() < 12_000)
    .proven(PlainShell),
    bash(
        "output-after-the-end",
        "Leaves a process that goes on to print when the call has ended.",
        ANSWERS,
        "yes & true",
    ),
    bash("output-in-drops", "Prints one byte at a time.", ANSWERS, "for i in {1..3000}; do printf x; done; echo"),
    // The file tools.
    tool(
        "glob",
        "glob-over-many-files",
        "Lists more files than an answer may hold.",
        "The list is short.",
        r#"{"pattern": "**"}"#,
    )
    .after("mkdir d; cd d; seq 1 1000 | xargs touch")
    .answers(|text| text.lines().count() == 200),
    tool(
        "glob",
        "glob-over-deep-folders",
        "Lists folders nested deeper than a path may be long.",
        "The tool answers.",
        r#"{"pattern": "**/x"}"#,
    )
    .after("perl -e 'for (1..1500) { mkdir \"dddd\"; chdir \"dddd\" }'"),
    tool(
        "glob",
        "glob-pattern-bomb",
        "Gives a pattern that multiplies out.",
        "The tool answers.",
        r#"{"pattern": "{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{{a,b},{c,d}}**/**/**/*a*b*c*d"}"#,
    ),
    tool(
        "grep",
        "grep-backtracking",
        "Gives a pattern that takes others exponential time.",
        "The tool answers.",
        r#"{"pattern": "^(a|a)*(a*)*(.*)*b$"}"#,
    )
    .after("for i in {1..400}; do head -c 1900 /dev/zero | tr '\\0' a; echo; done >f"),
    tool(
        "grep",
        "grep-pattern-bomb",
        "Gives a pattern that compiles to gigabytes.",
        "The pattern is refused.",
        r#"{"pattern": "((((a{1,100}){1,100}){1,100}){1,100}){1,100}"}"#,
    )
    .answers(|text| text.starts_with("grep: invalid regex")),
    tool(
        "edit",
        "edit-that-explodes",
        "Replaces each character of a file by a long text.",
        "The edit is refused.",
        r#"{"file_path": "f", "old_string": "a", "replace_all": true,
            "new_string": "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"}"#,
    )
    .after("head -c 260000 /dev/zero | tr '\\0' a >f")
    .answers(|text| text.starts_with("edit: the result would be")),
    tool(
        "read",
        "read-without-line-ends",
        "Asks for one line of a file that has none.",
        "The tool answers.",
        r#"{"file_path": "f", "view_range": [1, 1]}"#,
    )
    .after("head -c 8000000 /dev/zero >f")
    .answers(|text| text.contains("exceed the 262144-byte limit")),
    tool(
        "read",
        "read-in-circles",
        "Reads through links that lead to each other.",
        "The tool answers.",
        r#"{"file_path": "a"}"#,
    )
    .after("ln -s b a; ln -s a b")
    .answers(|text| text.ends_with("too many levels of symbolic links")),
];
