//! Operations that the kernel ends at once: what a ring, and what a runtime on it, costs each, beside
//! what it is asked to do.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;

use corespun::io::Driver;
use futures::future::join_all;
use io_uring::{IoUring, opcode};

use crate::measure::per_op;
use crate::measure::tasks::Executor;
use crate::reactor::Reactor;

/// A ring and nothing else: so many in flight, one system call for each batch.
pub fn ring(depth: usize, count: usize) -> f64 {
    let mut ring: IoUring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(64)
        .expect("io_uring is permitted");
    let mut run = |count: usize| {
        let (mut begun, mut done) = (0, 0);
        while done < count {
            let mut queue = ring.submission();
            while begun < count && begun - done < depth {
                begun += 1;
                // SAFETY: the entry refers to nothing.
                let pushed = unsafe { queue.push(&opcode::Nop::new().build()) };
                pushed.expect("room for as many as are in flight");
            }
            drop(queue);
            ring.submit_and_wait(1).expect("a ring that works");
            done += ring.completion().count();
        }
    };
    run(count / 10);
    let start = Instant::now();
    run(count);
    per_op(start, count)
}

/// So many tasks, each of which waits for one after the other.
pub fn reactor(depth: usize, count: usize) -> f64 {
    Reactor::run(async move {
        wait_for_all(depth, count / 10).await;
        let start = Instant::now();
        wait_for_all(depth, count).await;
        per_op(start, count)
    })
}

async fn wait_for_all(depth: usize, count: usize) {
    let left = Rc::new(Cell::new(count));
    let task = |_| {
        let left = left.clone();
        Reactor::spawn(async move {
            let driver = Driver::current().expect("a reactor's");
            while left.get() > 0 {
                left.set(left.get() - 1);
                // SAFETY: the entry refers to nothing.
                let operation = unsafe { driver.submit_raw(opcode::Nop::new().build(), ()) };
                let (completion, ()) = operation.expect("a ring").await;
                assert_eq!(completion.result, 0);
            }
        })
    };
    join_all((0..depth).map(task)).await;
}
