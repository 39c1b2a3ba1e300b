//! The list of tokio's own benches, from one source, on this crate and on tokio:
//!
//! ```text
//! cargo bench -p corespun-compat-benches --bench beside_tokio [PART OF A ROW'S NAME...]
//! ```
//!
//! Prints a markdown table: nanoseconds per operation on each, the medians of rounds that take
//! turns, and how many times as fast this crate is. `SAMPLES` is the number of rounds (15). What
//! the rows do is said in `cases.rs`. Compare only figures that one run printed.

use std::time::Duration;

mod ours {
    pub(crate) use corespun_compat as tokio;
    pub(crate) mod cases {
        include!("cases.rs");
    }
}

mod theirs {
    pub(crate) use ::tokio;
    pub(crate) mod cases {
        include!("cases.rs");
    }
}

/// A case: how long so many operations take on a runtime of so many workers, 0 for a
/// `current_thread` one.
type Case = fn(workers: usize, ops: u32) -> Duration;

struct Row {
    name: &'static str,
    ours: Case,
    theirs: Case,
    /// Operations of a round.
    ops: u32,
}

macro_rules! rows {
    ($($case:ident, $ops:expr;)*) => {
        [$(Row {
            name: stringify!($case),
            ours: ours::cases::$case,
            theirs: theirs::cases::$case,
            ops: $ops,
        }),*]
    };
}

fn main() {
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with('-'))
        .collect();
    // `cargo test --benches` does not pass this: one short round shows that it works.
    let whole = std::env::args().any(|arg| arg == "--bench");
    let samples = std::env::var("SAMPLES")
        .ok()
        .and_then(|text| text.parse().ok());
    let samples = if whole { samples.unwrap_or(15) } else { 1 };
    println!("| case | threads | ours, ns | tokio, ns | times as fast |");
    println!("|---|---|---|---|---|");
    for row in rows() {
        for workers in [0, 2] {
            let name = format!("{} {}", row.name, kind(workers));
            if wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str())) {
                let ops = if whole { row.ops } else { row.ops.min(100) };
                measure(&row, workers, ops, samples);
            }
        }
    }
}

fn kind(workers: usize) -> String {
    match workers {
        0 => "current_thread".to_owned(),
        count => format!("{count} workers"),
    }
}

fn measure(row: &Row, workers: usize, ops: u32, samples: usize) {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for sample in 0..samples {
        // Neither is always the one that finds the other's caches.
        if sample % 2 == 0 {
            ours.push((row.ours)(workers, ops));
            theirs.push((row.theirs)(workers, ops));
        } else {
            theirs.push((row.theirs)(workers, ops));
            ours.push((row.ours)(workers, ops));
        }
    }
    let (ours, theirs) = (median(ours), median(theirs));
    let per_op = |time: Duration| time.as_secs_f64() * 1e9 / f64::from(ops);
    println!(
        "| {} | {} | {:.1} | {:.1} | {:.2} |",
        row.name,
        kind(workers),
        per_op(ours),
        per_op(theirs),
        theirs.as_secs_f64() / ours.as_secs_f64()
    );
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn rows() -> impl Iterator<Item = Row> {
    rows! {
        spawn_many_local, 10_000;
        spawn_many_from_a_task, 10_000;
        spawn_many_remote_idle, 10_000;
        spawn_many_remote_busy, 10_000;
        yield_many, 100_000;
        ping_pong, 2_000;
        chained_spawn, 10_000;
        time_now, 100_000;
        timeout, 20_000;
        timeout_that_passes, 200;
        sync_mpsc_uncontended, 20_000;
        sync_mpsc_contended, 20_000;
        sync_mpsc_contended_full, 20_000;
        sync_mpsc_unbounded, 20_000;
        sync_mpsc_create, 20_000;
        sync_mpsc_oneshot, 5_000;
        sync_semaphore_uncontended, 20_000;
        sync_semaphore_contended, 20_000;
        sync_watch, 10_000;
        copy, 200;
        copy_bidirectional_tcp, 100;
        fs_read_zeros, 500;
        fs_write_read, 500;
    }
    .into_iter()
}
