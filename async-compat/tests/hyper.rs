//! hyper on this crate's sockets, tasks and timers: the server of the example, with curl as client.
//!
//! Without curl they are skipped with a message; `CORESPUN_REQUIRE_CLIENTS` makes that a failure.

#[path = "../examples/hyper_server/serve.rs"]
mod serve;

use std::io::Write;
use std::process::{Command, Stdio};

use corespun_compat as tokio;

use bytes::Bytes;
use corespun_compat::adapters::{HyperExecutor, HyperLocalExecutor, TokioAsHyper};
use http_body_util::{BodyExt, Empty, Full};
use hyper::{Request, Version};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};

fn runtimes() -> [Runtime; 2] {
    [
        Builder::new_current_thread().enable_all().build().unwrap(),
        Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap(),
    ]
}

fn has_curl() -> bool {
    let found = Command::new("curl")
        .arg("-V")
        .stdout(Stdio::null())
        .status();
    if found.is_ok() {
        return true;
    }
    let required = std::env::var_os("CORESPUN_REQUIRE_CLIENTS").is_some();
    assert!(!required, "curl is required here");
    eprintln!("skipped: there is no curl");
    false
}

/// Runs the server, and curl with what `args` adds to it and `body` on its standard input.
fn curl(runtime: &Runtime, args: &[&str], path: &str, body: &'static [u8]) -> (bool, Vec<u8>) {
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}{path}", listener.local_addr().unwrap());
        let server = tokio::spawn(serve::serve(listener));
        let mut command = Command::new("curl");
        command
            .args(["--silent", "--fail", "--max-time", "60"])
            .args(args)
            .arg(url);
        let output = tokio::task::spawn_blocking(move || {
            let mut curl = command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut stdin = curl.stdin.take().unwrap();
            let feeder = std::thread::spawn(move || drop(stdin.write_all(body)));
            let output = curl.wait_with_output().unwrap();
            feeder.join().unwrap();
            output
        });
        let output = output.await.unwrap();
        server.abort();
        (output.status.success(), output.stdout)
    })
}

#[test]
fn curl_is_answered_in_both_versions() {
    if !has_curl() {
        return;
    }
    for runtime in runtimes() {
        for version in ["--http1.0", "--http1.1", "--http2-prior-knowledge"] {
            let (ok, answer) = curl(&runtime, &[version], "/", b"");
            assert!(ok && answer == b"hello\n", "{version}: {answer:?}");
            let (ok, _) = curl(&runtime, &[version], "/nothing", b"");
            assert!(!ok, "{version}: what is not there was found");
        }
    }
}

#[test]
fn curl_gets_back_what_it_sends() {
    if !has_curl() {
        return;
    }
    let body: Vec<u8> = (0..4u32 << 20).map(|at| (at * 7 % 251) as u8).collect();
    let body: &'static [u8] = body.leak();
    for runtime in runtimes() {
        for version in ["--http1.1", "--http2-prior-knowledge"] {
            let args = [version, "--data-binary", "@-", "-H", "Expect:"];
            let (ok, answer) = curl(&runtime, &args, "/echo", body);
            assert!(ok && answer == body, "{version}: {} bytes", answer.len());
        }
    }
}

#[test]
fn a_client_of_ours_speaks_both_versions() {
    for runtime in runtimes() {
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let server = tokio::spawn(serve::serve(listener));

            let socket = TokioAsHyper::new(TcpStream::connect(address).await.unwrap());
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(socket).await.unwrap();
            tokio::spawn(connection);
            // Several on one connection.
            for _ in 0..3 {
                let request = Request::get("/").body(Empty::<Bytes>::new()).unwrap();
                let response = sender.send_request(request).await.unwrap();
                assert_eq!(response.version(), Version::HTTP_11);
                let body = response.into_body().collect().await.unwrap().to_bytes();
                assert_eq!(body, "hello\n");
                sender.ready().await.unwrap();
            }

            let socket = TokioAsHyper::new(TcpStream::connect(address).await.unwrap());
            let (sender, connection) = hyper::client::conn::http2::handshake(HyperExecutor, socket)
                .await
                .unwrap();
            tokio::spawn(connection);
            // At the same time on one connection.
            let asks = (0..100).map(|number: u32| {
                let mut sender = sender.clone();
                async move {
                    let body = Full::new(Bytes::from(number.to_string()));
                    let uri = format!("http://{address}/echo");
                    let request = Request::post(uri).body(body).unwrap();
                    let response = sender.send_request(request).await.unwrap();
                    assert_eq!(response.version(), Version::HTTP_2);
                    let body = response.into_body().collect().await.unwrap().to_bytes();
                    assert_eq!(body, number.to_string());
                }
            });
            futures::future::join_all(asks).await;
            server.abort();
        });
    }
}

/// A service that holds what is not `Send`, with HTTP/2's tasks beside it.
#[test]
fn a_local_service_is_served_by_local_tasks() {
    use std::cell::Cell;
    use std::convert::Infallible;
    use std::rc::Rc;

    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let (client, server) = tokio::net::UnixStream::pair().unwrap();
        let asked = Rc::new(Cell::new(0));
        let counter = asked.clone();
        let service = hyper::service::service_fn(move |_request| {
            let counter = counter.clone();
            async move {
                counter.set(counter.get() + 1);
                let answer = Full::new(Bytes::from(counter.get().to_string()));
                Ok::<_, Infallible>(hyper::Response::new(answer))
            }
        });
        let server = hyper::server::conn::http2::Builder::new(HyperLocalExecutor)
            .serve_connection(TokioAsHyper::new(server), service);
        let server = tokio::task::spawn_local(server);
        let (mut sender, connection) = hyper::client::conn::http2::handshake::<_, _, Empty<Bytes>>(
            HyperLocalExecutor,
            TokioAsHyper::new(client),
        )
        .await
        .unwrap();
        tokio::task::spawn_local(connection);
        for count in 1..=3 {
            let request = Request::get("http://local/").body(Empty::new()).unwrap();
            let answer = sender.send_request(request).await.unwrap();
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body, count.to_string());
        }
        assert_eq!(asked.get(), 3);
        drop(sender);
        server.await.unwrap().unwrap();
    });
}
