//! The classic SPDK thread demo, without the app framework: one thread that gets
//! a message, a periodic poller that says hello, and a second timed poller that
//! stops it all.
//!
//! ```text
//! cargo run --release --example poller_test -- --time 3 --cores 0x1
//! ```
//!
//! Four questions that this program answers, and where:
//!
//! - **Who makes a reactor?** You do. A reactor is nothing but an OS thread,
//!   pinned to a core, that polls SpdkThreads: here [`Reactor::run`], one for
//!   each core of the mask, started by `main`.
//! - **Who polls a thread?** Whoever holds its `ThreadRunner`. There is one per
//!   SpdkThread; here it sits in the ring of a reactor, which polls each thread
//!   once a round.
//! - **How does a message reach it?** `send_msg` puts a closure into the
//!   thread's mailbox, from any OS thread. The next poll runs it, before any
//!   poller: so "hello reader" is printed first.
//! - **How does it pick a core?** The library hands each new thread to the
//!   framework that was set, here [`Cores`]: it looks for the next reactor whose
//!   core is in the thread's cpumask, and puts the thread, which no OS thread
//!   polls yet, into that reactor's inbox.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use clap::Parser;
use corespun::cpu::{self, CpuSet};
use corespun::thread::{
    CreateError, Framework, ParkedThread, Poller, SpdkThread, ThreadLib, ThreadRunner,
};
use crossbeam_queue::SegQueue;

#[derive(Parser)]
struct Options {
    /// Seconds until everything stops.
    #[arg(long, default_value_t = 3)]
    time: u64,
    /// Cores to run a reactor on, as a mask (0x3) or a list ([0-1]).
    #[arg(long, default_value = "0x1")]
    cores: CpuSet,
}

/// Where threads on their way to a core wait for its reactor.
struct Inbox {
    core: usize,
    arrivals: SegQueue<ParkedThread>,
}

/// The framework: places each new thread on the next core that its mask allows.
struct Cores {
    inboxes: Vec<Inbox>,
    cursor: AtomicUsize,
}

impl Framework for Cores {
    fn place(&self, thread: ParkedThread) -> Result<(), CreateError> {
        let start = self.cursor.fetch_add(1, Ordering::Relaxed);
        let mask = thread.cpumask();
        let next_allowed = (0..self.inboxes.len())
            .map(|step| &self.inboxes[(start + step) % self.inboxes.len()])
            .find(|inbox| mask.contains(inbox.core));
        match next_allowed {
            Some(inbox) => inbox.arrivals.push(thread),
            None => {
                return Err(CreateError::NoCore {
                    thread: thread.handle().name().to_owned(),
                    cpumask: mask.as_list().to_string(),
                    available: "the cores of this demo".to_owned(),
                });
            }
        }
        Ok(())
    }
}

/// One core: an OS thread that polls a ring of SpdkThreads.
struct Reactor<'a> {
    inbox: &'a Inbox,
    library: &'a ThreadLib,
    ring: VecDeque<ThreadRunner>,
}

impl Reactor<'_> {
    /// Polls until no thread is left anywhere.
    fn run(mut self) {
        cpu::pin_current_thread(self.inbox.core).expect("main has checked the core");
        while self.library.thread_count() > 0 {
            while let Some(thread) = self.inbox.arrivals.pop() {
                self.ring.push_back(thread.attach());
            }
            let Some(mut thread) = self.ring.pop_front() else {
                std::thread::yield_now();
                continue;
            };
            thread.poll(0, 0);
            if !thread.is_exited() {
                self.ring.push_back(thread);
            }
        }
    }
}

/// What the demo's thread does; runs on it, as its first message.
fn start(time: Duration) {
    println!("hello reader");
    let pollers = Rc::new(RefCell::new(Vec::new()));
    let hello = Poller::timed(Duration::from_millis(500), || println!("hello poller"));
    let stop = Poller::timed(time, {
        let pollers = pollers.clone();
        move || {
            println!("time is up");
            // Dropping a handle unregisters its poller: here the other one's,
            // and this one's own, which is legal too.
            pollers.take();
            let this = SpdkThread::current().expect("a poller runs on its thread");
            drop(this.exit());
        }
    });
    pollers
        .borrow_mut()
        .extend([hello, stop].map(|poller| poller.expect("this is a SpdkThread")));
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    let available = cpu::available()?;
    if let Some(core) = options.cores.iter().find(|&core| !available.contains(core)) {
        return Err(format!(
            "core {core} does not exist; there are {}",
            available.as_list()
        )
        .into());
    }
    let cores = Arc::new(Cores {
        inboxes: options
            .cores
            .iter()
            .map(|core| Inbox {
                core,
                arrivals: SegQueue::new(),
            })
            .collect(),
        cursor: AtomicUsize::new(0),
    });
    let library = ThreadLib::new();
    library.set_framework(cores.clone())?;

    let thread = library.thread().name("poller_test").create()?;
    let time = Duration::from_secs(options.time);
    thread.send_msg(move || start(time))?;

    std::thread::scope(|scope| {
        for inbox in &cores.inboxes {
            scope.spawn(|| {
                Reactor {
                    inbox,
                    library: &library,
                    ring: VecDeque::new(),
                }
                .run()
            });
        }
    });
    println!("all threads have exited");
    Ok(())
}
