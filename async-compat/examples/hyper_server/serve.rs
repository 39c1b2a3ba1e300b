//! An HTTP server on hyper: HTTP/1 and HTTP/2 on one port.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use corespun_compat as tokio;

use bytes::Bytes;
use corespun_compat::adapters::{HyperExecutor, HyperTimer, TokioAsHyper};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use tokio::net::{TcpListener, TcpStream};

/// What a client of HTTP/2 says first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Serves every connection in a task of its own.
pub(crate) async fn serve(listener: TcpListener) -> io::Result<Infallible> {
    loop {
        match listener.accept().await {
            Ok((socket, _)) => drop(tokio::spawn(connection(socket))),
            // At the limit of descriptors, say: some will be closed.
            Err(error) => {
                eprintln!("accept: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection(socket: TcpStream) {
    if let Err(error) = socket.set_nodelay(true) {
        return eprintln!("connection: {error}");
    }
    let served = match speaks_http2(&socket).await {
        Ok(true) => {
            hyper::server::conn::http2::Builder::new(HyperExecutor)
                .timer(HyperTimer)
                .serve_connection(TokioAsHyper::new(socket), service_fn(answer))
                .await
        }
        Ok(false) => {
            hyper::server::conn::http1::Builder::new()
                .timer(HyperTimer)
                .serve_connection(TokioAsHyper::new(socket), service_fn(answer))
                .await
        }
        Err(error) => return eprintln!("connection: {error}"),
    };
    if let Err(error) = served {
        eprintln!("connection: {error}");
    }
}

/// Looks at the first bytes without taking them.
async fn speaks_http2(socket: &TcpStream) -> io::Result<bool> {
    let mut first = [0; PREFACE.len()];
    loop {
        let count = socket.peek(&mut first).await?;
        if count == 0 || !PREFACE.starts_with(&first[..count]) {
            return Ok(false);
        }
        if count == PREFACE.len() {
            return Ok(true);
        }
        // The rest is on its way; a look does not wait for more than there is.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn answer(
    request: Request<Incoming>,
) -> Result<Response<BoxBody<Bytes, hyper::Error>>, Infallible> {
    let text = |text: &'static str| Full::from(text).map_err(|never| match never {}).boxed();
    let response = match (request.method(), request.uri().path()) {
        (&Method::GET, "/") => Response::new(text("hello\n")),
        // As it comes, without keeping it.
        (&Method::POST, "/echo") => Response::new(request.into_body().boxed()),
        _ => {
            let nothing = Empty::new().map_err(|never| match never {}).boxed();
            let mut response = Response::new(nothing);
            *response.status_mut() = StatusCode::NOT_FOUND;
            response
        }
    };
    Ok(response)
}
