//! corespun and its neighbours, row by row, in one run: medians in nanoseconds,
//! and half the spread of the runs in percent.
//!
//! ```text
//! cargo run --release --manifest-path benches/peers/Cargo.toml -- [PART OF A ROW'S NAME...] [--rounds N] [--columns A,B...] [--markdown]
//! ```
//!
//! In each round every runtime is measured once, in turn, on a fresh OS thread
//! pinned to the same core, so that a machine that changes its pace changes it
//! for all. Run it on a quiet machine with two cores, and compare only figures
//! that one run printed together. The column "bare" is the floor of a row: what
//! plain code without any runtime needs for the same.
//!
//! Everybody runs as an application would run it: corespun on its reactors in
//! poll mode unless the row says otherwise, the others with their I/O drivers and
//! timers on, in what their documentation recommends for one core. The measures
//! of tasks and timers are those of the workspace's `async_face` bench, which has
//! corespun alone and without reactors, to find regressions. This is a package of
//! its own because a regression bench has no use for five more runtimes.
//!
//! What the columns cannot say: smol is async-executor's static executors with
//! async-io; monoio is built with its `sync` feature, without which it refuses
//! wakes from other threads; tokio and monoio cannot be told to spin.

#[path = "../../measure/mod.rs"]
mod measure;

mod bare;
mod bare_sockets;
mod cores;
mod files;
mod io_rows;
mod neighbours;
mod neighbours_sockets;
mod nops;
mod reactor;
mod sockets;
mod table;

use std::time::Duration;

use clap::Parser;
use corespun::cpu;
use corespun::reactor::ReactorMode;
use measure::{line_round_trip, tasks};
use neighbours::{
    Compio, CompioSpinning, Glommio, GlommioSpinning, Monoio, Smol, SmolSpinning, Tokio,
};
use reactor::Reactor;
use table::Form;

/// Measures corespun beside other runtimes.
#[derive(Parser)]
struct Options {
    /// Parts of the names of the rows to measure; all rows without one.
    rows: Vec<String>,
    /// How often each runtime is measured.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Columns to measure, comma-separated, as for a profile; all without this.
    #[arg(long, value_delimiter = ',', value_parser = COLUMNS)]
    columns: Vec<String>,
    /// Prints the table as Markdown, with the date and the machine above it.
    #[arg(long)]
    markdown: bool,
}

impl Options {
    fn form(&self) -> Form {
        match self.markdown {
            true => Form::Markdown,
            false => Form::Plain,
        }
    }
}

/// What one runtime does for one row; `None` for what it cannot do.
type Cell = Option<Box<dyn Fn() -> f64 + Sync>>;

const COLUMNS: [&str; 7] = [
    "bare", "corespun", "tokio", "smol", "glommio", "monoio", "compio",
];

struct Row {
    name: &'static str,
    cells: [Cell; COLUMNS.len()],
}

fn cell(measure: impl Fn() -> f64 + Sync + 'static) -> Cell {
    Some(Box::new(measure))
}

/// A measure that has one OS thread, which it runs on pinned.
fn pinned(core: usize, measure: impl Fn() -> f64 + Sync + 'static) -> Cell {
    cell(move || {
        cpu::pin_current_thread(core).expect("pinning to a core of this process");
        measure()
    })
}

/// A row with the same measure for all of the runtimes.
macro_rules! row {
    ($name:expr, $bare:expr, $here:expr, $measure:path, $($argument:expr),+) => {{
        use $measure as measure;
        Row {
            name: $name,
            cells: [
                $bare,
                pinned($here, move || measure::<Reactor>($($argument),+)),
                pinned($here, move || measure::<Tokio>($($argument),+)),
                pinned($here, move || measure::<Smol>($($argument),+)),
                pinned($here, move || measure::<Glommio>($($argument),+)),
                pinned($here, move || measure::<Monoio>($($argument),+)),
                pinned($here, move || measure::<Compio>($($argument),+)),
            ],
        }
    }};
}

fn main() {
    let options = Options::parse();
    keep_freed_memory();
    let available: Vec<usize> = cpu::available()
        .expect("the cores of this process")
        .iter()
        .collect();
    let mut rows = on_one_core(available[0]);
    rows.extend(io_rows::on_one_core(available[0]));
    match available[..] {
        [here, there, ..] => {
            rows.extend(between(here, there));
            rows.extend(io_rows::between(here, there));
        }
        _ => eprintln!("one core only: the rows that need two are left out"),
    }
    let wanted = |row: &Row| {
        options.rows.is_empty() || options.rows.iter().any(|part| row.name.contains(part))
    };
    options.form().print_head();
    for row in rows.iter().filter(|row| wanted(row)) {
        row.measure(&options);
    }
}

impl Row {
    fn measure(&self, options: &Options) {
        let is_wanted = |column: &str| {
            options.columns.is_empty() || options.columns.iter().any(|wanted| wanted == column)
        };
        let mut figures = [(); COLUMNS.len()].map(|()| Vec::new());
        for _ in 0..options.rounds {
            let cells = COLUMNS.iter().zip(&self.cells).zip(&mut figures);
            for ((column, cell), figures) in cells {
                if let Some(measure) = cell.as_ref().filter(|_| is_wanted(column)) {
                    figures.push(on_fresh_thread(measure));
                }
            }
        }
        let cells = figures.each_mut().map(|figures| {
            figures.sort_by(f64::total_cmp);
            median(figures).map(|figure| (figure, spread(figure, figures)))
        });
        let times_bare = cells[0]
            .zip(cells[1])
            .map(|((bare, _), (ours, _))| ours / bare);
        options.form().print_row(self.name, &cells, times_bare);
    }
}

/// Keeps freed memory in the process. glibc gives it back at once where an arena is
/// not the main thread's, and then each batch of tasks would measure page faults.
fn keep_freed_memory() {
    let settings = [
        (libc::M_TRIM_THRESHOLD, libc::c_int::MAX),
        // The highest that glibc takes.
        (libc::M_MMAP_THRESHOLD, 32 << 20),
    ];
    for (setting, value) in settings {
        // SAFETY: it takes two numbers, locks the arena it changes, and refuses
        // what it does not know.
        let taken = unsafe { libc::mallopt(setting, value) };
        assert_eq!(taken, 1, "glibc knows these settings");
    }
}

fn median(sorted: &[f64]) -> Option<f64> {
    sorted.get(sorted.len() / 2).copied()
}

/// Half of it, in percent of the median.
fn spread(median: f64, sorted: &[f64]) -> f64 {
    let half = (sorted[sorted.len() - 1] - sorted[0]) / 2.0;
    half / median * 100.0
}

fn on_fresh_thread(measure: &(dyn Fn() -> f64 + Sync)) -> f64 {
    std::thread::scope(|scope| scope.spawn(measure).join()).expect("a measure that ends")
}

fn on_one_core(here: usize) -> Vec<Row> {
    let (sleeps, within) = (100_000, Duration::from_millis(100));
    let mut cpu_each = row!(
        "100,000 sleeps in 100 ms: CPU each",
        None,
        here,
        neighbours::spread_sleeps_cpu,
        sleeps,
        within
    );
    // Poll mode takes all of the CPU: what counts is the time of turns with work.
    cpu_each.cells[1] = pinned(here, move || reactor::spread_sleeps_busy(sleeps, within));
    vec![
        row!(
            "local spawn + join, one at a time",
            pinned(here, || bare::spawn_join(100_000)),
            here,
            tasks::spawn_join,
            100_000
        ),
        row!(
            "spawn 10,000, join all, each",
            None,
            here,
            tasks::spawn_many,
            10,
            10_000
        ),
        row!(
            "yield, 1 task",
            pinned(here, || bare::yields(100_000)),
            here,
            tasks::yields,
            1,
            100_000
        ),
        row!("yield, 1,000 tasks", None, here, tasks::yields, 1000, 300),
        row!(
            "local wake ping-pong, round trip",
            None,
            here,
            tasks::ping_pong,
            100_000
        ),
        row!(
            "10 s sleep: create + poll + drop, alone",
            None,
            here,
            tasks::cancelled_sleeps,
            0,
            100_000
        ),
        row!(
            "10 s sleep: the same, 20,000 live",
            None,
            here,
            tasks::cancelled_sleeps,
            20_000,
            100_000
        ),
        cpu_each,
        row!(
            "100,000 sleeps in 100 ms: mean lateness",
            None,
            here,
            neighbours::spread_sleeps_late,
            sleeps,
            within
        ),
    ]
}

fn between(here: usize, there: usize) -> Vec<Row> {
    let line = || cell(move || line_round_trip(here, there, 100_000));
    vec![
        Row {
            name: "cross-core wake ping-pong, spinning, round trip",
            cells: [
                line(),
                cell(move || reactor::wakes(ReactorMode::Poll, here, there, 50_000)),
                None,
                cell(move || cores::wakes::<SmolSpinning>(here, there, 50_000)),
                cell(move || cores::wakes::<GlommioSpinning>(here, there, 3_000)),
                None,
                cell(move || cores::wakes::<CompioSpinning>(here, there, 20_000)),
            ],
        },
        Row {
            name: "cross-core wake ping-pong, sleeping, round trip",
            cells: [
                cell(move || bare::eventfd_round_trip(here, there, 1_000)),
                cell(move || reactor::wakes(ReactorMode::Interrupt, here, there, 1_000)),
                cell(move || cores::wakes::<Tokio>(here, there, 1_000)),
                cell(move || cores::wakes::<Smol>(here, there, 1_000)),
                cell(move || cores::wakes::<Glommio>(here, there, 1_000)),
                cell(move || cores::wakes::<Monoio>(here, there, 1_000)),
                cell(move || cores::wakes::<Compio>(here, there, 1_000)),
            ],
        },
        Row {
            name: "remote spawn, a million, each",
            cells: [
                None,
                cell(move || reactor::remote_spawns(here, there, 1_000_000)),
                cell(move || cores::tokio_spawns(here, there, 1_000_000)),
                cell(move || cores::smol_spawns(here, there, 1_000_000)),
                cell(move || cores::glommio_spawns(here, there, 1_000_000)),
                None,
                cell(move || cores::compio_spawns(here, there, 1_000_000)),
            ],
        },
        Row {
            name: "remote spawn, detached from the start, each",
            cells: [
                None,
                cell(move || reactor::remote_detached_spawns(here, there, 1_000_000)),
                None,
                None,
                None,
                None,
                None,
            ],
        },
        Row {
            name: "remote spawn by a foreign OS thread, two Arcs, each",
            cells: [
                None,
                cell(move || reactor::carrying_spawns(here, there, 1_000_000)),
                cell(move || cores::tokio_carrying(here, there, 1_000_000)),
                cell(move || cores::smol_carrying(here, there, 1_000_000)),
                None,
                None,
                None,
            ],
        },
        Row {
            name: "u64s through a bounded async-channel, poll, each",
            cells: [
                None,
                cell(move || reactor::numbers(ReactorMode::Poll, here, there, 1_000_000)),
                cell(move || cores::numbers::<Tokio>(here, there, 1_000_000)),
                cell(move || cores::numbers::<Smol>(here, there, 1_000_000)),
                cell(move || cores::numbers::<Glommio>(here, there, 1_000_000)),
                cell(move || cores::numbers::<Monoio>(here, there, 1_000_000)),
                cell(move || cores::numbers::<Compio>(here, there, 1_000_000)),
            ],
        },
        Row {
            name: "the same, interrupt mode",
            cells: [
                None,
                cell(move || reactor::numbers(ReactorMode::Interrupt, here, there, 1_000_000)),
                None,
                None,
                None,
                None,
                None,
            ],
        },
        Row {
            name: "boxed jobs through a bounded async-channel, each",
            cells: [
                None,
                cell(move || reactor::jobs(here, there, 1_000_000)),
                cell(move || cores::jobs::<Tokio>(here, there, 1_000_000)),
                cell(move || cores::jobs::<Smol>(here, there, 1_000_000)),
                cell(move || cores::jobs::<Glommio>(here, there, 1_000_000)),
                cell(move || cores::jobs::<Monoio>(here, there, 1_000_000)),
                cell(move || cores::jobs::<Compio>(here, there, 1_000_000)),
            ],
        },
        Row {
            name: "call to another core and back",
            cells: [
                line(),
                cell(move || reactor::calls(here, there, 50_000)),
                None,
                None,
                None,
                None,
                None,
            ],
        },
    ]
}
