//! tmp
use corespun::task::{spawn_local, yield_now};
use corespun::thread::ThreadLib;
use std::cell::{Cell, RefCell};
use std::hint::black_box;
use std::rc::Rc;
use std::task::Poll;
fn main() {
    let mode = std::env::args().nth(1).unwrap();
    let n: usize = std::env::args().nth(2).unwrap().parse().unwrap();
    let mut runner = ThreadLib::new().thread().build().unwrap().attach();
    let thread = runner.handle();
    match &*mode {
        "self" => for b in 0..n / 8 {
            runner.enter(|| for m in 0..8 { thread.send_msg(move || _ = black_box(b + m)).unwrap(); });
            runner.poll(0, 1);
        },
        "sent" => for b in 0..n / 8 {
            for m in 0..8 { thread.send_msg(move || _ = black_box(b + m)).unwrap(); }
            runner.poll(0, 1);
        },
        "yield" => {
            let h: Vec<_> = runner.enter(|| (0..100).map(|_| spawn_local(async move { for _ in 0..n / 100 { yield_now().await } })).collect());
            while !h.iter().all(|h| h.is_finished()) { runner.poll(0, 1); }
        }
        "spawn" => {
            let h = runner.enter(|| spawn_local(async move { for i in 0..n { black_box(spawn_local(async move { i }).await.unwrap()); } }));
            while !h.is_finished() { runner.poll(0, 1); }
        }
        "wake" => {
            let turn = Rc::new(Cell::new(0));
            let wakers = Rc::new([RefCell::new(None), RefCell::new(None)]);
            let player = |me: usize| { let (turn, wakers) = (turn.clone(), wakers.clone()); async move { for _ in 0..n {
                std::future::poll_fn(|cx| { if turn.get() == me { return Poll::Ready(()); } *wakers[me].borrow_mut() = Some(cx.waker().clone()); Poll::Pending }).await;
                turn.set(1 - me);
                let other: Option<std::task::Waker> = wakers[1 - me].borrow_mut().take();
                other.into_iter().for_each(std::task::Waker::wake); } } };
            let h = runner.enter(|| [spawn_local(player(0)), spawn_local(player(1))]);
            while !h.iter().all(|h| h.is_finished()) { runner.poll(0, 1); }
        }
        "timed" => {
            let p: Vec<_> = runner.enter(|| (0..10).map(|_| corespun::thread::Poller::timed(std::time::Duration::from_nanos(1), || true).unwrap()).collect());
            for _ in 0..n / 10 { runner.poll(0, 0); }
            drop(p);
        }
        "active" => {
            let p: Vec<_> = runner.enter(|| (0..100).map(|_| corespun::thread::Poller::active(|| true).unwrap()).collect());
            for _ in 0..n / 100 { runner.poll(0, 1); }
            drop(p);
        }
        _ => for _ in 0..n { runner.poll(0, 1); },
    }
}
