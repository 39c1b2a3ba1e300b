//! G9 for every source of the library that can be ready without end: a task that loops on it gives
//! way after a budget's worth, so that a neighbour has its turn and a timer fires.
//!
//! The sources are a table ([`threads`], [`io`], [`shared`]); a test compares it with what the sources of the
//! library declare, so that a new `async fn`, `poll_` function, future or stream has to be added.

mod declared;
mod io;
mod shared;
mod threads;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use corespun::io::{BackendChoice, Driver, DriverConfig};
use corespun::thread::ThreadLib;
use corespun::{task, time};
use harness::io::on_every_backend;
use harness::process::{in_a_process_of_its_own, refuse};

/// What one poll of a task may take, as `task::consume_budget` says.
const BUDGET: usize = 128;

/// So often each loop goes round: more than two polls' worth.
const ROUNDS: usize = 300;

/// One endless loop.
struct Source {
    /// What it covers, as `declared` names it: file and item.
    covers: &'static [&'static str],
    /// Its text, for those that cover what another covers in other circumstances.
    text: &'static str,
    run: fn(Rounds) -> Pin<Box<dyn Future<Output = ()>>>,
}

/// Counts the rounds of the loop under test.
#[derive(Clone, Default)]
struct Rounds {
    all: Rc<Cell<usize>>,
    in_this_poll: Rc<Cell<usize>>,
}

impl Rounds {
    /// One more; never goes on after the last.
    async fn done(&self) {
        self.all.set(self.all.get() + 1);
        self.in_this_poll.set(self.in_this_poll.get() + 1);
        assert!(
            // One may have begun in the poll before.
            self.in_this_poll.get() <= BUDGET + 1,
            "it does not give way: more than {BUDGET} rounds in one poll"
        );
        if self.all.get() >= ROUNDS {
            std::future::pending().await
        }
    }

    /// Runs `looping`, which never ends, and tells where each of its polls begins.
    async fn watch(&self, looping: Pin<Box<dyn Future<Output = ()>>>) {
        let mut looping = looping;
        std::future::poll_fn(|cx: &mut Context<'_>| {
            self.in_this_poll.set(0);
            assert!(looping.as_mut().poll(cx).is_pending(), "it has ended");
            Poll::<()>::Pending
        })
        .await
    }
}

/// `leaf!([names...], rounds, { setup }, body)`: `body` again and again.
macro_rules! source {
    ([$($covers:literal),* $(,)?], { $($setup:tt)* }, $body:expr) => {
        $crate::Source {
            covers: &[$($covers),*],
            text: concat!(stringify!($($setup)*), " loop { ", stringify!($body), " }"),
            run: |rounds| Box::pin(async move {
                $($setup)*
                loop {
                    $body;
                    rounds.done().await;
                }
            }),
        }
    };
}
pub(crate) use source;

/// Runs one loop on a thread of its own, beside a neighbour and a timer, until all three have had
/// their turns; or says what kept them from it.
fn beside_others(source: &Source) -> Result<(), String> {
    let library = ThreadLib::builder().build();
    let mut runner = library.thread().build().unwrap().attach();
    let rounds = Rounds::default();
    let looping = (source.run)(rounds.clone());
    let (watched, neighbour, timer) = runner.enter(|| {
        let rounds = rounds.clone();
        let watched = task::spawn_local(async move { rounds.watch(looping).await });
        let neighbour = task::spawn_local(async {
            for _ in 0..3 {
                task::yield_now().await;
            }
        });
        let timer = task::spawn_local(time::sleep(Duration::from_millis(1)));
        (watched, neighbour, timer)
    });
    let start = Instant::now();
    loop {
        runner.poll(0, 0);
        if let Some(driver) = Driver::current() {
            driver.poll();
        }
        if watched.is_finished() {
            let error = futures::executor::block_on(watched).unwrap_err();
            return Err(format!("{}: {error}", source.text));
        }
        let others_done = neighbour.is_finished() && timer.is_finished();
        if others_done && rounds.all.get() >= ROUNDS {
            break;
        }
        if start.elapsed() > Duration::from_secs(60) {
            let rounds = rounds.all.get();
            return Err(format!("{}: stuck after {rounds} rounds", source.text));
        }
        std::thread::yield_now();
    }
    watched.abort();
    runner.enter(|| drop((neighbour, timer)));
    while !watched.is_finished() {
        runner.poll(0, 0);
    }
    Ok(())
}

fn each_beside_others(sources: &[Source]) {
    let failures = sources
        .iter()
        .filter_map(|source| beside_others(source).err());
    let failures: Vec<_> = failures.collect();
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn a_loop_over_anything_of_a_thread_gives_way() {
    each_beside_others(threads::SOURCES);
}

fn with_driver(choice: BackendChoice, sources: &[Source]) {
    let config = DriverConfig::new().backend(choice);
    let driver = Driver::new(&config).unwrap();
    let _entered = driver.enter();
    each_beside_others(sources);
}

#[test]
fn a_loop_over_any_io_gives_way_on_each_backend() {
    on_every_backend(|choice| {
        with_driver(choice, io::SOURCES);
        with_driver(choice, shared::SOURCES);
        if choice == BackendChoice::IoUring {
            with_driver(choice, io::RAW_SOURCES);
        }
    });
}

/// Also where I/O is refused because there is no driver.
#[test]
fn a_loop_over_refused_io_gives_way() {
    each_beside_others(io::REFUSED_SOURCES);
}

#[test]
fn a_loop_over_refused_signals_gives_way() {
    const NAME: &str = "a_loop_over_refused_signals_gives_way";
    in_a_process_of_its_own(NAME, || {
        refuse(libc::SYS_clone3);
        each_beside_others(threads::REFUSED_SIGNALS);
    });
}

#[test]
fn the_table_is_complete() {
    let declared = declared::sources();
    let tables = [
        threads::SOURCES,
        io::SOURCES,
        io::RAW_SOURCES,
        shared::SOURCES,
    ];
    let covered: BTreeSet<String> = tables
        .iter()
        .flat_map(|table| table.iter())
        .flat_map(|source| source.covers)
        .chain(declared::EXEMPT.iter().map(|(name, _why)| name))
        .map(|name| name.to_string())
        .collect();
    let missing: Vec<_> = declared.difference(&covered).collect();
    assert!(
        missing.is_empty(),
        "add to the table of this test, or to its exemptions with the reason: {missing:#?}"
    );
    let stale: Vec<_> = covered.difference(&declared).collect();
    assert!(stale.is_empty(), "declared no more: {stale:#?}");
}
