//! Turns names into addresses, with the operator's own resolver: `/etc/hosts`, search domains and all.
//!
//! A trait, so that tests can give answers that change between two look-ups.

use futures::FutureExt as _;
use futures::future::BoxFuture;
use std::io;
use std::net::IpAddr;

/// Looks names up. Every answer is judged anew by whoever asked.
pub trait Resolve: Send + Sync + 'static {
    fn resolve(&self, name: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>>;
}

/// The resolver of the operating system.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve(&self, name: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            Ok(found.map(|address| address.ip()).collect())
        }
        .boxed()
    }
}
