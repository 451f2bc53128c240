//! Which addresses tools may reach: the public ones, and what the operator lists. Pure.
//!
//! IPv6 is judged by what is known to be public, `2000::/3`, rather than by what is known not to be. An address that
//! carries an IPv4 address inside is refused outright, because it may end up there; NAT64 alone is judged by what it
//! carries, since networks without IPv4 reach the rest of the world through it.

use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// IPv4 that is not public, by what it is. The first that matches names it.
const IPV4: &[(Ipv4Addr, u8, &str)] = &[
    (Ipv4Addr::new(0, 0, 0, 0), 8, "unspecified"),
    (Ipv4Addr::new(10, 0, 0, 0), 8, "private"),
    (Ipv4Addr::new(100, 64, 0, 0), 10, "carrier-grade NAT"),
    (Ipv4Addr::new(127, 0, 0, 0), 8, "loopback"),
    (Ipv4Addr::new(169, 254, 169, 254), 32, "metadata"),
    (Ipv4Addr::new(169, 254, 0, 0), 16, "link-local"),
    (Ipv4Addr::new(172, 16, 0, 0), 12, "private"),
    (Ipv4Addr::new(192, 0, 0, 0), 24, "reserved"),
    (Ipv4Addr::new(192, 0, 2, 0), 24, "documentation"),
    (Ipv4Addr::new(192, 88, 99, 0), 24, "reserved"),
    (Ipv4Addr::new(192, 168, 0, 0), 16, "private"),
    (Ipv4Addr::new(198, 18, 0, 0), 15, "benchmark"),
    (Ipv4Addr::new(198, 51, 100, 0), 24, "documentation"),
    (Ipv4Addr::new(203, 0, 113, 0), 24, "documentation"),
    (Ipv4Addr::new(224, 0, 0, 0), 4, "multicast"),
    (Ipv4Addr::new(255, 255, 255, 255), 32, "broadcast"),
    (Ipv4Addr::new(240, 0, 0, 0), 4, "reserved"),
    // Azure answers its machines here, with what they may know of themselves, although the range is public.
    (Ipv4Addr::new(168, 63, 129, 16), 32, "metadata"),
];

/// IPv6 outside [`IPV6_PUBLIC`], named for the message; and what is not public inside it.
const IPV6: &[(Ipv6Addr, u8, &str)] = &[
    (Ipv6Addr::UNSPECIFIED, 128, "unspecified"),
    (Ipv6Addr::LOCALHOST, 128, "loopback"),
    (Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96, "IPv4-mapped"),
    (Ipv6Addr::UNSPECIFIED, 96, "IPv4-compatible"),
    (Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), 48, "local NAT64"),
    (Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), 128, "metadata"),
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7, "unique local"),
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10, "link-local"),
    (Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 10, "site-local"),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8, "multicast"),
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 32, "Teredo"),
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23, "reserved"),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32, "documentation"),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16, "6to4"),
    (Ipv6Addr::new(0x3ffe, 0, 0, 0, 0, 0, 0, 0), 16, "reserved"),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20, "documentation"),
];

const IPV6_PUBLIC: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);
const NAT64: (Ipv6Addr, u8) = (Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96);

/// Whether tools may reach this address; if not, what kind of address it is. What is `listed` they may.
pub(super) fn judge(address: IpAddr, listed: &[IpNet]) -> Result<(), &'static str> {
    if listed.iter().any(|network| network.contains(&address)) {
        return Ok(());
    }
    match address {
        IpAddr::V4(address) => judge_ipv4(address),
        IpAddr::V6(address) if is_within_ipv6(address, NAT64) => {
            let [.., a, b, c, d] = address.octets();
            judge(Ipv4Addr::new(a, b, c, d).into(), listed)
        }
        IpAddr::V6(address) => judge_ipv6(address),
    }
}

fn judge_ipv4(address: Ipv4Addr) -> Result<(), &'static str> {
    let is_within = |network: Ipv4Addr, length: u8| {
        let mask = u32::MAX << (32 - length);
        address.to_bits() & mask == network.to_bits() & mask
    };
    match IPV4.iter().find(|(network, length, _)| is_within(*network, *length)) {
        Some((_, _, kind)) => Err(kind),
        None => Ok(()),
    }
}

fn judge_ipv6(address: Ipv6Addr) -> Result<(), &'static str> {
    match IPV6.iter().find(|(network, length, _)| is_within_ipv6(address, (*network, *length))) {
        Some((_, _, kind)) => Err(kind),
        None if is_within_ipv6(address, IPV6_PUBLIC) => Ok(()),
        None => Err("reserved"),
    }
}

fn is_within_ipv6(address: Ipv6Addr, (network, length): (Ipv6Addr, u8)) -> bool {
    let mask = u128::MAX << (128 - length);
    address.to_bits() & mask == network.to_bits() & mask
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(address: &str, listed: &str) -> &'static str {
        let listed: Vec<IpNet> = listed.split_whitespace().map(|network| network.parse().unwrap()).collect();
        judge(address.parse().unwrap(), &listed).err().unwrap_or("public")
    }

    #[test]
    fn addresses_are_judged_by_what_they_are() {
        for (address, expected) in [
            ("0.0.0.0", "unspecified"),
            ("0.1.2.3", "unspecified"),
            ("9.255.255.255", "public"),
            ("10.0.0.0", "private"),
            ("10.255.255.255", "private"),
            ("11.0.0.0", "public"),
            ("100.63.255.255", "public"),
            ("100.64.0.0", "carrier-grade NAT"),
            ("100.100.100.200", "carrier-grade NAT"),
            ("100.127.255.255", "carrier-grade NAT"),
            ("100.128.0.0", "public"),
            ("126.255.255.255", "public"),
            ("127.0.0.1", "loopback"),
            ("127.255.255.254", "loopback"),
            ("128.0.0.0", "public"),
            ("168.63.129.16", "metadata"),
            ("168.63.129.17", "public"),
            ("169.253.255.255", "public"),
            ("169.254.0.1", "link-local"),
            ("169.254.169.254", "metadata"),
            ("169.254.170.2", "link-local"),
            ("169.255.0.0", "public"),
            ("172.15.255.255", "public"),
            ("172.16.0.0", "private"),
            ("172.31.255.255", "private"),
            ("172.32.0.0", "public"),
            ("192.0.0.192", "reserved"),
            ("192.0.1.0", "public"),
            ("192.0.2.1", "documentation"),
            ("192.88.99.1", "reserved"),
            ("192.167.255.255", "public"),
            ("192.168.0.0", "private"),
            ("192.168.255.255", "private"),
            ("192.169.0.0", "public"),
            ("198.17.255.255", "public"),
            ("198.18.0.0", "benchmark"),
            ("198.19.255.255", "benchmark"),
            ("198.51.100.7", "documentation"),
            ("203.0.113.7", "documentation"),
            ("223.255.255.255", "public"),
            ("224.0.0.1", "multicast"),
            ("239.255.255.255", "multicast"),
            ("240.0.0.1", "reserved"),
            ("255.255.255.255", "broadcast"),
            ("::", "unspecified"),
            ("::1", "loopback"),
            ("::2", "IPv4-compatible"),
            ("::127.0.0.1", "IPv4-compatible"),
            ("::ffff:127.0.0.1", "IPv4-mapped"),
            ("::ffff:8.8.8.8", "IPv4-mapped"),
            ("::ffff:0:127.0.0.1", "reserved"),
            ("64:ff9b::8.8.8.8", "public"),
            ("64:ff9b::127.0.0.1", "loopback"),
            ("64:ff9b::169.254.169.254", "metadata"),
            ("64:ff9b::10.0.0.1", "private"),
            ("64:ff9b:1::8.8.8.8", "local NAT64"),
            ("64:ff9b:0:0:1::808:808", "reserved"),
            ("100::1", "reserved"),
            ("1fff::1", "reserved"),
            ("2000::1", "public"),
            ("2001::1", "Teredo"),
            ("2001:0:4136:e378::1", "Teredo"),
            ("2001:2::1", "reserved"),
            ("2001:10::1", "reserved"),
            ("2001:20::1", "reserved"),
            ("2001:1ff:ffff::1", "reserved"),
            ("2001:200::1", "public"),
            ("2001:db8::1", "documentation"),
            ("2001:4860:4860::8888", "public"),
            ("2002:7f00:1::1", "6to4"),
            ("2606:4700::1111", "public"),
            ("3ffe::1", "reserved"),
            ("3fff::1", "documentation"),
            ("3fff:1000::1", "public"),
            ("4000::1", "reserved"),
            ("5f00::1", "reserved"),
            ("fc00::1", "unique local"),
            ("fd00:ec2::254", "metadata"),
            ("fd12:3456::1", "unique local"),
            ("fe80::1", "link-local"),
            ("febf::1", "link-local"),
            ("fec0::1", "site-local"),
            ("ff02::1", "multicast"),
        ] {
            assert_eq!(kind(address, ""), expected, "{address}");
        }
    }

    #[test]
    fn what_the_operator_lists_is_reachable() {
        for (address, listed, expected) in [
            ("10.1.2.3", "10.1.0.0/16", "public"),
            ("10.2.0.1", "10.1.0.0/16", "private"),
            ("127.0.0.1", "10.0.0.0/8 127.0.0.1/32", "public"),
            ("127.0.0.2", "127.0.0.1/32", "loopback"),
            ("::ffff:10.1.2.3", "10.1.0.0/16", "IPv4-mapped"),
            ("::ffff:127.0.0.1", "0.0.0.0/0", "IPv4-mapped"),
            ("64:ff9b::10.1.2.3", "10.1.0.0/16", "public"),
            ("fd00::7", "fd00::/64", "public"),
            ("fd00:0:0:1::7", "fd00::/64", "unique local"),
        ] {
            assert_eq!(kind(address, listed), expected, "{address} with {listed}");
        }
    }
}
