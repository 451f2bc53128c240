//! Reads the host and port that a request names, in one spelling only. Pure.
//!
//! What is judged must be what is dialled, so nothing is guessed: a spelling of an address that some resolver might
//! read as another (`2130706433`, `0177.0.0.1`, `127.1`, a zone, a percent sign) is refused rather than understood.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const NAME_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;

/// Where a request wants to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub host: Host,
    pub port: u16,
}

/// A host by name or by address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Host {
    /// In lower case, without a trailing dot; its last label is no number.
    Name(String),
    Address(IpAddr),
}

/// Why an authority names no host; the text is for the one who wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum TargetError {
    #[error("the address has a user name in it, which does not belong there")]
    UserInfo,
    #[error("the port is missing, or no number from 1 to 65535")]
    Port,
    #[error(
        "the host is no plain name or address: write names in ASCII, IPv4 as four decimal numbers, IPv6 in brackets"
    )]
    Host,
}

impl Target {
    /// Reads `host`, `host:port` or `[address]:port`.
    pub(super) fn parse(authority: &str, default_port: Option<u16>) -> Result<Self, TargetError> {
        if authority.contains('@') {
            return Err(TargetError::UserInfo);
        }
        let (host, rest) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (literal, rest) = rest.split_once(']').ok_or(TargetError::Host)?;
                let address: Ipv6Addr = literal.parse().map_err(|_| TargetError::Host)?;
                (Host::Address(address.into()), rest)
            }
            None => {
                let end = authority.find(':').unwrap_or(authority.len());
                (Host::parse(&authority[..end])?, &authority[end..])
            }
        };
        let port = match rest.strip_prefix(':') {
            Some(digits) => port(digits)?,
            None if rest.is_empty() => default_port.ok_or(TargetError::Port)?,
            None => return Err(TargetError::Host),
        };
        Ok(Self { host, port })
    }
}

impl Host {
    fn parse(text: &str) -> Result<Self, TargetError> {
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        if let Ok(address) = name.parse::<Ipv4Addr>() {
            return Ok(Self::Address(address.into()));
        }
        let is_name = name.len() <= NAME_BYTES_MAX && name.split('.').all(is_label);
        let last = name.rsplit('.').next().unwrap_or_default();
        if is_name && !is_number(last) { Ok(Self::Name(name)) } else { Err(TargetError::Host) }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => formatter.write_str(name),
            Self::Address(IpAddr::V4(address)) => address.fmt(formatter),
            Self::Address(IpAddr::V6(address)) => write!(formatter, "[{address}]"),
        }
    }
}

fn is_label(label: &str) -> bool {
    (1..=LABEL_BYTES_MAX).contains(&label.len())
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

/// Whether the resolvers of this world may take a name that ends in this label for an address.
fn is_number(label: &str) -> bool {
    let is_hexadecimal = label.strip_prefix("0x").is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_hexdigit()));
    is_hexadecimal || label.bytes().all(|byte| byte.is_ascii_digit())
}

fn port(digits: &str) -> Result<u16, TargetError> {
    let is_plain = (1..=5).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    match digits.parse() {
        Ok(port) if is_plain && port != 0 => Ok(port),
        _ => Err(TargetError::Port),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(authority: &str) -> Result<String, TargetError> {
        Target::parse(authority, Some(80)).map(|target| format!("{} {}", target.host, target.port))
    }

    #[test]
    fn plain_spellings_are_read() {
        for (authority, expected) in [
            ("example.com", "example.com 80"),
            ("Example.COM.:443", "example.com 443"),
            ("xn--bcher-kva.example:1", "xn--bcher-kva.example 1"),
            ("my_host-1:65535", "my_host-1 65535"),
            ("8.8.8.8:53", "8.8.8.8 53"),
            ("8.8.8.8.", "8.8.8.8 80"),
            ("[2001:DB8::1]:443", "[2001:db8::1] 443"),
            ("[::ffff:127.0.0.1]", "[::ffff:127.0.0.1] 80"),
            ("localhost.", "localhost 80"),
            ("0x7f.example", "0x7f.example 80"),
            ("0xen", "0xen 80"),
        ] {
            assert_eq!(read(authority).as_deref(), Ok(expected), "{authority:?}");
        }
    }

    #[test]
    fn odd_spellings_are_refused() {
        for authority in [
            "",
            ".",
            "..",
            "a..b",
            ".a",
            "a..",
            "2130706433",
            "0177.0.0.1",
            "0x7f000001",
            "0x7f.1",
            "0X7F.0.0.1",
            "127.1",
            "127.0.1",
            "127.0.0.01",
            "1.2.3.4.5",
            "256.0.0.1",
            "a.0x",
            "example.1",
            "①②⑦.⓪.⓪.①",
            "bücher.example",
            "127。0。0。1",
            "%31%32%37.0.0.1",
            "exa%6dple.com",
            "example.com%00.evil.net",
            "a\0b",
            "a\rb",
            "a\nb",
            "a b",
            " a",
            "a\t",
            "a/b",
            "a\\b",
            "a?b",
            "a#b",
            "a,b",
            "*.example.com",
            "[::1",
            "::1",
            "[::1%lo]",
            "[fe80::1%25eth0]",
            "[127.0.0.1]",
            "[v1.x]",
            "[]",
            "[::1]x",
            "[[::1]]",
            "[::1]]",
            "a:b:80",
        ] {
            assert!(read(authority).is_err(), "{authority:?}");
        }
        assert!(read(&"a".repeat(64)).is_err());
        assert!(read(&["abcdefgh"; 32].join(".")).is_err());
    }

    #[test]
    fn a_user_name_hides_no_host() {
        for authority in ["allowed.com@evil.com", "allowed.com:80@evil.com", "@evil.com", "evil.com@", "a@b@c"] {
            assert_eq!(read(authority), Err(TargetError::UserInfo), "{authority:?}");
        }
    }

    #[test]
    fn ports_are_plain_numbers() {
        for authority in
            ["a:", "a:0", "a:00000", "a:65536", "a:+80", "a:-1", "a: 80", "a:80 ", "a:080000", "a:0x50", "a:８０"]
        {
            assert_eq!(read(authority), Err(TargetError::Port), "{authority:?}");
        }
        assert_eq!(Target::parse("example.com", None), Err(TargetError::Port));
    }
}
