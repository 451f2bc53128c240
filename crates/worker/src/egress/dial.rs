//! From a host that a tool named to a connection with it, or a denial.
//!
//! The order is the guarantee: the name passes the session's policy, each address of its answer is judged, and the
//! very addresses that passed are dialled. No name is looked up twice for one connection.

use http::StatusCode;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::Session;
use super::address;
use super::policy::Policy;
use super::refusal::{Denial, Reason};
use super::target::{Host, Target};

/// Allowed hosts that a refusal names.
const HOSTS_SHOWN_MAX: usize = 10;
/// Addresses of one answer that are tried; more are no service but a scan.
const ADDRESSES_MAX: usize = 16;

impl Session {
    /// Connects to the target, if the session may.
    pub(super) async fn dial(&self, target: &Target) -> Result<TcpStream, Denial> {
        if !self.policy.allows(&target.host) {
            return Err(not_allowed(&self.policy, &target.host));
        }
        let deadline = Instant::now() + self.shared.config.limits.connect_timeout;
        let found = match &target.host {
            Host::Address(address) => vec![*address],
            Host::Name(name) => tokio::time::timeout_at(deadline, self.resolve(name))
                .await
                .map_err(|_| {
                    Denial::failed(
                        StatusCode::GATEWAY_TIMEOUT,
                        format!("the name {name} could not be looked up in time"),
                    )
                })?
                .map_err(|_| {
                    let text = format!("the name {name} cannot be resolved; check its spelling");
                    Denial::failed(StatusCode::BAD_GATEWAY, text)
                })?,
        };
        let reachable = self.reachable(target, found)?;
        connect(&target.host, target.port, &reachable, deadline).await
    }

    /// Looks the name up. The look-up goes on when nobody waits for it any more, since a thread is in it, and
    /// counts against the session until it is over.
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let permit = Arc::clone(&self.lookups).acquire_owned().await.map_err(io::Error::other)?;
        let lookup = self.shared.resolver.resolve(name.to_owned());
        let lookup = tokio::spawn(async move {
            let found = lookup.await;
            drop(permit);
            found
        });
        lookup.await.map_err(io::Error::other)?
    }

    /// The addresses that may be dialled.
    fn reachable(&self, target: &Target, found: Vec<IpAddr>) -> Result<Vec<IpAddr>, Denial> {
        let mut refused = None;
        let mut reachable = Vec::new();
        for address in found.into_iter().take(ADDRESSES_MAX) {
            match self.judge(address) {
                Ok(()) => reachable.push(address),
                Err(kind) => refused = Some(kind),
            }
        }
        match (refused, &target.host) {
            _ if !reachable.is_empty() => Ok(reachable),
            (Some(kind), host) => {
                let is = if matches!(host, Host::Name(_)) {
                    "has only addresses of the kind"
                } else {
                    "is an address of the kind"
                };
                let text = format!(
                    "{host} {is} {kind:?}, which tools may not reach; use a public host, or ask the operator to list \
                     the address in worker.network.allowed_addresses"
                );
                Err(Denial::refused(Reason::Address, text))
            }
            (None, host) => Err(Denial::failed(StatusCode::BAD_GATEWAY, format!("the name {host} has no address"))),
        }
    }

    fn judge(&self, address: IpAddr) -> Result<(), &'static str> {
        let listed = &self.shared.config.allowed_addresses;
        address::judge(address, listed)?;
        let is_listed = listed.iter().any(|network| network.contains(&address));
        if !is_listed && self.shared.own_addresses.contains(address) { Err("this machine's own") } else { Ok(()) }
    }
}

fn not_allowed(policy: &Policy, host: &Host) -> Denial {
    let Policy::Limited { allowed_hosts } = policy else { return switched_off() };
    let shown: Vec<String> = allowed_hosts.iter().take(HOSTS_SHOWN_MAX).map(ToString::to_string).collect();
    let hosts = match (shown.is_empty(), allowed_hosts.len() - shown.len()) {
        (true, _) => "it allows none".to_owned(),
        (false, 0) => format!("it allows {}", shown.join(", ")),
        (false, more) => format!("it allows {} and {more} more", shown.join(", ")),
    };
    let text = format!("the environment of this session does not allow the host {host}; {hosts}");
    Denial::refused(Reason::NotAllowed, text)
}

/// The answer to everything where there is no network.
pub(super) fn switched_off() -> Denial {
    Denial::refused(Reason::Off, "the operator has switched the network off for tools; work without it")
}

/// Tries the addresses in order. Each gets its share of the time that is left.
async fn connect(host: &Host, port: u16, addresses: &[IpAddr], deadline: Instant) -> Result<TcpStream, Denial> {
    let mut last = Denial::failed(StatusCode::BAD_GATEWAY, format!("{host} has no address"));
    for (index, address) in addresses.iter().enumerate() {
        let left = u32::try_from(addresses.len() - index).unwrap_or(u32::MAX);
        let share = deadline.saturating_duration_since(Instant::now()) / left;
        last = match tokio::time::timeout(share, TcpStream::connect(SocketAddr::new(*address, port))).await {
            Ok(Ok(stream)) => {
                // Only latency is lost without it.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(error)) => Denial::failed(StatusCode::BAD_GATEWAY, format!("{host} port {port}: {}", error.kind())),
            Err(_) => {
                let text = format!("{host} port {port} did not answer in time");
                Denial::failed(StatusCode::GATEWAY_TIMEOUT, text)
            }
        };
    }
    Err(last)
}

/// Tells the addresses of this machine from those of others: behind a public one of its own may be the server, its
/// metrics or its database, which listen to the machine itself.
#[derive(Debug)]
pub(super) enum OwnAddresses {
    /// What can be bound is our own.
    ByBinding,
    /// Everything can be bound here (`ip_nonlocal_bind`): only the address that the kernel would send from tells.
    BySource,
}

impl OwnAddresses {
    pub(super) fn new() -> Self {
        // An address for documentation is nobody's.
        if UdpSocket::bind("192.0.2.1:0").is_ok() { Self::BySource } else { Self::ByBinding }
    }

    /// Nothing is sent for this.
    fn contains(&self, address: IpAddr) -> bool {
        if matches!(self, Self::ByBinding) {
            return UdpSocket::bind((address, 0)).is_ok();
        }
        let any: IpAddr = if address.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        UdpSocket::bind((any, 0))
            .and_then(|socket| socket.connect((address, 9)).and_then(|()| socket.local_addr()))
            .is_ok_and(|source| source.ip() == address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_knows_its_own_addresses() {
        let foreign = ["8.8.8.8", "2001:4860:4860::8888"];
        for way in [OwnAddresses::ByBinding, OwnAddresses::BySource] {
            assert!(way.contains([127, 0, 0, 1].into()), "{way:?}");
            for address in foreign {
                assert!(!way.contains(address.parse().unwrap()), "{way:?} {address}");
            }
        }
    }
}
