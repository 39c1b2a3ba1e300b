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
/// ```no_run
/// use corespun::net::{TcpStream, lookup_host};
///
/// # async fn f() -> std::io::Result<()> {
/// let address = lookup_host("localhost:10809").await?[0];
/// let stream = TcpStream::connect(address).await?;
/// # Ok(()) }
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
