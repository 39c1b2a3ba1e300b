//! Name resolution.

use std::io;
use std::net::SocketAddr;

use super::{ToSocketAddrs, addresses};

/// Resolves `host` to its socket addresses, on a helper thread where the resolver has to be asked.
///
/// # Errors
///
/// Those of the resolver.
pub async fn lookup_host<T: ToSocketAddrs>(
    host: T,
) -> io::Result<impl Iterator<Item = SocketAddr>> {
    let query = host.query();
    Ok(addresses(query).await?.into_iter())
}
