//! What a wait costs through `Compat`, beside a native one, in each mode of the reactor:
//!
//! ```text
//! cargo bench -p corespun-compat-benches --bench compat
//! ```
//!
//! How late a timer of 1 ms is, and how long one byte takes to an OS thread that blocks and back.
//! The rounds of the two take turns; each number is over all of them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use corespun::app::App;
use corespun::reactor::ReactorMode;
use corespun_compat as ours;
use corespun_compat::compat::Compat;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const ROUNDS: usize = 50;
const TRIPS: usize = 100;
const NAPS: usize = 4;
const NAP: Duration = Duration::from_millis(1);

/// Microseconds.
#[derive(Default)]
struct Times(Vec<f64>);

impl Times {
    fn add(&mut self, time: Duration) {
        self.0.push(time.as_nanos() as f64 / 1000.0);
    }

    fn print(&mut self, name: &str) {
        self.0.sort_unstable_by(f64::total_cmp);
        let at = |part: f64| self.0[((self.0.len() - 1) as f64 * part) as usize];
        println!("  {name:<30} {:8.1} {:8.1}", at(0.5), at(0.99));
    }
}

/// Sends back every byte.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                stream.set_nodelay(true).unwrap();
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() {
                    stream.write_all(&byte).unwrap();
                }
            });
        }
    });
    address
}

async fn trips<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, times: &mut Times) {
    for _ in 0..TRIPS {
        let begin = Instant::now();
        stream.write_all(&[1]).await.unwrap();
        stream.read_exact(&mut [0]).await.unwrap();
        times.add(begin.elapsed());
    }
}

async fn naps<F: Future<Output = ()>>(nap: impl Fn() -> F, times: &mut Times) {
    for _ in 0..NAPS {
        let begin = Instant::now();
        nap().await;
        times.add(begin.elapsed().saturating_sub(NAP));
    }
}

async fn measure(address: SocketAddr) -> [Times; 4] {
    let mut times: [Times; 4] = Default::default();
    let mut native = ours::net::TcpStream::connect(address).await.unwrap();
    native.set_nodelay(true).unwrap();
    let foreign = Compat::new(tokio::net::TcpStream::connect(address)).await;
    let mut foreign = Compat::new(foreign.unwrap());
    foreign.get_ref().set_nodelay(true).unwrap();
    for _ in 0..ROUNDS {
        naps(|| ours::time::sleep(NAP), &mut times[0]).await;
        naps(
            || Compat::new(async { tokio::time::sleep(NAP).await }),
            &mut times[1],
        )
        .await;
        trips(&mut native, &mut times[2]).await;
        trips(&mut foreign, &mut times[3]).await;
    }
    times
}

fn main() {
    let address = echo();
    for mode in [
        ReactorMode::Poll,
        ReactorMode::Adaptive,
        ReactorMode::Interrupt,
    ] {
        let app = App::builder().mode(mode).handle_signals(false);
        let times = app.block_on(async move |_app| measure(address).await);
        println!("{mode:?}, µs: {:>28} {:>8}", "median", "99 %");
        let names = [
            "timer late",
            "timer late, Compat",
            "round trip",
            "round trip, Compat",
        ];
        for (mut times, name) in times.unwrap().into_iter().zip(names) {
            times.print(name);
        }
    }
}
