//! TCP of the runtimes, each in the way that is its own.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{FromRawFd, IntoRawFd};

use async_io::Async;
use futures::{AsyncReadExt, AsyncWriteExt};

use crate::neighbours::{Compio, Glommio, Monoio, Smol, Tokio};
use crate::reactor::{Reactor, SleepingReactor};
use crate::sockets::{Sockets, is_end};

/// On the traits of the crate `futures`, which two of them have.
macro_rules! on_futures_traits {
    () => {
        async fn echo(mut stream: Self::Stream, size: usize) {
            let mut message = vec![0; size];
            while stream.read_exact(&mut message).await.is_ok() {
                stream.write_all(&message).await.expect("a client");
            }
        }

        async fn wait_for_end(mut stream: Self::Stream) {
            let read = stream.read(&mut [0]).await;
            assert!(is_end(read));
        }
    };
}

macro_rules! corespun {
    ($($mode:ty),*) => {$(
        impl Sockets for $mode {
            type Listener = corespun::net::TcpListener;
            type Stream = corespun::net::TcpStream;

            fn listener(plain: TcpListener) -> Self::Listener {
                corespun::net::TcpListener::from_std(plain).expect("a driver")
            }

            async fn accept(listener: &Self::Listener) -> Self::Stream {
                listener.accept().await.expect("a client").0
            }

            async fn connect(address: SocketAddr) -> Self::Stream {
                corespun::net::TcpStream::connect(address).await.expect("a server")
            }

            async fn echo(stream: Self::Stream, size: usize) {
                let mut message = vec![0; size];
                loop {
                    let (read, back) = stream.recv_exact(message).await;
                    if read.is_err() {
                        return;
                    }
                    let (sent, back) = stream.send_all(back).await;
                    sent.expect("a client");
                    message = back;
                }
            }

            async fn wait_for_end(mut stream: Self::Stream) {
                let read = stream.read(&mut [0]).await;
                assert!(is_end(read));
            }
        }
    )*};
}

corespun!(Reactor, SleepingReactor);

impl Sockets for Tokio {
    type Listener = tokio::net::TcpListener;
    type Stream = tokio::net::TcpStream;

    fn listener(plain: TcpListener) -> Self::Listener {
        plain.set_nonblocking(true).expect("an option");
        tokio::net::TcpListener::from_std(plain).expect("a driver")
    }

    async fn accept(listener: &Self::Listener) -> Self::Stream {
        listener.accept().await.expect("a client").0
    }

    async fn connect(address: SocketAddr) -> Self::Stream {
        tokio::net::TcpStream::connect(address)
            .await
            .expect("a server")
    }

    async fn echo(mut stream: Self::Stream, size: usize) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut message = vec![0; size];
        while stream.read_exact(&mut message).await.is_ok() {
            stream.write_all(&message).await.expect("a client");
        }
    }

    async fn wait_for_end(mut stream: Self::Stream) {
        let read = tokio::io::AsyncReadExt::read(&mut stream, &mut [0]).await;
        assert!(is_end(read));
    }
}

impl Sockets for Smol {
    type Listener = Async<TcpListener>;
    type Stream = Async<TcpStream>;

    fn listener(plain: TcpListener) -> Self::Listener {
        Async::new(plain).expect("a driver")
    }

    async fn accept(listener: &Self::Listener) -> Self::Stream {
        listener.accept().await.expect("a client").0
    }

    async fn connect(address: SocketAddr) -> Self::Stream {
        Async::<TcpStream>::connect(address)
            .await
            .expect("a server")
    }

    on_futures_traits!();
}

impl Sockets for Glommio {
    type Listener = glommio::net::TcpListener;
    type Stream = glommio::net::TcpStream;

    fn listener(plain: TcpListener) -> Self::Listener {
        // SAFETY: the descriptor is given away.
        unsafe { glommio::net::TcpListener::from_raw_fd(plain.into_raw_fd()) }
    }

    async fn accept(listener: &Self::Listener) -> Self::Stream {
        listener.accept().await.expect("a client")
    }

    async fn connect(address: SocketAddr) -> Self::Stream {
        glommio::net::TcpStream::connect(address)
            .await
            .expect("a server")
    }

    on_futures_traits!();
}

impl Sockets for Monoio {
    type Listener = monoio::net::TcpListener;
    type Stream = monoio::net::TcpStream;

    fn listener(plain: TcpListener) -> Self::Listener {
        monoio::net::TcpListener::from_std(plain).expect("a driver")
    }

    async fn accept(listener: &Self::Listener) -> Self::Stream {
        listener.accept().await.expect("a client").0
    }

    async fn connect(address: SocketAddr) -> Self::Stream {
        monoio::net::TcpStream::connect_addr(address)
            .await
            .expect("a server")
    }

    async fn echo(mut stream: Self::Stream, size: usize) {
        use monoio::io::{AsyncReadRentExt, AsyncWriteRentExt};
        let mut message = vec![0; size];
        loop {
            let (read, back) = stream.read_exact(message).await;
            if read.is_err() {
                return;
            }
            let (sent, back) = stream.write_all(back).await;
            sent.expect("a client");
            message = back;
        }
    }

    async fn wait_for_end(mut stream: Self::Stream) {
        let read = monoio::io::AsyncReadRent::read(&mut stream, vec![0]).await;
        assert!(is_end(read.0));
    }
}

impl Sockets for Compio {
    type Listener = compio::net::TcpListener;
    type Stream = compio::net::TcpStream;

    fn listener(plain: TcpListener) -> Self::Listener {
        compio::net::TcpListener::from_std(plain).expect("a driver")
    }

    async fn accept(listener: &Self::Listener) -> Self::Stream {
        listener.accept().await.expect("a client").0
    }

    async fn connect(address: SocketAddr) -> Self::Stream {
        compio::net::TcpStream::connect(address)
            .await
            .expect("a server")
    }

    async fn echo(mut stream: Self::Stream, size: usize) {
        use compio::io::{AsyncReadExt, AsyncWriteExt};
        let mut message = Vec::with_capacity(size);
        loop {
            message.clear();
            let compio::BufResult(read, back) = stream.read_exact(message).await;
            if read.is_err() {
                return;
            }
            let compio::BufResult(sent, back) = stream.write_all(back).await;
            sent.expect("a client");
            message = back;
        }
    }

    async fn wait_for_end(mut stream: Self::Stream) {
        let compio::BufResult(read, _) =
            compio::io::AsyncRead::read(&mut stream, Vec::with_capacity(1)).await;
        assert!(is_end(read));
    }
}
