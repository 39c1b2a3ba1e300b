//! Instructions of the hot paths, 1,000 operations each, under callgrind. What a path may take is
//! what it took when its limit was set, and 3 %: a slower one fails, on a noisy machine too. Who
//! makes one quicker, or slower with a reason, sets its limit anew.
//!
//! ```text
//! cargo install gungraun-runner --version 0.20.0 --locked
//! cargo bench --manifest-path benches/instructions/Cargo.toml
//! ```

#![allow(missing_docs)]

use corespun::clock::VirtualClock;
use gungraun::prelude::*;
use gungraun::{Callgrind, EventKind, main};
use instructions::{Bench, WithDevice, WithSockets};

/// A benchmark that fails when it takes 3 % more instructions than `taken`.
fn at_most(taken: u64) -> LibraryBenchmarkConfig {
    let mut callgrind = Callgrind::with_args(["--cache-sim=no"]);
    callgrind.hard_limits([(EventKind::Ir, taken + taken * 3 / 100)]);
    let mut config = LibraryBenchmarkConfig::default();
    config.tool(callgrind);
    config
}

/// One counted path: its name, what it begins with, and the instructions it took.
macro_rules! counted {
    ($($path:ident($start:ident: $begin:ty) took $instructions:literal;)*) => {
        $(
            #[library_benchmark(config = at_most($instructions))]
            #[bench::rounds(args = (), setup = instructions::$start)]
            fn $path(begin: $begin) -> impl Sized {
                instructions::$path(begin)
            }
        )*
        library_benchmark_group!(name = paths, benchmarks = [$($path),*]);
    };
}

counted! {
    idle_poll(idle: Bench) took 161_021;
    poller_poll(with_poller: Bench) took 353_021;
    remote_send_run(idle: Bench) took 295_030;
    self_messages(idle: Bench) took 141_606;
    spawn_join(idle: Bench) took 1_090_067;
    yields(idle: Bench) took 258_703;
    local_wake(idle: Bench) took 805_360;
    timer_insert_fire(with_sleepers: Bench) took 1_192_681;
    channel_get_put(with_channel: WithDevice) took 104_049;
    channel_create_destroy(with_device: WithDevice) took 1_255_900;
    timers_expire(with_timed_pollers: Bench) took 298_087;
    dormancy(app_clock: VirtualClock) took 6_670_027;
    socket_round_trip(with_sockets: WithSockets) took 5_099_850;
}

main!(library_benchmark_groups = [paths]);
