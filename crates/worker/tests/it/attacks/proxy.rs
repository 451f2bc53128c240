//! Attacks through the egress proxy, at what it must not connect to.
//!
//! They find the session's own in `http_proxy`. That they are proper requests is proven against [`naive`].

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use super::Control::NaiveProxy;
use super::{Attack, perl};

const UNREACHED: &str = "The proxy refuses; the host's port is not reached.";

pub(super) const ATTACKS: &[Attack] = &[
    perl(
        "proxy-to-loopback",
        "Asks the proxy to connect to a port of its own machine.",
        UNREACHED,
        r#"ask("CONNECT 127.0.0.1:%tcp% HTTP/1.1\r\nHost: 127.0.0.1:%tcp%\r\n\r\n")"#,
    )
    .proven(NaiveProxy),
    perl(
        "proxy-to-localhost",
        "Asks by the names of the machine: `localhost`, in capitals, with a final dot.",
        UNREACHED,
        r#"
            ask("CONNECT $_:%tcp% HTTP/1.1\r\nHost: $_\r\n\r\n") for "localhost", "LocalHost", "localhost.",
            "ip6-localhost", "localhost.localdomain""#,
    )
    .proven(NaiveProxy),
    perl(
        "proxy-to-ipv6-loopback",
        "Asks by the loopback address of IPv6 and by IPv4 addresses mapped into it.",
        UNREACHED,
        r#"
            ask("CONNECT $_:%tcp% HTTP/1.1\r\nHost: $_\r\n\r\n") for "[::1]", "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]", "[0:0:0:0:0:0:0:1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]",
            "[::1%lo]""#,
    )
    .proven(NaiveProxy),
    perl(
        "proxy-to-the-unspecified",
        "Asks by the addresses that mean any, which reach the machine itself.",
        UNREACHED,
        r#"
            ask("CONNECT $_:%tcp% HTTP/1.1\r\nHost: $_\r\n\r\n") for "0.0.0.0", "0", "[::]", "[::ffff:0.0.0.0]""#,
    )
    .proven(NaiveProxy),
    perl(
        "proxy-by-odd-numbers",
        "Spells the loopback address as C libraries read it: short, in one number, octal, hexadecimal.",
        UNREACHED,
        r#"
            ask("CONNECT $_:%tcp% HTTP/1.1\r\nHost: $_\r\n\r\n") for "127.1", "127.0.1", "2130706433",
            "0x7f000001", "0x7f.1", "0177.0.0.1", "017700000001", "127.0.0.1.", "127.000.000.001", "0127.0.0.1""#,
    )
    .proven(NaiveProxy),
    perl(
        "proxy-by-odd-characters",
        "Spells it with full-width digits, other dots, escapes and spaces.",
        UNREACHED,
        r#"
            ask("CONNECT $_:%tcp% HTTP/1.1\r\nHost: x\r\n\r\n")
            for "\xef\xbc\x91\xef\xbc\x92\xef\xbc\x97.0.0.1", "127\xe3\x80\x820\xe3\x80\x820\xe3\x80\x821",
            "%31%32%37.0.0.1", "127.0.0.1%00.example.com", " 127.0.0.1", "127.0.0.1\t",
            "example.com\@127.0.0.1", "127.0.0.1#", "127.0.0.1/""#,
    ),
    perl(
        "proxy-by-plain-request",
        "Asks for a page of its own machine by plain HTTP.",
        UNREACHED,
        r#"
            ask("GET http://127.0.0.1:%tcp%/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
            ask("POST http://localhost:%tcp%/ HTTP/1.0\r\nContent-Length: 1\r\n\r\nx")"#,
    )
    .proven(NaiveProxy),
    perl(
        "proxy-by-user-name",
        "Hides the host behind a user name that looks like one.",
        UNREACHED,
        r#"
            ask("GET http://$_:%tcp%/ HTTP/1.1\r\nHost: example.com\r\n\r\n") for "example.com\@127.0.0.1",
            "example.com:80\@127.0.0.1", "example.com%40127.0.0.1", "127.0.0.1\\\@example.com""#,
    ),
    perl(
        "proxy-by-host-header",
        "Names one host in the address and another in the header.",
        UNREACHED,
        r#"
            ask("GET http://example.invalid/ HTTP/1.1\r\nHost: 127.0.0.1:%tcp%\r\n\r\n");
            ask("GET / HTTP/1.1\r\nHost: 127.0.0.1:%tcp%\r\n\r\n");
            ask("CONNECT example.invalid:80 HTTP/1.1\r\nHost: 127.0.0.1:%tcp%\r\n\r\n")"#,
    ),
    perl(
        "proxy-by-second-request",
        "Puts a forbidden request behind a permitted one on the same connection.",
        UNREACHED,
        r#"
            ask("GET http://example.invalid/ HTTP/1.1\r\nHost: example.invalid\r\n\r\n" .
                "CONNECT 127.0.0.1:%tcp% HTTP/1.1\r\nHost: x\r\n\r\n" .
                "GET http://127.0.0.1:%tcp%/ HTTP/1.1\r\nHost: x\r\n\r\n")"#,
    ),
    perl(
        "proxy-by-smuggled-request",
        "Hides a second request in a body whose length is told twice.",
        UNREACHED,
        r#"
            ask("POST http://example.invalid/ HTTP/1.1\r\nHost: example.invalid\r\n" .
                "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" .
                "GET http://127.0.0.1:%tcp%/ HTTP/1.1\r\nHost: x\r\n\r\n");
            ask("CONNECT example.invalid:80\r\nX: HTTP/1.1\r\n\r\nCONNECT 127.0.0.1:%tcp% HTTP/1.1\r\n\r\n")"#,
    ),
    perl(
        "proxy-to-private-networks",
        "Asks for addresses of private, shared, link-local and multicast networks and of cloud metadata.",
        "The proxy connects to none.",
        r#"
            for ("10.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1", "169.254.169.254", "169.254.170.2",
            "100.100.100.200", "metadata.google.internal", "224.0.0.1", "255.255.255.255", "[fe80::1]",
            "[fc00::1]", "[fd00:ec2::254]", "[ff02::1]", "[::ffff:10.0.0.1]", "[::ffff:169.254.169.254]")
            { my $answer = ask("CONNECT $_:80 HTTP/1.1\r\nHost: $_\r\n\r\n");
            breach($_) if $answer =~ m{^HTTP/1\S+ 200} }"#,
    ),
    perl(
        "proxy-to-itself",
        "Asks the proxy to connect to itself and then to a forbidden port.",
        UNREACHED,
        r#"
            my ($port) = ($ENV{http_proxy} || "") =~ /:(\d+)/ or exit;
            ask("CONNECT 127.0.0.1:$port HTTP/1.1\r\nHost: x\r\n\r\n" .
                "CONNECT 127.0.0.1:%tcp% HTTP/1.1\r\nHost: x\r\n\r\n")"#,
    )
    .proven(NaiveProxy),
    perl(
        "proxy-flood",
        "Holds many connections open and says nothing on them.",
        "Others are served.",
        r#"
            my ($host, $port) = ($ENV{http_proxy} || "http://127.0.0.1:9") =~ m{([\d.]+):(\d+)}; my @keep;
            for (1..200) { socket my $s, PF_INET, SOCK_STREAM, 0 or last; fcntl $s, F_SETFL, 04000;
            connect $s, pack_sockaddr_in($port, inet_aton($host));
            push @keep, $s } select undef, undef, undef, 0.1"#,
    ),
    perl(
        "proxy-endless-head",
        "Sends a request whose head does not end.",
        "The proxy ends it.",
        r#"
            ask("GET http://example.invalid/" . "x" x 200000);
            ask("GET http://example.invalid/ HTTP/1.1\r\n" . "X: y\r\n" x 50000)"#,
    ),
];

/// A proxy that connects wherever it is told to; returns its address for `http_proxy`. It ends with the test.
pub(super) fn naive() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            std::thread::spawn(move || serve_naively(client));
        }
    });
    address
}

fn serve_naively(mut client: TcpStream) -> Option<()> {
    let mut head = [0; 4096];
    let length = client.read(&mut head).ok()?;
    let request = String::from_utf8_lossy(&head[..length]).into_owned();
    let target = request.split_whitespace().nth(1)?;
    let target = target.strip_prefix("http://").unwrap_or(target).split('/').next()?;
    let (host, port) = target.rsplit_once(':')?;
    let mut server = TcpStream::connect((host.trim_matches(['[', ']']), port.parse().ok()?)).ok()?;
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").ok()?;
    // What came behind the head belongs to the tunnel.
    server.write_all(request.split_once("\r\n\r\n")?.1.as_bytes()).ok()?;
    let mut back = (server.try_clone().ok()?, client.try_clone().ok()?);
    std::thread::spawn(move || std::io::copy(&mut back.0, &mut back.1));
    std::io::copy(&mut client, &mut server).ok().map(drop)
}
