//! A network block device served by async code on pinned reactors.
//!
//! ```text
//! cargo run --release --example nbd_target
//! ```
//!
//! serves a RAM disk of 256 MiB on a Unix socket and prints lines to copy for its
//! clients; `--help` lists the rest. Where to look:
//!
//! | room | holds |
//! |---|---|
//! | `options` | the command line |
//! | `serve` | disk, listeners, one group per core: what runs on the app thread |
//! | `listen` | sockets clients come in by |
//! | `connection` | what runs on each core: a task per client |
//! | `negotiate`, `transmit` | the protocol's two phases, on any byte stream |
//! | `protocol` | its wire format and rules |
//! | `flight`, `buffers` | what bounds a connection's memory |
//! | `disk`, `ram_disk`, `file_disk` | what is served |
//! | `status` | counters, and the live line |

mod buffers;
mod connection;
mod disk;
mod file_disk;
mod flight;
mod listen;
mod negotiate;
mod options;
mod protocol;
mod ram_disk;
mod serve;
mod status;
mod transmit;

use std::process::ExitCode;

use corespun::app::{App, AppError};
use corespun::io::DriverConfig;
use options::Options;
use tracing::level_filters::LevelFilter;

fn main() -> ExitCode {
    let options = match Options::read() {
        Ok(options) => options,
        Err(refused) if refused.code == 0 => {
            print!("{}", refused.text);
            return ExitCode::SUCCESS;
        }
        Err(refused) => return fail(&refused.text, refused.code),
    };
    // RUST_LOG=info says why clients were cut off.
    let level = std::env::var("RUST_LOG").ok();
    let level = level.and_then(|level| level.parse().ok());
    tracing_subscriber::fmt()
        .with_max_level(level.unwrap_or(LevelFilter::ERROR))
        .with_writer(std::io::stderr)
        .init();
    match run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error.to_string(), 1),
    }
}

fn run(options: Options) -> Result<(), Box<dyn std::error::Error>> {
    let cores = match options.cores {
        Some(cores) => cores,
        None => corespun::cpu::available()?,
    };
    let served = App::builder()
        .name("nbd_target")
        .cores(cores)
        .mode(options.mode.into())
        .io(DriverConfig::new().backend(options.backend.into()))
        .block_on(async |app| serve::serve(app, options).await);
    match served {
        Ok(served) => Ok(served?),
        // By a signal.
        Err(AppError::Stopped { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn fail(error: &str, code: u8) -> ExitCode {
    eprintln!("nbd_target: {}", options::cut(error));
    ExitCode::from(code)
}
