//! The address of a Unix socket.

use std::fmt;
use std::os::linux::net::SocketAddrExt;
use std::path::Path;

use socket2::SockAddr;

/// The address of a Unix socket: a path, an abstract name, or none.
#[derive(Clone)]
pub struct SocketAddr(pub(super) std::os::unix::net::SocketAddr);

impl SocketAddr {
    /// Whether it is none.
    pub fn is_unnamed(&self) -> bool {
        self.0.is_unnamed()
    }

    /// The path, if it is one.
    pub fn as_pathname(&self) -> Option<&Path> {
        self.0.as_pathname()
    }

    /// The abstract name, if it is one.
    pub fn as_abstract_name(&self) -> Option<&[u8]> {
        self.0.as_abstract_name()
    }

    /// What the kernel has said: of a socket without a name, only its family or nothing.
    pub(super) fn of(address: SockAddr) -> std::io::Result<SocketAddr> {
        match address.as_unix() {
            Some(address) => Ok(SocketAddr(address)),
            None => std::os::unix::net::SocketAddr::from_pathname("").map(SocketAddr),
        }
    }

    /// As the kernel wants it.
    pub(super) fn to_sock_addr(&self) -> std::io::Result<SockAddr> {
        sock_addr(&self.0)
    }
}

pub(super) fn sock_addr(address: &std::os::unix::net::SocketAddr) -> std::io::Result<SockAddr> {
    use std::os::unix::ffi::OsStrExt;
    match (address.as_pathname(), address.as_abstract_name()) {
        (Some(path), _) => SockAddr::unix(path),
        // With the leading NUL it is an abstract one.
        (None, Some(name)) => {
            let path = [b"\0", name].concat();
            SockAddr::unix(std::ffi::OsStr::from_bytes(&path))
        }
        (None, None) => SockAddr::unix(""),
    }
}

impl fmt::Debug for SocketAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<std::os::unix::net::SocketAddr> for SocketAddr {
    fn from(address: std::os::unix::net::SocketAddr) -> Self {
        SocketAddr(address)
    }
}

impl From<SocketAddr> for std::os::unix::net::SocketAddr {
    fn from(address: SocketAddr) -> Self {
        address.0
    }
}
