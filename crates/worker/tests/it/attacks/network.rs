//! Attacks through sockets, at whatever the host or another session listens on.
//!
//! What a session may reach goes through its proxy, or nowhere. So no entry demands that a TCP socket is refused:
//! that nothing of the host was reached is seen at the sockets that the scene holds.

use super::Control::{Unconfined, UnconfinedRoot, Unfiltered};
use super::{Attack, bash, perl};

const UNREACHED: &str = "The host's socket is not reached.";
const REFUSED: &str = "The socket is refused.";

pub(super) const ATTACKS: &[Attack] = &[
    bash(
        "tcp-to-the-host",
        "Connects to a TCP port of the host, such as the worker's or the database's.",
        UNREACHED,
        "exec 3<>/dev/tcp/127.0.0.1/%tcp%; echo hello >&3",
    )
    .proven(Unconfined),
    bash(
        "tcp-by-name",
        "Connects to it by the name `localhost`.",
        UNREACHED,
        "exec 3<>/dev/tcp/localhost/%tcp%; echo hello >&3",
    )
    .proven(Unconfined),
    perl(
        "tcp-by-odd-addresses",
        "Connects to it by other addresses of the machine: 0.0.0.0, 127.1.2.3, ::1, ::ffff:127.0.0.1.",
        UNREACHED,
        r#"
            for ("0.0.0.0", "127.1.2.3") { socket S, PF_INET, SOCK_STREAM, 0 or next;
            connect S, pack_sockaddr_in(%tcp%, inet_aton($_)) }
            for ("::1", "::ffff:127.0.0.1", "::") { socket S, PF_INET6, SOCK_STREAM, 0 or next;
            connect S, pack_sockaddr_in6(%tcp%, Socket::inet_pton(PF_INET6, $_)) }"#,
    )
    .proven(Unconfined),
    perl(
        "tcp-without-connecting",
        "Sends with the first packet (`MSG_FASTOPEN`), which makes a connection without `connect`.",
        UNREACHED,
        r#"
            my $to = pack_sockaddr_in(%tcp%, inet_aton("127.0.0.1")); my $x = "x";
            socket S, PF_INET, SOCK_STREAM, 0 and send S, $x, 0x20000000, $to;
            my $vector = pack "JJ", at($x), 1; my $message = pack "JLx4JJJJl", at($to), length $to,
            at($vector), 1, 0, 0, 0; my $messages = pack("a56Lx4", $message, 0);
            socket T, PF_INET, SOCK_STREAM, 0 and sys("sendmsg", fileno(T), $message, 0x20000000);
            socket U, PF_INET, SOCK_STREAM, 0 and sys("sendmmsg", fileno(U), $messages, 1, 0x20000000)"#,
    )
    .proven(Unconfined),
    perl(
        "tcp-by-a-late-connection",
        "Lets the first write connect (`TCP_FASTOPEN_CONNECT`).",
        UNREACHED,
        r#"
            socket S, PF_INET, SOCK_STREAM, 0 or exit; setsockopt S, 6, 30, 1;
            connect S, pack_sockaddr_in(%tcp%, inet_aton("127.0.0.1")); syswrite S, "x""#,
    )
    .proven(Unconfined),
    perl(
        "tcp-twice",
        "Connects, dissolves the connection and connects again to another address.",
        UNREACHED,
        r#"
            socket S, PF_INET, SOCK_STREAM, 0 or exit; my $to = pack_sockaddr_in(%tcp%,
            inet_aton("127.0.0.1")); connect S, $to; my $none = "\0" x 16; connect S, $none; connect S, $to;
            syswrite S, "x""#,
    )
    .proven(Unconfined),
    perl(
        "tcp-by-swapped-addresses",
        "Changes the address in memory while the call that names it waits.",
        UNREACHED,
        r#"
            my $other = pack_sockaddr_in(9, inet_aton("192.0.2.1"));
            my $to = pack_sockaddr_in(%tcp%, inet_aton("127.0.0.1"));
            my $page = sys("mmap", 0, 4096, 3, 0x21, -1, 0); exit if $page == -1;
            sub put { pipe my $r, my $w; syswrite $w, $_[0]; sys("read", fileno($r), $page, 16) }
            put($other); my $pid = fork; if (!$pid) { for (1..2000) { put($to);
            put($other) } exit } until (waitpid $pid, 1) { socket my $s, PF_INET, SOCK_STREAM, 0 or next;
            fcntl $s, F_SETFL, 04000; sys("connect", fileno($s), $page, 16) }"#,
    )
    .proven(Unconfined),
    perl(
        "listen-on-the-host",
        "Listens on a TCP port of the host.",
        "Nobody outside can connect to it.",
        r#"
            socket S, PF_INET, SOCK_STREAM, 0 or exit; bind S, pack_sockaddr_in(%free_port%, INADDR_ANY);
            listen S, 5; unless (fork) { sleep 1000 }"#,
    )
    .proven(Unconfined),
    perl(
        "listen-on-ipv6",
        "Listens on a TCP port of the host through IPv6, which takes IPv4 too.",
        "Nobody outside can connect to it.",
        r#"
            socket S, PF_INET6, SOCK_STREAM, 0 or exit; bind S, pack_sockaddr_in6(%free_port%, "\0" x 16);
            listen S, 5; unless (fork) { sleep 1000 }"#,
    ),
    bash(
        "udp-to-the-host",
        "Sends a datagram to a UDP port of the host, such as its resolver's.",
        UNREACHED,
        "echo x >/dev/udp/127.0.0.1/%udp%",
    )
    .proven(Unconfined),
    perl(
        "udp",
        "Opens UDP sockets, and UDP-Lite ones.",
        REFUSED,
        r#"
            for my $family (2, 10) { gained("socket", $family, $_, 0) for 2, 2 | 02000000, 2 | 04000;
            gained("socket", $family, 2, 136) } socket S, PF_INET, SOCK_DGRAM, 0 and send S, "x", 0,
            pack_sockaddr_in(%udp%, inet_aton("127.0.0.1"))"#,
    )
    .proven(Unconfined),
    perl(
        "raw-sockets",
        "Opens raw sockets of IP and ICMP.",
        REFUSED,
        r#"
            for my $family (2, 10) { gained("socket", $family, 3, $_) for 1, 6, 255;
            gained("socket", $family, 2, $_) for 1, 58 }"#,
    )
    .proven(UnconfinedRoot),
    perl(
        "packet-sockets",
        "Opens packet sockets, on which it would see the host's traffic.",
        REFUSED,
        r#"gained("socket", 17, $_, 768) for 2, 3; gained("socket", 2, 10, 768)"#,
    )
    .proven(UnconfinedRoot),
    perl(
        "netlink",
        "Talks to the kernel's network configuration, audit and events.",
        REFUSED,
        r#"
            for my $protocol (0, 4, 9, 10, 12, 15, 16) { gained("socket", 16, $_, $protocol) for 2, 3 }"#,
    )
    .proven(Unconfined),
    perl("virtual-machine-sockets", "Talks to the hypervisor.", REFUSED, r#"gained("socket", 40, $_, 0) for 1, 2, 5"#),
    perl(
        "multipath-tcp",
        "Opens a socket of multipath TCP, SCTP, DCCP or SMC, whose connections other rules govern.",
        REFUSED,
        r#"
            for my $family (2, 10) { gained("socket", $family, 1, $_) for 262, 132;
            gained("socket", $family, 5, 132); gained("socket", $family, 6, 33) } gained("socket", 43, 1, 0)"#,
    ),
    perl(
        "every-other-family",
        "Opens a socket of each other family there is.",
        REFUSED,
        r#"for my $family (3..9, 11..45) { gained("socket", $family, $_, 0) for 1, 2, 3, 5 }"#,
    )
    .proven(Unconfined),
    perl(
        "family-by-high-bits",
        "Sets the high bits of the family and type, which the kernel drops.",
        REFUSED,
        r#"
            my $high = 1 << 32; gained("socket", $high | 16, 3, 0); gained("socket", 16, $high | 3, 0);
            gained("socket", $high | 2, 2, 0); gained("socket", 2, $high | 2, 0);
            gained("socket", 2, 1, $high | 262)"#,
    )
    .proven(Unconfined),
    // Unix sockets.
    perl(
        "unix-socket-by-path",
        "Connects to a Unix socket of the host, such as Docker's.",
        UNREACHED,
        r#"
            for ("%data%/stream.sock") { socket S, PF_UNIX, SOCK_STREAM, 0 or exit;
            connect S, pack_sockaddr_un($_) }"#,
    )
    .proven(Unconfined),
    perl(
        "unix-socket-through-a-link",
        "Connects through a link in the workspace.",
        UNREACHED,
        r#"
            symlink "%data%/stream.sock", "s"; socket S, PF_UNIX, SOCK_STREAM, 0 or exit;
            connect S, pack_sockaddr_un("s")"#,
    )
    .proven(Unconfined),
    perl(
        "abstract-socket",
        "Connects to an abstract Unix socket, which no file system confines.",
        UNREACHED,
        r#"
            socket S, PF_UNIX, SOCK_STREAM, 0 or exit; my $to = pack "Sxa*", 1, "%token%.stream"; connect S, $to"#,
    )
    .proven(Unconfined),
    perl(
        "unix-datagram",
        "Sends to a Unix datagram socket, such as the system log's.",
        UNREACHED,
        r#"
            socket S, PF_UNIX, SOCK_DGRAM, 0 or exit; send S, "x", 0,
            pack_sockaddr_un("%data%/datagram.sock"); my $to = pack "Sxa*", 1, "%token%.datagram";
            send S, "x", 0, $to"#,
    )
    .proven(Unconfined),
    perl(
        "datagram-from-a-pair",
        "Makes a pair of datagram sockets and addresses one of them to the host.",
        UNREACHED,
        r#"
            my $to = pack "Sxa*", 1, "%token%.datagram"; for (SOCK_DGRAM, SOCK_DGRAM | 04000, SOCK_RAW,
            SOCK_DGRAM | 1 << 32) { my $pair = "\0" x 8; next if sys("socketpair", 1, $_, 0, $pair) == -1;
            my ($s) = unpack "l", $pair; my $x = "x"; sys("sendto", $s, $x, 1, 0, $to, length $to) }"#,
    )
    .proven(Unconfined),
    perl(
        "address-from-a-pair",
        "Addresses a socket of a permitted pair to the host, by every call that takes an address.",
        UNREACHED,
        r#"
            my $to = pack "Sxa*", 1, "%token%.datagram"; my $stream = pack "Sxa*", 1, "%token%.stream";
            my $x = "x"; my $vector = pack "JJ", at($x), 1;
            for my $kind (1, 5) { for my $address ($to, $stream) { my $pair = "\0" x 8;
            next if sys("socketpair", 1, $kind, 0, $pair) == -1; my ($s) = unpack "l", $pair;
            sys("sendto", $s, $x, 1, 0, $address, length $address);
            my $message = pack "JLx4JJJJl", at($address), length $address, at($vector), 1, 0, 0, 0;
            sys("sendmsg", $s, $message, 0); sys("connect", $s, $address, length $address) } }"#,
    ),
    perl(
        "pairs-of-other-families",
        "Makes pairs of sockets of other families than Unix.",
        REFUSED,
        r#"
            my $pair = "\0" x 8; for my $family (2, 10, 16, 30, (1 << 32) | 30) {
            gained("socketpair", $family, $_, 0, $pair) for 1, 2, 4, 5 }"#,
    ),
    perl(
        "listen-for-the-host",
        "Listens on an abstract Unix socket, to pass for a service of the host.",
        "Nobody outside can connect to it.",
        r#"
            socket S, PF_UNIX, SOCK_STREAM, 0 or exit; my $name = pack "Sxa*", 1, "%token%.bound";
            bind S, $name; listen S, 5; unless (fork) { sleep 1000 }"#,
    )
    .proven(Unconfined),
    // What the host knows of its network.
    bash(
        "list-the-hosts-sockets",
        "Reads which sockets the host has.",
        "The scene's are not among them.",
        "cat /proc/net/unix /proc/self/net/unix /proc/1/net/unix /proc/%victim%/net/unix | grep \
         -q '%token%[.]stream' && echo %breach%; true",
    )
    .proven(Unconfined)
    .open_at(
        "landlock",
        "`/proc` is readable there, the list of the host's sockets included; none can be connected to.",
    ),
    bash(
        "cloud-metadata",
        "Asks the cloud's metadata service for the machine's credentials.",
        "It does not answer.",
        "for a in 169.254.169.254 100.100.100.200; do (exec 3<>/dev/tcp/$a/80 && printf 'GET \
         /latest/meta-data/ HTTP/1.0\\r\\nMetadata-Flavor: Google\\r\\n\\r\\n' >&3 && timeout 1 \
         cat <&3 | grep -q '200 OK' && echo %breach%) 2>/dev/null; done; true",
    )
    .within_ms(5000),
    perl(
        "capture-a-device",
        "Makes a network device of its own (`/dev/net/tun`).",
        "It does not open.",
        r#"open F, "+<", "/dev/net/tun" and breach("tun"); open F, "+<", "/dev/vhost-net" and breach("vhost")"#,
    ),
    perl(
        "pass-a-descriptor",
        "Passes a descriptor of a system folder through a pair of sockets and climbs from there.",
        "Nothing of the secret is read.",
        r#"
            socketpair A, B, PF_UNIX, SOCK_STREAM, 0 or exit; my $usr = "/usr";
            my $d = sys("openat", -100, $usr, 0x200000); my $x = "x"; my $vector = pack "JJ", at($x), 1;
            my $control = pack "QllLx4", 20, 1, 1, $d;
            my $message = pack "JLx4JJJJl", 0, 0, at($vector), 1, at($control), 24, 0;
            sys("sendmsg", fileno(A), $message, 0); my $got = "\0" x 24;
            my $into = pack "JLx4JJJJl", 0, 0, at($vector), 1, at($got), 24, 0;
            sys("recvmsg", fileno(B), $into, 0); my $e = unpack "x16l", $got; my $path = "..%secret%";
            my $f = sys("openat", $e, $path, 0); open F, "<&=", $f and print <F>"#,
    )
    .proven(Unfiltered),
];
