//! Tools of a real sandbox on the network: through the proxy where they may, nowhere else.

use std::process::Command;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use worker::egress::{Egress, NetworkConfig, Policy, Reason, SessionEgress};

use crate::support::{Place, SESSION, Tools, at_every_level};

at_every_level!(
    programs_find_the_proxy_and_its_rules_hold,
    a_session_reaches_servers_of_its_own_where_it_has_a_network_of_its_own,
    pip_installs_a_package,
);

/// A sandbox whose way out is open under these rules.
async fn connected(place: &Place, allowed: &[&str], policy: Policy) -> (Tools, SessionEgress) {
    let mut tools = place.sandbox().await;
    let allowed_addresses = allowed.iter().map(|network| network.parse().unwrap()).collect();
    let egress = Egress::new(NetworkConfig { allowed_addresses, ..NetworkConfig::default() });
    let listener = tools.0.take_proxy().unwrap();
    let session = egress.serve(SESSION, policy, listener).unwrap();
    (tools, session)
}

/// A web server that answers every request with the same text; returns its port.
async fn web_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let mut head = [0; 4096];
            let _ = connection.read(&mut head).await;
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello";
            let _ = connection.write_all(answer).await;
        }
    });
    port
}

/// A client in perl, which every Debian has: asks the proxy of the variable for a tunnel or a page, and prints the answer.
fn ask(request: &str) -> String {
    format!(
        r#"perl -MSocket -e '
            my ($host, $port) = $ENV{{https_proxy}} =~ m{{^http://([\d.]+):(\d+)}} or die "no proxy is named";
            socket my $s, PF_INET, SOCK_STREAM, 0 or die "socket: $!";
            connect $s, pack_sockaddr_in($port, inet_aton($host)) or die "connect: $!";
            syswrite $s, "{request}"; print while <$s>'"#
    )
}

async fn programs_find_the_proxy_and_its_rules_hold(place: Place) {
    let port = web_server().await;
    let (mut tools, session) = connected(&place, &["127.0.0.0/8"], Policy::Unrestricted).await;
    let page = format!(r"GET http://127.0.0.1:{port}/page HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let text = tools.bash(&ask(&page)).await;
    assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("hello"), "{text}");
    let tunnel = format!(r"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n");
    let text = tools.bash(&ask(&tunnel)).await;
    assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("hello"), "{text}");
    assert!(session.refusals().take().is_empty());
    drop(session);
    tools.0.close().await;

    let (mut tools, session) = connected(&place, &[], Policy::Unrestricted).await;
    let text = tools.bash(&ask(&page)).await;
    assert!(text.starts_with("HTTP/1.1 403") && text.contains("127.0.0.1"), "{text}");
    assert_eq!(session.refusals().take(), [(Reason::Address, 1)]);
    drop(session);
    tools.0.close().await;

    let (mut tools, session) = connected(&place, &["127.0.0.0/8"], Policy::Off).await;
    assert!(tools.bash(&ask(&tunnel)).await.starts_with("HTTP/1.1 403"));
    assert_eq!(session.refusals().take(), [(Reason::Off, 1)]);
}

async fn a_session_reaches_servers_of_its_own_where_it_has_a_network_of_its_own(place: Place) {
    let (mut tools, _session) = connected(&place, &[], Policy::Unrestricted).await;
    let serve = r#"perl -MSocket -e '
        socket my $s, PF_INET, SOCK_STREAM, 0 or die "socket: $!";
        bind $s, pack_sockaddr_in(8000, INADDR_ANY) or die "bind: $!"; listen $s, 5 or die "listen: $!"; print "ready\n";
        open STDOUT, ">/dev/null"; while (accept my $c, $s) { syswrite $c, "own\n"; close $c }' & "#;
    let serve = format!("{{ {serve} }} | head -n 1");
    if place.has_namespaces() {
        assert_eq!(tools.bash(&serve).await, "ready");
        assert_eq!(tools.bash("exec 3<>/dev/tcp/127.0.0.1/8000; cat <&3").await, "own");
        let pair = "perl -MSocket -e 'socket my $s, PF_UNIX, SOCK_STREAM, 0 or die; bind $s, pack_sockaddr_un(\"s\") or die $!; listen $s, 1 or die; \
                    socket my $c, PF_UNIX, SOCK_STREAM, 0; connect $c, pack_sockaddr_un(\"s\") or die $!; print \"met\"'";
        assert_eq!(tools.bash(pair).await, "met");
    } else {
        // What listened there would listen on the host.
        assert!(tools.bash(&format!("{serve} 2>&1")).await.contains("bind: Operation not permitted"));
    }
}

/// The real thing, where the machine has it: a package from the registry that its pip is set up for.
async fn pip_installs_a_package(mut place: Place) {
    let host = |arguments: &[&str]| {
        let output = Command::new("python3").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(python) = host(&["-c", "import pip, sys; print(sys.base_prefix)"]) else {
        return eprintln!("SKIPPED: there is no python3 with pip on this machine");
    };
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().to_str().unwrap();
    if host(&["-m", "pip", "download", "--no-cache-dir", "--no-deps", "--no-binary", ":none:", "-d", target, "six"])
        .is_none()
    {
        return eprintln!("SKIPPED: pip reaches no registry from this machine");
    }
    place.config.readable_paths.push(python.clone().into());
    // The registry of this machine may be a mirror on any address.
    let (mut tools, session) = connected(&place, &["0.0.0.0/0", "::/0"], Policy::Unrestricted).await;
    let install = format!(
        "[ -e /etc/ssl/certs/ca-certificates.crt ] && export PIP_CERT=/etc/ssl/certs/ca-certificates.crt; \
         '{python}/bin/python3' -m pip install --no-cache-dir --disable-pip-version-check --target lib six && \
         PYTHONPATH=lib '{python}/bin/python3' -c 'import six; print(six.moves.range(3))'"
    );
    let text = tools.bash(&install).await;
    assert!(text.contains("Successfully installed six") && text.ends_with("range(0, 3)"), "{text}");
    assert!(session.refusals().take().is_empty(), "{text}");
}
