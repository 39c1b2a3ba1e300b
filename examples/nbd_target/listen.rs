//! Where clients come in: the sockets that are listened on, and the sockets of accepted
//! clients on their way to the thread that serves them.
//!
//! What a listener has made in the file system goes away with it.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use corespun::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use socket2::{SockRef, TcpKeepalive};

/// Idle time after which the system asks a TCP client whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// One socket clients come in by.
#[derive(Debug)]
pub(crate) enum Listener {
    Unix(UnixListener, SocketFile),
    Tcp(TcpListener),
}

/// Why nobody can be listened for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ListenError {
    /// There is something at the path already.
    #[error(
        "{0} exists: another server uses it, or has left it behind; choose another path, or \
         remove it if no server runs"
    )]
    PathInUse(PathBuf),
    /// The system refused the path.
    #[error("cannot listen on {path}: {source}")]
    Unix { path: PathBuf, source: io::Error },
    /// The system refused the address.
    #[error("cannot listen on {address}: {source}")]
    Tcp {
        address: SocketAddr,
        source: io::Error,
    },
    /// The fresh directory could not be made.
    #[error("cannot make a private directory for the socket: {0}")]
    Directory(#[source] io::Error),
}

impl Listener {
    /// Listens on a Unix socket at `path`.
    ///
    /// # Errors
    ///
    /// [`ListenError`]; what is at the path is left alone.
    pub(crate) fn unix(path: &Path) -> Result<Listener, ListenError> {
        Self::unix_in(path.to_owned(), None)
    }

    /// Listens on a Unix socket in a fresh directory that only this user can enter.
    ///
    /// # Errors
    ///
    /// [`ListenError`].
    pub(crate) fn private() -> Result<Listener, ListenError> {
        let directory = tempfile::Builder::new()
            .prefix("nbd_target.")
            .permissions(std::fs::Permissions::from_mode(0o700))
            .tempdir()
            .map_err(ListenError::Directory)?;
        Self::unix_in(directory.path().join("nbd.sock"), Some(directory))
    }

    fn unix_in(
        path: PathBuf,
        directory: Option<tempfile::TempDir>,
    ) -> Result<Listener, ListenError> {
        match UnixListener::bind(&path) {
            Ok(listener) => {
                let identity = identity(&path);
                let file = SocketFile {
                    identity: identity.ok(),
                    path,
                    _directory: directory,
                };
                Ok(Listener::Unix(listener, file))
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                Err(ListenError::PathInUse(path))
            }
            Err(source) => Err(ListenError::Unix { path, source }),
        }
    }

    /// Listens on a TCP address.
    ///
    /// # Errors
    ///
    /// [`ListenError`].
    pub(crate) fn tcp(address: SocketAddr) -> Result<Listener, ListenError> {
        TcpListener::bind(address)
            .map(Listener::Tcp)
            .map_err(|source| ListenError::Tcp { address, source })
    }

    /// The URI by which clients find `export` here.
    ///
    /// # Errors
    ///
    /// Those of `getsockname(2)`.
    pub(crate) fn uri(&self, export: &str) -> io::Result<String> {
        let export = escaped(export.as_bytes());
        Ok(match self {
            Listener::Unix(_, file) => {
                use std::os::unix::ffi::OsStrExt;
                let path = std::path::absolute(&file.path)?;
                let path = escaped(path.as_os_str().as_bytes());
                format!("nbd+unix:///{export}?socket={path}")
            }
            Listener::Tcp(listener) => format!("nbd://{}/{export}", listener.local_addr()?),
        })
    }

    /// Takes the next client.
    ///
    /// # Errors
    ///
    /// Those of `accept(2)`; the listener is still good.
    pub(crate) async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Listener::Unix(listener, _) => {
                let (stream, _) = listener.accept_std().await?;
                Ok(Accepted::Unix(stream))
            }
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept_std().await?;
                let socket = SockRef::from(&stream);
                // Replies leave when they are ready; they are gathered already.
                socket.set_tcp_nodelay(true)?;
                let keepalive = TcpKeepalive::new().with_time(KEEPALIVE);
                socket.set_tcp_keepalive(&keepalive)?;
                Ok(Accepted::Tcp(stream))
            }
        }
    }
}

/// A socket's file, and the directory made for it; removed when dropped, unless another file, which
/// may be another server's socket, has taken its place.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// What was made here; `None` if somebody took it away at once.
    identity: Option<(u64, u64)>,
    _directory: Option<tempfile::TempDir>,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let removed = match identity(&self.path) {
            Ok(found) if self.identity == Some(found) => std::fs::remove_file(&self.path),
            Ok(_) => return,
            Err(error) => Err(error),
        };
        if let Err(error) = removed
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "the socket stays behind");
        }
    }
}

/// Device and inode of what is at `path`.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let found = std::fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

/// A client's socket between two threads.
#[derive(Debug)]
pub(crate) enum Accepted {
    Unix(std::os::unix::net::UnixStream),
    Tcp(std::net::TcpStream),
}

/// A client's socket on the thread that serves it.
pub(crate) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Accepted {
    /// Takes the socket up on this thread.
    ///
    /// # Errors
    ///
    /// If the thread's driver cannot watch it.
    pub(crate) fn attach(self) -> io::Result<Stream> {
        Ok(match self {
            Accepted::Unix(stream) => Stream::Unix(UnixStream::from_std(stream)?),
            Accepted::Tcp(stream) => Stream::Tcp(TcpStream::from_std(stream)?),
        })
    }
}

/// Percent-encodes what has a meaning of its own in a URI, and quotes of a shell.
fn escaped(bytes: &[u8]) -> String {
    let mut text = String::new();
    for &byte in bytes {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'.' | b'_' | b'~' => {
                text.push(byte.into());
            }
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}
