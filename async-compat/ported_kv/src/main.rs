//! A key-value server that speaks Redis's protocol: strings, hashes, lists, expiry,
//! publish and subscribe, pipelining, and an append-only file.
//!
//! Written against tokio's API alone, and built twice from this one source: on corespun
//! (`ported_kv`) and on tokio (`ported_kv_on_tokio`). `--help` lists the settings;
//! `redis-cli` and `redis-benchmark` are its clients.

mod aof;
mod command;
mod connection;
mod hub;
mod resp;
mod server;
mod settings;
mod store;

use std::process::ExitCode;

use settings::Settings;

fn main() -> ExitCode {
    let settings = match Settings::from_args(std::env::args().skip(1)) {
        Ok(Some(settings)) => settings,
        Ok(None) => {
            println!("{}", settings::HELP);
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("{error}\n{}", settings::HELP);
            return ExitCode::FAILURE;
        }
    };
    let mut builder = match settings.threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        count => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(count);
            builder
        }
    };
    let served = builder
        .enable_all()
        .build()
        .and_then(|runtime| runtime.block_on(server::serve(settings)));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
