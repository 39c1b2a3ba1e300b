//! An HTTP server on hyper and SpdkThreads, with tokio's API.
//!
//! ```text
//! cargo run -p corespun-compat --features full,hyper --example hyper_server -- 127.0.0.1:8080
//! curl http://127.0.0.1:8080/
//! curl --http2-prior-knowledge --data-binary @Cargo.lock http://127.0.0.1:8080/echo
//! ```

mod serve;

use corespun_compat as tokio;

use tokio::net::TcpListener;
use tokio::runtime::Runtime;

fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:8080".into());
    Runtime::new()?.block_on(async {
        let listener = TcpListener::bind(address).await?;
        println!("http://{}/", listener.local_addr()?);
        tokio::select! {
            served = serve::serve(listener) => served.map(drop),
            pressed = tokio::signal::ctrl_c() => pressed,
        }
    })
}
