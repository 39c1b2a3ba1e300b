//! What may be given where an address is wanted.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use crate::io::blocking::asyncify;

/// What can be turned into socket addresses, if need be by asking the resolver on a helper thread.
///
/// As `std`'s trait of that name, but asynchronous. It is implemented for addresses, pairs of an IP
/// address or a host name and a port, strings of the form `host:port`, and slices of addresses, and
/// by this crate only.
///
/// # Examples
///
/// ```
/// # use corespun_compat as tokio;
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
/// tokio::net::TcpStream::connect(listener.local_addr()?).await?;
/// # std::io::Result::Ok(())
/// # }).unwrap();
/// ```
pub trait ToSocketAddrs: sealed::Sealed {}

pub(super) mod sealed {
    use super::Query;

    pub trait Sealed {
        #[doc(hidden)]
        fn query(&self) -> Query;
    }
}

/// Addresses, or what the resolver is to be asked.
#[derive(Debug)]
pub enum Query {
    #[doc(hidden)]
    Known(SocketAddr),
    #[doc(hidden)]
    List(Vec<SocketAddr>),
    #[doc(hidden)]
    Text(String),
    #[doc(hidden)]
    Host(String, u16),
}

/// The addresses to try, in turn.
pub(super) async fn addresses(query: Query) -> io::Result<Vec<SocketAddr>> {
    match query {
        Query::Known(address) => Ok(vec![address]),
        Query::List(addresses) => Ok(addresses),
        Query::Text(text) => {
            asyncify(move || Ok(std::net::ToSocketAddrs::to_socket_addrs(&text)?.collect())).await
        }
        Query::Host(host, port) => {
            asyncify(move || {
                Ok(std::net::ToSocketAddrs::to_socket_addrs(&(&*host, port))?.collect())
            })
            .await
        }
    }
}

macro_rules! known {
    ($($address:ty),* $(,)?) => {$(
        impl ToSocketAddrs for $address {}

        impl sealed::Sealed for $address {
            fn query(&self) -> Query {
                Query::Known((*self).into())
            }
        }
    )*};
}

known!(
    SocketAddr,
    SocketAddrV4,
    SocketAddrV6,
    (IpAddr, u16),
    (Ipv4Addr, u16),
    (Ipv6Addr, u16),
);

impl ToSocketAddrs for [SocketAddr] {}

impl sealed::Sealed for [SocketAddr] {
    fn query(&self) -> Query {
        Query::List(self.to_vec())
    }
}

impl ToSocketAddrs for str {}

impl sealed::Sealed for str {
    fn query(&self) -> Query {
        match self.parse() {
            Ok(address) => Query::Known(address),
            Err(_) => Query::Text(self.to_owned()),
        }
    }
}

impl ToSocketAddrs for String {}

impl sealed::Sealed for String {
    fn query(&self) -> Query {
        self.as_str().query()
    }
}

impl ToSocketAddrs for (&str, u16) {}

impl sealed::Sealed for (&str, u16) {
    fn query(&self) -> Query {
        let &(host, port) = self;
        match host.parse::<IpAddr>() {
            Ok(address) => Query::Known((address, port).into()),
            Err(_) => Query::Host(host.to_owned(), port),
        }
    }
}

impl ToSocketAddrs for (String, u16) {}

impl sealed::Sealed for (String, u16) {
    fn query(&self) -> Query {
        (self.0.as_str(), self.1).query()
    }
}

impl<T: ToSocketAddrs + ?Sized> ToSocketAddrs for &T {}

impl<T: ToSocketAddrs + ?Sized> sealed::Sealed for &T {
    fn query(&self) -> Query {
        (**self).query()
    }
}
