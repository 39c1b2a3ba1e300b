//! Which [`Placement`] is ahead, on two workers, where one loop spawns connections and where
//! connections spawn helpers; and tokio, which steals:
//!
//! ```text
//! cargo bench -p corespun-compat-benches --bench placement
//! ```
//!
//! A client of plain code writes one request on each of sixteen connections and then reads the
//! answers. The server works on each for some microseconds: in the connection's task, or in two
//! helpers that it spawns and awaits. Prints a markdown table: microseconds per request, wall clock
//! and processor time of the whole process, medians of rounds that take turns. `SAMPLES` is the
//! number of rounds (15).

use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use corespun_compat::runtime::Placement;
use nix::time::{ClockId, clock_gettime};

const CONNECTIONS: usize = 16;
const LEN: usize = 64;

/// Some microseconds of work.
fn work(request: [u8; LEN]) -> u8 {
    let mut sum = 0_u8;
    for round in 0..60_u8 {
        for byte in request {
            sum = black_box(sum.wrapping_mul(31) ^ byte.wrapping_add(round));
        }
    }
    sum
}

/// The server, from one source on both.
macro_rules! server {
    ($tokio:ident) => {
        use super::{LEN, work};
        use $tokio::io::{AsyncReadExt, AsyncWriteExt};
        use $tokio::net::{TcpListener, TcpStream};
        use $tokio::runtime::Runtime;

        async fn connection(mut socket: TcpStream, helpers: bool) {
            let mut request = [0; LEN];
            while socket.read_exact(&mut request).await.is_ok() {
                request[0] = if helpers {
                    let spawn = || $tokio::spawn(async move { work(request) });
                    let (one, other) = (spawn(), spawn());
                    one.await.unwrap() ^ other.await.unwrap()
                } else {
                    work(request) ^ work(request)
                };
                if socket.write_all(&request).await.is_err() {
                    return;
                }
            }
        }

        pub(super) fn start(runtime: &Runtime, helpers: bool) -> std::net::SocketAddr {
            let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
            let address = listener.local_addr().unwrap();
            runtime.spawn(async move {
                while let Ok((socket, _)) = listener.accept().await {
                    socket.set_nodelay(true).unwrap();
                    $tokio::spawn(connection(socket, helpers));
                }
            });
            address
        }
    };
}

mod ours {
    server!(corespun_compat);
}

mod theirs {
    server!(tokio);
}

/// Per request: wall clock and processor time.
type Cost = (Duration, Duration);

fn cpu() -> Duration {
    let time = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID);
    time.expect("every Linux has it").into()
}

fn exchange(clients: &mut [TcpStream], rounds: u32) {
    let mut answer = [0; LEN];
    for round in 0..rounds {
        for client in &mut *clients {
            client.write_all(&[round as u8; LEN]).unwrap();
        }
        for client in &mut *clients {
            client.read_exact(&mut answer).unwrap();
        }
    }
}

fn measure(address: SocketAddr, rounds: u32) -> Cost {
    let client = || {
        let client = TcpStream::connect(address).unwrap();
        client.set_nodelay(true).unwrap();
        client
    };
    let mut clients: Vec<_> = (0..CONNECTIONS).map(|_| client()).collect();
    exchange(&mut clients, rounds.div_ceil(10));
    let (begin, used) = (Instant::now(), cpu());
    exchange(&mut clients, rounds);
    let requests = rounds * CONNECTIONS as u32;
    (begin.elapsed() / requests, (cpu() - used) / requests)
}

fn on_ours(placement: Placement, helpers: bool, rounds: u32) -> Cost {
    let mut builder = corespun_compat::runtime::Builder::new_multi_thread();
    let builder = builder.worker_threads(2).placement(placement).enable_all();
    let runtime = builder.build().unwrap();
    measure(ours::start(&runtime, helpers), rounds)
}

fn on_theirs(helpers: bool, rounds: u32) -> Cost {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(2).enable_all().build().unwrap();
    measure(theirs::start(&runtime, helpers), rounds)
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e6
}

fn main() {
    let whole = std::env::args().any(|arg| arg == "--bench");
    let samples = std::env::var("SAMPLES").ok();
    let samples = samples.and_then(|text| text.parse().ok()).unwrap_or(15);
    let (samples, rounds) = if whole { (samples, 200) } else { (1, 2) };
    let placements = [
        Some(Placement::LeastLoaded),
        Some(Placement::RoundRobin),
        Some(Placement::Local),
        None,
    ];
    println!("| who spawns | placement | µs | processor, µs |");
    println!("|---|---|---|---|");
    for helpers in [false, true] {
        let mut costs = [const { Vec::new() }; 4];
        for _ in 0..samples {
            for (placement, costs) in placements.iter().zip(&mut costs) {
                costs.push(match placement {
                    Some(placement) => on_ours(*placement, helpers, rounds),
                    None => on_theirs(helpers, rounds),
                });
            }
        }
        let who = if helpers {
            "connections too"
        } else {
            "one loop"
        };
        for (placement, costs) in placements.iter().zip(costs) {
            let name = placement.map_or("tokio".to_owned(), |placement| format!("{placement:?}"));
            let (wall, cpu) = costs.into_iter().unzip();
            println!(
                "| {who} | {name} | {:.1} | {:.1} |",
                median(wall),
                median(cpu)
            );
        }
    }
}
