//! A hello-world of hyper, from one source on this crate and on tokio:
//!
//! ```text
//! hello ours|tokio THREADS
//! ```
//!
//! Prints the address it listens on. `async-compat/benches/http` loads both with `wrk`.

mod ours {
    pub(crate) use corespun_compat as tokio;
    pub(crate) mod serve {
        include!("serve.rs");
    }
}

mod theirs {
    pub(crate) use ::tokio;
    pub(crate) mod serve {
        include!("serve.rs");
    }
}

fn main() -> std::io::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let threads = args.get(1).and_then(|text| text.parse().ok()).unwrap_or(1);
    match args.first().map(String::as_str) {
        Some("ours") => ours::serve::run(threads),
        Some("tokio") => theirs::serve::run(threads),
        _ => Err(std::io::Error::other("usage: hello ours|tokio THREADS")),
    }
}
