//! The floors: what plain code without a runtime needs for the same. The
//! cache-line round trip is among what all benches share.

use std::cell::Cell;
use std::future::poll_fn;
use std::hint::black_box;
use std::os::fd::AsFd;
use std::task::Poll;
use std::time::Instant;

use async_task::Runnable;
use corespun::cpu;
use futures::FutureExt;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;

use crate::measure::per_op;

/// async-task without a queue: spawn, run, join.
pub fn spawn_join(tasks: usize) -> f64 {
    let start = Instant::now();
    for number in 0..tasks {
        let (runnable, task) = async_task::spawn(async move { number }, |_| ());
        runnable.run();
        black_box(task.now_or_never());
    }
    per_op(start, tasks)
}

thread_local! {
    /// In the place of a queue.
    static WOKEN: Cell<Option<Runnable>> = const { Cell::new(None) };
}

/// async-task without a queue: a task that wakes itself, and is run again.
pub fn yields(times: usize) -> f64 {
    let mut left = times;
    let yielding = poll_fn(move |cx| {
        if left == 0 {
            return Poll::Ready(());
        }
        left -= 1;
        cx.waker().wake_by_ref();
        Poll::Pending
    });
    let schedule = |runnable| WOKEN.set(Some(runnable));
    let (runnable, task) = async_task::spawn(yielding, schedule);
    let start = Instant::now();
    runnable.run();
    while let Some(runnable) = WOKEN.take() {
        runnable.run();
    }
    let figure = per_op(start, times);
    task.now_or_never().expect("it has ended");
    figure
}

/// Two OS threads that wake each other from `epoll_wait` with an eventfd each.
pub fn eventfd_round_trip(here: usize, there: usize, rounds: usize) -> f64 {
    let descriptors = [(); 2].map(|()| EventFd::new().expect("an eventfd"));
    let wait = |me: usize, epoll: &Epoll| {
        let mut events = [EpollEvent::empty()];
        epoll
            .wait(&mut events, EpollTimeout::NONE)
            .expect("a wait without limit");
        descriptors[me].read().expect("it is readable");
    };
    let tell = |whom: usize| _ = descriptors[whom].write(1).expect("room in the counter");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            cpu::pin_current_thread(there).expect("pinning");
            let epoll = watching(&descriptors[1]);
            for _ in 0..rounds {
                wait(1, &epoll);
                tell(0);
            }
        });
        cpu::pin_current_thread(here).expect("pinning");
        let epoll = watching(&descriptors[0]);
        let start = Instant::now();
        for _ in 0..rounds {
            tell(1);
            wait(0, &epoll);
        }
        per_op(start, rounds)
    })
}

fn watching(descriptor: &EventFd) -> Epoll {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("an epoll descriptor");
    let readable = EpollEvent::new(EpollFlags::EPOLLIN, 0);
    epoll
        .add(descriptor.as_fd(), readable)
        .expect("watching an eventfd");
    epoll
}
