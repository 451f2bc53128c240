//! The operator's settings of the network of tools; defaults are those of the documentation.

use ipnet::IpNet;
use std::time::Duration;

/// What tools may reach at all, whatever their environment allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Off, no tool reaches anything.
    pub enabled: bool,
    /// Networks that tools may reach although they are not public.
    pub allowed_addresses: Vec<IpNet>,
    pub limits: NetworkLimits,
}

/// What the tools of one session may use of the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkLimits {
    /// Connections to the proxy at the same time.
    pub connections_max: usize,
    /// From the request for a host to a connection with it, its name looked up in between.
    pub connect_timeout: Duration,
    /// A connection on which nothing moves for so long ends.
    pub idle_timeout: Duration,
    /// A connection ends after this, whatever moves on it.
    pub connection_lifetime: Duration,
    /// Bytes in both directions together, for as long as a sandbox lives. 0 sets no limit.
    pub bytes_max: u64,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self { enabled: true, allowed_addresses: Vec::new(), limits: NetworkLimits::default() }
    }
}

impl Default for NetworkLimits {
    fn default() -> Self {
        Self {
            connections_max: 128,
            connect_timeout: Duration::from_secs(15),
            idle_timeout: Duration::from_secs(120),
            connection_lifetime: Duration::from_secs(3600),
            bytes_max: 16 << 30,
        }
    }
}
