//! `worker.network`: what tools may reach at all, whatever their environment allows.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{ByteSize, Problem, TimeSpan};
use crate::http::is_host_pattern;

/// The network of tools. Their environment says which hosts they may name; this says what none of them may.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct WorkerNetwork {
    /// Whether tools have a network. Off, no environment can give them one.
    pub enabled: bool,
    /// Addresses that tools may reach although they are not public, such as `10.20.0.0/16` or `192.168.1.7`. Every
    /// session may reach them that may name a host there.
    pub allowed_addresses: Vec<AddressRange>,
    /// What `allow_package_managers` of an environment allows, such as `packages.example.com` or `*.example.org`. Read
    /// by the server.
    pub package_hosts: Vec<String>,
    /// What the tools of one session may use of the network.
    pub limits: WorkerNetworkLimits,
}

/// What the tools of one session may use of the network.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct WorkerNetworkLimits {
    /// Connections at the same time.
    pub max_connections: usize,
    /// From naming a host to a connection with it.
    pub connect_timeout: TimeSpan,
    /// A connection on which nothing moves for so long ends.
    pub idle_timeout: TimeSpan,
    /// A connection ends after this, whatever moves on it.
    pub max_connection_time: TimeSpan,
    /// Bytes in both directions together, for as long as a worker keeps the session's sandbox. 0 sets no limit.
    pub max_bytes: ByteSize,
}

impl Default for WorkerNetwork {
    fn default() -> Self {
        Self {
            enabled: true,
            allowed_addresses: Vec::new(),
            package_hosts: Vec::new(),
            limits: WorkerNetworkLimits::default(),
        }
    }
}

impl Default for WorkerNetworkLimits {
    fn default() -> Self {
        Self {
            max_connections: 128,
            connect_timeout: TimeSpan::from_secs(15),
            idle_timeout: TimeSpan::from_secs(120),
            max_connection_time: TimeSpan::from_secs(3600),
            max_bytes: ByteSize::from_bytes(16 << 30),
        }
    }
}

impl WorkerNetwork {
    pub(super) fn validate(&self) -> Result<(), Problem> {
        if let Some(host) = self.package_hosts.iter().find(|host| !is_host_pattern(host)) {
            let message = format!("{host:?} is no host name such as example.com or *.example.com");
            return Err(Problem::new("worker.network.package_hosts", message));
        }
        let limits = &self.limits;
        if limits.max_connections == 0 {
            return Err(Problem::new("worker.network.limits.max_connections", "must be at least 1"));
        }
        for (key, span) in [
            ("worker.network.limits.connect_timeout", limits.connect_timeout),
            ("worker.network.limits.idle_timeout", limits.idle_timeout),
            ("worker.network.limits.max_connection_time", limits.max_connection_time),
        ] {
            if span.get().as_secs() == 0 {
                return Err(Problem::new(key, "must be at least 1s"));
            }
        }
        Ok(())
    }
}

/// A network in CIDR notation, or a single address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRange(IpNet);

/// A text that is no range of addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected an address such as 192.168.1.7 or a network such as 10.20.0.0/16, got {0:?}")]
pub struct AddressRangeError(String);

impl AddressRange {
    /// The range as the worker has it.
    pub const fn get(self) -> IpNet {
        self.0
    }
}

impl FromStr for AddressRange {
    type Err = AddressRangeError;

    fn from_str(text: &str) -> Result<Self, AddressRangeError> {
        let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        network.map(Self).map_err(|_| AddressRangeError(text.to_owned()))
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.prefix_len() == self.0.max_prefix_len() { self.0.addr().fmt(f) } else { self.0.fmt(f) }
    }
}

impl Serialize for AddressRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AddressRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for AddressRange {
    fn schema_name() -> Cow<'static, str> {
        "address_range".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "format": "address, or network such as 10.20.0.0/16"})
    }
}
