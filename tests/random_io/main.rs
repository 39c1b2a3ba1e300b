//! Random programs of I/O, on each back-end: operations of every kind that are
//! started, dropped, forgotten, polled again and cancelled, on files, pipes and
//! sockets, also through duplicated descriptors and ones that are closed
//! meanwhile, against peers that answer in pieces, with urgent data and with
//! descriptors in between, and that go away.
//!
//! Some sockets are shared with another OS thread, which has a driver of its own.
//!
//! The books: what arrives is what was sent, in order; each buffer comes back once,
//! untouched beyond what was read; what could be done is not waited for for ever
//! (whenever all is quiet, each wait is compared with `poll(2)`); what a file was
//! told is in it; and at the end nothing is in flight, and all descriptors are
//! closed.
//!
//! How to run for long, and one program again: `tests/harness/src/random.rs`.
#![allow(unreachable_pub, reason = "a program of several files")]

mod across;
mod activity;
mod files;
mod peers;
mod perform;
mod raw;
mod streams;
mod things;

use std::process::ExitCode;

use corespun::io::BackendChoice;
use harness::io::io_uring_permitted;
use harness::random::{self, Beginning, Ran, Subject, Weighted};
use harness::stress::Dice;
use things::World;

pub(crate) type Step = random::Step<Kind>;

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Tcp,
    Unix,
    Pipe,
    File,
    Listener,
    Duplicate,
    Close,

    Recv,
    RecvExact,
    Send,
    SendAll,
    Readable,
    Writable,
    Accept,
    Connect,
    ReadAt,
    WriteAt,
    Sync,
    Length,
    Unblock,
    RawRecv,
    RawRead,
    RawPoll,
    RawNop,
    RawAccept,
    RawChain,
    RawAcceptMany,
    OpenFifo,
    ConnectUnix,
    RecvVectored,
    SendVectored,

    Share,
    Unshare,
    SharedRecv,
    SharedSend,
    OtherRecv,
    OtherSend,
    OtherDrop,
    PeerShare,

    PollAgain,
    Drop,
    Forget,

    PeerSend,
    PeerUrgent,
    PeerDescriptor,
    PeerRecv,
    PeerShutdown,
    PeerClose,
    PeerConnect,
    PeerOpenFifo,
    PeerAccept,

    Run,
    Turn,
    Park,
    Settle,
}

const KINDS: &[Weighted<Kind>] = {
    use Kind::*;
    &[
        (Tcp, 3),
        (Unix, 3),
        (Pipe, 2),
        (File, 1),
        (Listener, 1),
        (Duplicate, 2),
        (Close, 2),
        (Recv, 14),
        (RecvExact, 3),
        (Send, 6),
        (SendAll, 3),
        (Readable, 2),
        (Writable, 2),
        (Accept, 2),
        (Connect, 2),
        (ReadAt, 4),
        (WriteAt, 4),
        (Sync, 1),
        (Length, 1),
        (Unblock, 1),
        (RawRecv, 4),
        (RawRead, 3),
        (RawPoll, 2),
        (RawNop, 3),
        (RawAccept, 1),
        (RawChain, 2),
        (RawAcceptMany, 2),
        (OpenFifo, 1),
        (ConnectUnix, 2),
        (RecvVectored, 3),
        (SendVectored, 2),
        (Share, 2),
        (Unshare, 1),
        (SharedRecv, 3),
        (SharedSend, 2),
        (OtherRecv, 3),
        (OtherSend, 2),
        (OtherDrop, 1),
        (PeerShare, 8),
        (PollAgain, 3),
        (Drop, 6),
        (Forget, 1),
        (PeerSend, 16),
        (PeerUrgent, 3),
        (PeerDescriptor, 3),
        (PeerRecv, 8),
        (PeerShutdown, 1),
        (PeerClose, 1),
        (PeerConnect, 3),
        (PeerOpenFifo, 1),
        (PeerAccept, 1),
        (Run, 16),
        (Turn, 8),
        (Park, 4),
        (Settle, 8),
    ]
};

struct InputAndOutput {
    ring: bool,
}

impl Subject for InputAndOutput {
    type Kind = Kind;
    const NAME: &'static str = "random_io";
    const SITES: usize = 1;
    const FORGETS: bool = true;
    const TOP: &'static [Weighted<Kind>] = KINDS;
    // No step has others inside.
    const INSIDE: &'static [Weighted<Kind>] = &[];

    fn beginning(dice: &mut Dice) -> Vec<Beginning<Kind>> {
        let all = [Kind::Tcp, Kind::Unix, Kind::Pipe, Kind::File];
        let mut step = || {
            let kind = all[dice.below(4) as usize];
            (kind, dice.below(64) as usize, 0, 0, vec![])
        };
        vec![step(), step()]
    }

    fn run(&mut self, program: &random::Program<Kind>) -> Result<Ran, String> {
        let choice = match program.number.is_multiple_of(2) && self.ring {
            true => BackendChoice::IoUring,
            false => BackendChoice::Epoll,
        };
        // An OS thread of its own: the kernel takes a ring down after its close has
        // returned, and interrupts a sleep of the OS thread that had it.
        let steps = &program.steps;
        let outcome = std::thread::scope(|scope| {
            let run = move || {
                let mut world = World::new(choice);
                for step in steps {
                    world.perform(step);
                    if world.failed().is_some() {
                        break;
                    }
                }
                let operations = world.performed;
                Ok(Ran {
                    operations,
                    descriptors: world.end()?,
                })
            };
            scope.spawn(run).join()
        });
        outcome.unwrap_or_else(|payload| {
            let text = payload.downcast_ref::<&str>().map(ToString::to_string);
            let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
            Err(format!("panic: {}", text.unwrap_or_default()))
        })
    }
}

fn main() -> ExitCode {
    let ring = std::env::var_os("CORESPUN_RANDOM_NO_RING").is_none() && io_uring_permitted();
    random::run(InputAndOutput { ring })
}
