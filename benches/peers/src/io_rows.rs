//! The rows of files and sockets.

use crate::files;
use crate::measure::tasks::Executor;
use crate::neighbours::{Compio, Glommio, Monoio, Smol, Tokio};
use crate::reactor::{self, Reactor, SleepingReactor};
use crate::sockets::{self, Echoes, Sockets};
use crate::{Cell, Row, bare_sockets, cell, nops, pinned};

/// What one core is enough for.
pub fn on_one_core(here: usize) -> Vec<Row> {
    let mut rows = vec![Row {
        name: "4 KiB cached, plain pread",
        cells: only_bare(pinned(here, || files::pread(READS))),
    }];
    for (depth, name, fixed_name) in [
        (
            1,
            "4 KiB reads, cached, depth 1",
            "4 KiB reads, registered, depth 1",
        ),
        (
            32,
            "4 KiB reads, cached, depth 32",
            "4 KiB reads, registered, depth 32",
        ),
    ] {
        rows.push(Row {
            name,
            cells: [
                pinned(here, move || files::ring(depth, false, READS)),
                pinned(here, move || files::reads::<Reactor>(depth, READS)),
                pinned(here, move || files::reads::<Tokio>(depth, READS / 5)),
                pinned(here, move || files::reads::<Smol>(depth, READS / 5)),
                pinned(here, move || files::reads::<Glommio>(depth, READS)),
                pinned(here, move || files::reads::<Monoio>(depth, READS)),
                pinned(here, move || files::reads::<Compio>(depth, READS)),
            ],
        });
        let mut cells = only_bare(pinned(here, move || files::ring(depth, true, READS)));
        cells[1] = pinned(here, move || {
            files::reads::<files::Registered>(depth, READS)
        });
        rows.push(Row {
            name: fixed_name,
            cells,
        });
    }
    let mut cells = only_bare(pinned(here, || nops::ring(32, 10 * READS)));
    cells[1] = pinned(here, || nops::reactor(32, 10 * READS));
    rows.push(Row {
        name: "no-op through the ring, depth 32",
        cells,
    });
    rows.push(Row {
        name: "TCP connect + accept + close, one core",
        cells: [
            pinned(here, || bare_sockets::connections(CONNECTIONS)),
            pinned(here, || sockets::connections::<Reactor>(CONNECTIONS)),
            pinned(here, || sockets::connections::<Tokio>(CONNECTIONS)),
            pinned(here, || sockets::connections::<Smol>(CONNECTIONS)),
            pinned(here, || sockets::connections::<Glommio>(CONNECTIONS)),
            pinned(here, || sockets::connections::<Monoio>(CONNECTIONS)),
            pinned(here, || sockets::connections::<Compio>(CONNECTIONS)),
        ],
    });
    rows
}

const READS: usize = 100_000;
const CONNECTIONS: usize = 5_000;

fn only_bare(bare: Cell) -> [Cell; 7] {
    [bare, None, None, None, None, None, None]
}

/// What takes two.
pub fn between(here: usize, there: usize) -> Vec<Row> {
    let lone = Echoes {
        connections: 1,
        size: 64,
        count: 10_000,
    };
    let many = Echoes {
        connections: 50,
        size: 1024,
        count: 100_000,
    };
    vec![
        echo_row("TCP echo, 1 × 64 B, asleep while idle", here, there, lone),
        spinning_row("TCP echo, 1 × 64 B, spinning", here, there, lone),
        echo_row("TCP echo, 50 × 1 KiB, asleep while idle", here, there, many),
        spinning_row("TCP echo, 50 × 1 KiB, spinning", here, there, many),
        Row {
            name: "TCP connect + accept + close, two cores",
            cells: [
                cell(move || bare_sockets::connections_between(here, there, CONNECTIONS)),
                cell(move || reactor::connections(here, there, CONNECTIONS)),
                cell(move || sockets::connections_between::<Tokio>(here, there, CONNECTIONS)),
                cell(move || sockets::connections_between::<Smol>(here, there, CONNECTIONS)),
                cell(move || sockets::connections_between::<Glommio>(here, there, CONNECTIONS)),
                cell(move || sockets::connections_between::<Monoio>(here, there, CONNECTIONS)),
                cell(move || sockets::connections_between::<Compio>(here, there, CONNECTIONS)),
            ],
        },
    ]
}

fn echo_cell<S: Sockets + Executor>(here: usize, there: usize, echoes: Echoes) -> Cell {
    cell(move || sockets::echoes::<S>(here, there, echoes))
}

fn echo_row(name: &'static str, here: usize, there: usize, echoes: Echoes) -> Row {
    Row {
        name,
        cells: [
            cell(move || bare_sockets::echoes(here, there, echoes, false)),
            echo_cell::<SleepingReactor>(here, there, echoes),
            echo_cell::<Tokio>(here, there, echoes),
            echo_cell::<Smol>(here, there, echoes),
            echo_cell::<Glommio>(here, there, echoes),
            echo_cell::<Monoio>(here, there, echoes),
            echo_cell::<Compio>(here, there, echoes),
        ],
    }
}

fn spinning_row(name: &'static str, here: usize, there: usize, echoes: Echoes) -> Row {
    Row {
        name,
        cells: [
            cell(move || bare_sockets::echoes(here, there, echoes, true)),
            echo_cell::<Reactor>(here, there, echoes),
            None,
            None,
            None,
            None,
            None,
        ],
    }
}
