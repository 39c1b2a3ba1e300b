//! reqwest, which is bound to tokio, through `Compat`, on the server of the example
//! `hyper_server`, which runs on corespun alone.

mod common;
#[path = "../../examples/hyper_server/serve.rs"]
mod serve;

use std::net::SocketAddr;

use common::runtimes;
use corespun_compat::compat::Compat;
use corespun_compat::net::TcpListener;
use corespun_compat::runtime::Runtime;
use reqwest::{Client, Response, StatusCode, Version};

/// Where the server serves. It ends with its runtime.
async fn start() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    corespun_compat::spawn(serve::serve(listener));
    address
}

/// Runs what asks in a task, as a server would that asks another one.
fn ask<F, Q>(runtime: &Runtime, question: Q) -> F::Output
where
    Q: FnOnce(SocketAddr) -> F,
    F: Future<Output: Send> + Send + 'static,
{
    let address = runtime.block_on(start());
    runtime
        .block_on(runtime.spawn(Compat::new(question(address))))
        .unwrap()
}

async fn text(response: Response) -> String {
    response.error_for_status().unwrap().text().await.unwrap()
}

#[test]
fn both_versions_are_answered() {
    let clients: [fn() -> Client; 2] = [
        || Client::builder().http1_only().build().unwrap(),
        || Client::builder().http2_prior_knowledge().build().unwrap(),
    ];
    for runtime in runtimes() {
        for (client, version) in clients.into_iter().zip([Version::HTTP_11, Version::HTTP_2]) {
            ask(&runtime, async move |address| {
                let client = client();
                // Several, on a connection that is kept.
                for _ in 0..3 {
                    let answer = client
                        .get(format!("http://{address}/"))
                        .send()
                        .await
                        .unwrap();
                    assert_eq!(answer.version(), version);
                    assert_eq!(text(answer).await, "hello\n");
                }
                let missing = client.get(format!("http://{address}/nothing")).send().await;
                assert_eq!(missing.unwrap().status(), StatusCode::NOT_FOUND);
            });
        }
    }
}

#[test]
fn many_at_a_time_get_back_what_they_send() {
    for runtime in runtimes() {
        ask(&runtime, async |address| {
            let client = Client::new();
            let echo = |number: usize| {
                let request = client.post(format!("http://{address}/echo"));
                async move {
                    let body = format!("{number} ").repeat(20_000);
                    let answer = request.body(body.clone()).send().await.unwrap();
                    assert!(text(answer).await == body);
                }
            };
            futures::future::join_all((0..20).map(echo)).await;
        });
    }
}

/// The connections that a client keeps belong to a context that lives on between its uses.
#[test]
fn a_client_is_used_by_many_tasks_one_after_the_other() {
    for runtime in runtimes() {
        let address = runtime.block_on(start());
        let client = Client::new();
        for _ in 0..20 {
            let request = client.get(format!("http://{address}/"));
            let task = runtime.spawn(async move {
                Compat::new(async { text(request.send().await.unwrap()).await }).await
            });
            assert_eq!(runtime.block_on(task).unwrap(), "hello\n");
        }
    }
}

#[test]
fn time_limits_are_kept() {
    for runtime in runtimes() {
        // Nobody accepts.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", silent.local_addr().unwrap());
        let limit = std::time::Duration::from_millis(20);
        let asks = async move { Client::new().get(url).timeout(limit).send().await };
        let error = runtime.block_on(Compat::new(asks)).unwrap_err();
        assert!(error.is_timeout(), "{error}");
    }
}
