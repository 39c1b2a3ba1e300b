//! axum's `serve`, which is bound to tokio, through `Compat`, with curl as client.
//!
//! Without curl they are skipped with a message; `CORESPUN_REQUIRE_CLIENTS` makes that a failure.

mod common;

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path};
use axum::routing::{get, post};
use common::runtimes;
use corespun_compat::compat::Compat;
use corespun_compat::runtime::Runtime;
use corespun_compat::sync::oneshot;

fn has_curl() -> bool {
    let mut version = Command::new("curl");
    if version.arg("-V").stdout(Stdio::null()).status().is_ok() {
        return true;
    }
    let required = std::env::var_os("CORESPUN_REQUIRE_CLIENTS").is_some();
    assert!(!required, "curl is required here");
    eprintln!("skipped: there is no curl");
    false
}

fn app() -> Router {
    let slow = async |Path(millis): Path<u64>| {
        tokio::time::sleep(Duration::from_millis(millis)).await;
        format!("{millis}\n")
    };
    Router::new()
        .route("/", get(async || "hello\n"))
        .route("/slow/{millis}", get(slow))
        .route("/echo", post(async |body: Bytes| body))
        .layer(DefaultBodyLimit::disable())
}

/// Serves on `runtime` while `client` runs, and has the server end by itself.
fn serve(runtime: &Runtime, client: impl FnOnce(&str)) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (stop, stopped) = oneshot::channel::<()>();
    let server = runtime.spawn(Compat::new(async {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let stopped = async { drop(stopped.await) };
        axum::serve(listener, app())
            .with_graceful_shutdown(stopped)
            .await
    }));
    // A runtime of one thread serves while somebody is in `block_on`.
    std::thread::scope(|scope| {
        let served = scope.spawn(|| runtime.block_on(server).unwrap().unwrap());
        client(&url);
        drop(stop);
        served.join().unwrap();
    });
}

fn curl(args: &[&str], url: &str, body: &'static [u8]) -> Vec<u8> {
    let mut curl = Command::new("curl")
        .args(["--silent", "--show-error", "--fail", "--max-time", "60"])
        .args(args)
        .arg(url)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = curl.stdin.take().unwrap();
    let feeder = std::thread::spawn(move || drop(stdin.write_all(body)));
    let output = curl.wait_with_output().unwrap();
    feeder.join().unwrap();
    assert!(output.status.success(), "{args:?} {url}: {}", output.status);
    output.stdout
}

#[test]
fn curl_is_answered_in_both_versions() {
    if !has_curl() {
        return;
    }
    for runtime in runtimes() {
        serve(&runtime, |url| {
            for version in ["--http1.1", "--http2-prior-knowledge"] {
                assert_eq!(curl(&[version], &format!("{url}/"), b""), b"hello\n");
                // Its timers are tokio's.
                assert_eq!(curl(&[version], &format!("{url}/slow/20"), b""), b"20\n");
            }
        });
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
        serve(&runtime, |url| {
            for version in ["--http1.1", "--http2-prior-knowledge"] {
                let args = [version, "--data-binary", "@-", "-H", "Expect:"];
                assert!(
                    curl(&args, &format!("{url}/echo"), body) == body,
                    "{version}"
                );
            }
        });
    }
}
