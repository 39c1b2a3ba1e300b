// One accept loop, which is the root of the runtime, and a task for each connection.

use std::convert::Infallible;
use std::io;

use corespun_compat::adapters::TokioAsHyper;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};

use super::tokio;
use tokio::net::TcpListener;
use tokio::runtime::Builder;

pub(crate) fn run(threads: usize) -> io::Result<()> {
    let mut builder = match threads {
        1 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    builder
        .worker_threads(threads)
        .enable_all()
        .build()?
        .block_on(serve())
}

async fn serve() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            let hello = service_fn(|_: Request<_>| async {
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"hello"))))
            });
            let served = http1::Builder::new().serve_connection(TokioAsHyper::new(stream), hello);
            // A client that goes away is none of the server's business.
            let _ = served.await;
        });
    }
}
