//! Name resolution, on a helper thread: the C library's resolver blocks.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};

use crate::io::unblock;

/// Resolves `host`, written `name:port` or `address:port`, to the addresses to try in turn.
///
/// # Errors
///
/// Those of the resolver; `InvalidInput` without a port. A resolver that finds nothing is an error
/// too.
///
/// # Cancel safety
///
/// Safe; the look-up goes on unobserved.
///
/// # Examples
///
/// ```
/// use corespun::net::lookup_host;
///
/// # corespun::app::App::builder().handle_signals(false).block_on(async |_app| {
/// // An address is one already; a name is looked up.
/// assert_eq!(lookup_host("127.0.0.1:10809").await?, ["127.0.0.1:10809".parse()?]);
/// assert!(lookup_host("127.0.0.1").await.is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })??;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub async fn lookup_host(host: &str) -> io::Result<Vec<SocketAddr>> {
    let name = host.to_owned();
    let found: Vec<SocketAddr> = unblock(move || name.to_socket_addrs()).await??.collect();
    match found.is_empty() {
        true => Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("{host} has no address"),
        )),
        false => Ok(found),
    }
}
