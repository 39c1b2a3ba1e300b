//! Random programs of everything that SpdkThreads offer: two libraries, several
//! SpdkThreads polled by hand and moved, three OS threads, and values whose
//! destructors panic, send, spawn, register, exit or drop others.
//!
//! A program runs in one of two forms. In the exact one the OS threads take turns,
//! a step each, on virtual time: a program that fails does so each time. In the
//! other they run at once, half of the time beside an app whose reactors have some
//! of the threads. In both, books are kept (`books.rs`): each value is
//! dropped once, where it may be; each message that was accepted runs once, in
//! order, on its thread; what a queue accepted arrives; no buffer is had by two,
//! and no request for one is overtaken for ever; a thread's descriptor is readable
//! when the thread needs a poll; and nothing is left at the end.
//!
//! How to run for long, and one program again: `tests/harness/src/random.rs`. No
//! test harness, so that ThreadSanitizer can follow every edge.
#![allow(unreachable_pub, reason = "a program of several files")]

mod books;
mod buffers;
mod channels;
mod ending;
mod here;
mod hosting;
mod messages;
mod moving;
mod perform;
mod pollers;
mod queues;
mod tasks;
mod waits;
mod within;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use books::World;
use corespun::app::{App, AppHandle};
use corespun::reactor::ReactorMode;
use futures::channel::oneshot;
use harness::random::{self, Beginning, Ran, Subject, Weighted};
use harness::stress::{Dice, read};
use nix::sys::eventfd::EventFd;

pub(crate) type Step = random::Step<Kind>;
pub(crate) type Script = random::Script<Kind>;

/// What a step does. The first group is for the top of an OS thread; it may also be
/// inside of another SpdkThread's callback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Host,
    Poll,
    Settle,
    Enter,
    Beside,
    Park,
    Leave,
    Attach,
    DropRunner,
    DropParked,
    Advance,
    ExitRunner,
    Descriptor,
    Mode,

    Send,
    Burst,
    Exec,
    Critical,
    Exit,
    ModeInside,
    Poller,
    StreamPoller,
    Pause,
    Resume,
    DropPoller,
    Detach,
    MovingPoller,
    UseMovingPoller,
    DropMovingPoller,
    MovingDevice,
    MovingChannel,
    UseMovingChannel,
    DropMovingChannel,
    MovingStream,
    Hook,
    PostPoller,
    Interrupt,
    Ring,
    DropInterrupt,
    Device,
    Channel,
    CloneChannel,
    DropChannel,
    Unregister,
    WalkChannels,
    WalkSteps,
    ProceedStep,
    WalkThreads,
    Pool,
    OpenPool,
    GetBuffers,
    GetWith,
    AskAgain,
    GiveBack,
    AbortWaiter,
    ClosePool,
    Mpsc,
    TrySend,
    CloneSender,
    DropSender,
    TryRecv,
    DropReceiver,
    SpawnLocal,
    SpawnEager,
    Spawn,
    SpawnMovable,
    SpawnOn,
    SpawnWith,
    Wake,
    DropWaker,
    Abort,
    DropJoin,
    LocalKey,
    SendKey,
    HoldLock,
    LocalQueue,
    LocalSend,
    DropLocalSender,
    Shelve,
    Unshelve,

    LocalNotify,
    NotifyOne,
    NotifyAll,
    Semaphore,
    TryAcquire,
    AddPermits,
    DropPermit,
    CloseSemaphore,
    Oneshot,
    OneshotSend,
    DropOneshot,
    PollerStream,

    Yield,
    Sleep,
    WaitForWaker,
    Join,
    Recv,
    SendAsync,
    GetAsync,
    GetMany,
    Notified,
    Acquire,
    JoinSet,
    Scope,
    Call,
    MoveTo,
}

const INSIDE: &[Weighted<Kind>] = {
    use Kind::*;
    &[
        (Poll, 1),
        (Enter, 1),
        (Advance, 1),
        (Send, 8),
        (Burst, 1),
        (Exec, 2),
        (Critical, 1),
        (Exit, 1),
        (ModeInside, 1),
        (Poller, 4),
        (StreamPoller, 2),
        (Pause, 2),
        (Resume, 2),
        (DropPoller, 4),
        (Detach, 1),
        (MovingPoller, 3),
        (UseMovingPoller, 2),
        (DropMovingPoller, 2),
        (MovingDevice, 1),
        (MovingChannel, 2),
        (UseMovingChannel, 3),
        (DropMovingChannel, 2),
        (MovingStream, 1),
        (Hook, 3),
        (PostPoller, 1),
        (Interrupt, 3),
        (Ring, 3),
        (DropInterrupt, 2),
        (Device, 2),
        (Channel, 6),
        (CloneChannel, 1),
        (DropChannel, 6),
        (Unregister, 1),
        (WalkChannels, 2),
        (WalkSteps, 2),
        (ProceedStep, 2),
        (WalkThreads, 1),
        (Pool, 1),
        (OpenPool, 4),
        (GetBuffers, 5),
        (GetWith, 4),
        (AskAgain, 3),
        (GiveBack, 7),
        (AbortWaiter, 1),
        (ClosePool, 2),
        (Mpsc, 2),
        (TrySend, 6),
        (CloneSender, 2),
        (DropSender, 3),
        (TryRecv, 3),
        (DropReceiver, 1),
        (SpawnLocal, 5),
        (SpawnEager, 2),
        (Spawn, 2),
        (SpawnMovable, 2),
        (SpawnOn, 3),
        (SpawnWith, 3),
        (Wake, 5),
        (DropWaker, 2),
        (Abort, 2),
        (DropJoin, 2),
        (LocalKey, 1),
        (SendKey, 1),
        (HoldLock, 1),
        (LocalQueue, 1),
        (LocalSend, 2),
        (DropLocalSender, 1),
        (Shelve, 3),
        (Unshelve, 3),
        (LocalNotify, 2),
        (NotifyOne, 5),
        (NotifyAll, 1),
        (Semaphore, 2),
        (TryAcquire, 1),
        (AddPermits, 4),
        (DropPermit, 3),
        (CloseSemaphore, 1),
        (Oneshot, 2),
        (OneshotSend, 3),
        (DropOneshot, 1),
        (PollerStream, 2),
        (Yield, 3),
        (Sleep, 3),
        (WaitForWaker, 4),
        (Join, 3),
        (Recv, 4),
        (SendAsync, 3),
        (GetAsync, 3),
        (GetMany, 2),
        (Notified, 4),
        (Acquire, 4),
        (JoinSet, 1),
        (Scope, 1),
        (Call, 2),
        (MoveTo, 2),
    ]
};

const TOP: &[Weighted<Kind>] = {
    use Kind::*;
    &[
        (Host, 5),
        (Poll, 30),
        (Settle, 4),
        (Enter, 36),
        (Beside, 14),
        (Park, 3),
        (Leave, 5),
        (Attach, 6),
        (DropRunner, 1),
        (DropParked, 1),
        (Advance, 4),
        (ExitRunner, 4),
        (Descriptor, 3),
        (Mode, 3),
        (Send, 8),
        (Burst, 1),
        (Critical, 1),
        (Exit, 1),
        (Ring, 2),
        (UseMovingPoller, 1),
        (DropMovingPoller, 1),
        (DropMovingChannel, 1),
        (GiveBack, 4),
        (TrySend, 4),
        (DropSender, 2),
        (SpawnOn, 1),
        (SpawnWith, 1),
        (Wake, 3),
        (DropWaker, 1),
        (Abort, 1),
        (DropJoin, 1),
    ]
};

struct Threads;

impl Subject for Threads {
    type Kind = Kind;
    const NAME: &'static str = "random_threads";
    const SITES: usize = 3;
    const FORGETS: bool = false;
    const TOP: &'static [Weighted<Kind>] = TOP;
    const INSIDE: &'static [Weighted<Kind>] = INSIDE;

    fn beginning(dice: &mut Dice) -> Vec<Beginning<Kind>> {
        // The first OS thread has a thread of each library, the second one of either
        // perhaps: the last is a foreign one at first.
        let mut steps = vec![(Kind::Host, 0, 0, 0, vec![]), (Kind::Host, 1, 0, 0, vec![])];
        if dice.below(2) == 0 {
            steps.push((Kind::Host, dice.below(2) as usize, 0, 1, vec![]));
        }
        for slot in 0..2 {
            if dice.below(2) == 0 {
                let opened = vec![(Kind::Pool, 0, 0), (Kind::OpenPool, 0, 0)];
                steps.push((Kind::Enter, slot, 0, 0, opened));
            }
            if dice.below(2) == 0 {
                steps.push((Kind::Mode, slot, 1, 0, vec![]));
                steps.push((Kind::Descriptor, slot, 0, 0, vec![]));
            }
        }
        steps
    }

    fn run(&mut self, program: &random::Program<Kind>) -> Result<Ran, String> {
        // Two of three are exact, and one of six is beside an app.
        let exact = !program.number.is_multiple_of(3);
        let steps = program.steps.clone();
        let performed = if program.number.is_multiple_of(6) {
            let app = App::builder()
                .mode(ReactorMode::Interrupt)
                .handle_signals(false);
            let run = || {
                app.block_on(async move |app: AppHandle| {
                    let (sender, result) = oneshot::channel();
                    let beside = thread::spawn(move || {
                        here::begin(Self::SITES);
                        drop(sender.send(run_in(World::new(false, Some(app)), &steps)));
                    });
                    let result = result.await;
                    drop(beside.join());
                    result
                })
            };
            let ran = catch_unwind(AssertUnwindSafe(run));
            let ran = ran.map_err(|_| "app: a reactor unwound".to_owned())?;
            let ran = ran.map_err(|error| format!("app: {error}"))?;
            ran.map_err(|_| "the program's OS thread panicked".to_owned())??
        } else {
            run_in(World::new(exact, None), &steps)?
        };
        Ok(Ran {
            operations: performed,
            descriptors: 0,
        })
    }
}

/// Runs it on OS threads of its own.
fn run_in(world: Arc<World>, steps: &Script) -> Result<usize, String> {
    let turns = Turns::new(world.exact);
    let turns_ref = &turns;
    thread::scope(|scope| {
        let sites = (0..Threads::SITES).map(|site| {
            let world = world.clone();
            scope.spawn(move || {
                let end = AbandonTurns(turns_ref);
                here::begin(site);
                for (n, step) in steps.iter().enumerate() {
                    if step.site == site && turns_ref.wait(n, site) {
                        perform::top(&world, step);
                        turns_ref.pass(n);
                    }
                }
                ending::end(&world, site, turns_ref, steps.len());
                std::mem::forget(end);
            })
        });
        for site in sites.collect::<Vec<_>>() {
            if site.join().is_err() {
                world.fail("an OS thread of the program panicked");
            }
        }
    });
    // Nobody else is left.
    here::begin(Threads::SITES);
    ending::end_of_world(&world);
    let performed = read(&world.performed);
    if let Some(what) = world.failed() {
        // What is left may be wrong in any way: its destructors are not run.
        std::mem::forget(world);
        return Err(what);
    }
    let left = Arc::strong_count(&world);
    if left > 1 {
        return Err(format!("something still holds the world {left} times"));
    }
    Ok(performed)
}

/// Whose turn it is, in the exact form; else it is everybody's always.
pub(crate) struct Turns {
    exact: bool,
    turn: AtomicUsize,
    /// For each OS thread, written when it may be its turn. (A handle to a thread of
    /// the standard library would hide edges from ThreadSanitizer.)
    bells: Vec<EventFd>,
}

/// An OS thread that unwinds ends the others' waiting.
struct AbandonTurns<'a>(&'a Turns);

impl Drop for AbandonTurns<'_> {
    fn drop(&mut self) {
        self.0.turn.store(usize::MAX, Ordering::Release);
        self.0.wake_all();
    }
}

impl Turns {
    fn new(exact: bool) -> Self {
        Turns {
            exact,
            turn: AtomicUsize::new(0),
            bells: (0..Threads::SITES)
                .map(|_| EventFd::new().expect("descriptors are there"))
                .collect(),
        }
    }

    fn wake_all(&self) {
        for bell in &self.bells {
            let _ = bell.write(1);
        }
    }

    /// Waits for turn `n`, which is that of `site`. Whether the program goes on.
    pub fn wait(&self, n: usize, site: usize) -> bool {
        loop {
            match self.turn.load(Ordering::Acquire) {
                _ if !self.exact => return true,
                now if now == n => return true,
                usize::MAX => return false,
                _ => drop(self.bells[site].read()),
            }
        }
    }

    pub fn pass(&self, n: usize) {
        if self.exact {
            // Unless somebody has given up.
            let _ = self
                .turn
                .compare_exchange(n, n + 1, Ordering::AcqRel, Ordering::Acquire);
            self.wake_all();
        }
    }
}

fn main() -> ExitCode {
    random::run(Threads)
}
