//! Which hosts a session's tools may name. Pure; what a name resolves to is judged by [`super::address`].

use std::fmt;
use std::net::IpAddr;

use super::target::Host;

/// The network rules of one session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Policy {
    /// Nothing is reachable.
    Off,
    /// Every host is.
    Unrestricted,
    /// These hosts are.
    Limited { allowed_hosts: Vec<HostPattern> },
}

impl Policy {
    /// Whether tools may name this host.
    pub(super) fn allows(&self, host: &Host) -> bool {
        match self {
            Self::Off => false,
            Self::Unrestricted => true,
            Self::Limited { allowed_hosts } => allowed_hosts.iter().any(|pattern| pattern.matches(host)),
        }
    }
}

/// A host as an environment lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostPattern {
    /// `example.com`: this name alone.
    Name(String),
    /// `*.example.com`: every name below it, at any depth, and not the name itself.
    Below(String),
    /// An address, which no name matches. The API lists none.
    Address(IpAddr),
}

impl HostPattern {
    /// Reads a pattern. Case and a trailing dot mean nothing; a text that is no host matches no host.
    pub fn new(text: &str) -> Self {
        let text = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        match (text.strip_prefix("*."), text.parse()) {
            (Some(parent), _) => Self::Below(parent.to_owned()),
            (None, Ok(address)) => Self::Address(address),
            (None, Err(_)) => Self::Name(text),
        }
    }

    fn matches(&self, host: &Host) -> bool {
        match (self, host) {
            (Self::Name(listed), Host::Name(name)) => listed == name,
            (Self::Below(parent), Host::Name(name)) => {
                let child = name.strip_suffix(parent.as_str()).and_then(|rest| rest.strip_suffix('.'));
                child.is_some_and(|child| !child.is_empty())
            }
            (Self::Address(listed), Host::Address(address)) => listed == address,
            _ => false,
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => formatter.write_str(name),
            Self::Below(parent) => write!(formatter, "*.{parent}"),
            Self::Address(address) => address.fmt(formatter),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::target::Target;
    use super::*;

    fn allows(patterns: &str, authority: &str) -> bool {
        let allowed_hosts = patterns.split_whitespace().map(HostPattern::new).collect();
        let target = Target::parse(authority, Some(443)).unwrap();
        Policy::Limited { allowed_hosts }.allows(&target.host)
    }

    #[test]
    fn hosts_are_matched_by_label() {
        for (patterns, host, expected) in [
            ("example.com", "example.com", true),
            ("example.com", "EXAMPLE.com", true),
            ("EXAMPLE.com", "example.com", true),
            ("example.com", "example.com.", true),
            ("example.com.", "example.com", true),
            ("example.com", "example.com:8443", true),
            ("example.com", "www.example.com", false),
            ("example.com", "example.com.evil.net", false),
            ("example.com", "evilexample.com", false),
            ("example.com", "example.co", false),
            ("*.example.com", "www.example.com", true),
            ("*.example.com", "a.b.example.com", true),
            ("*.example.com", "A.Example.Com.", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", "evilexample.com", false),
            ("*.example.com", "www.example.com.evil.net", false),
            ("*.com", "example.com", true),
            ("a.net example.com", "example.com", true),
            ("", "example.com", false),
            ("*", "example.com", false),
            ("192.0.2.7", "192.0.2.7", true),
            ("192.0.2.7", "192.0.2.8", false),
            ("*.0.2.7", "192.0.2.7", false),
            ("*.2.7", "192.0.2.7", false),
            ("example.com", "[2001:db8::1]", false),
            ("2001:db8::1", "[2001:DB8:0::1]", true),
        ] {
            assert_eq!(allows(patterns, host), expected, "{patterns:?} {host:?}");
        }
    }

    #[test]
    fn the_other_rules_look_at_no_name() {
        let host = Host::Name("example.com".to_owned());
        assert!(Policy::Unrestricted.allows(&host));
        assert!(!Policy::Off.allows(&host));
    }
}
