//! An HTTP client on hyper and SpdkThreads, with tokio's API.
//!
//! ```text
//! cargo run -p corespun-compat --features full,hyper --example hyper_client -- http://127.0.0.1:8080/
//! ```

use std::error::Error;

use corespun_compat as tokio;

use bytes::Bytes;
use corespun_compat::adapters::TokioAsHyper;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, Uri};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::runtime::Builder;

fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::args().nth(1).ok_or("which URL?")?.parse()?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(fetch(url))
}

async fn fetch(url: Uri) -> Result<(), Box<dyn Error>> {
    let host = url.host().ok_or("a URL with a host")?;
    let socket = TcpStream::connect((host, url.port_u16().unwrap_or(80))).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioAsHyper::new(socket)).await?;
    let connection = tokio::spawn(connection);

    let authority = url.authority().ok_or("a URL with a host")?.as_str();
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path)
        .header(hyper::header::HOST, authority)
        .body(Empty::<Bytes>::new())?;
    let mut response = sender.send_request(request).await?;
    eprintln!("{:?} {}", response.version(), response.status());
    let mut stdout = tokio::io::stdout();
    while let Some(frame) = response.frame().await {
        if let Some(part) = frame?.data_ref() {
            stdout.write_all(part).await?;
        }
    }
    stdout.flush().await?;
    drop(sender);
    connection.await??;
    Ok(())
}
