//! What stands in for event-listener's `Event` in models, with as much of it as is
//! used: a list of listeners, of which as many as are notified are told. One that
//! listens no more is on it no more, and passes on what it was told and did not take.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use loom::sync::{Arc, Mutex};

#[derive(Default)]
struct State {
    told: bool,
    waker: Option<Waker>,
}

type List = Arc<Mutex<Vec<Arc<Mutex<State>>>>>;

pub(crate) struct Event(List);

impl Event {
    pub(crate) fn new() -> Self {
        Event(Arc::new(Mutex::new(Vec::new())))
    }

    pub(crate) fn listen(&self) -> Listener {
        let state = Arc::new(Mutex::new(State::default()));
        self.0.lock().unwrap().push(state.clone());
        Listener {
            state,
            list: self.0.clone(),
            taken: false,
        }
    }

    /// Tells `count` of the listeners that were not told.
    pub(crate) fn notify_additional(&self, count: usize) {
        let mut listeners = self.0.lock().unwrap();
        let count = count.min(listeners.len());
        let told: Vec<_> = listeners.drain(..count).collect();
        drop(listeners);
        for listener in told {
            let mut state = listener.lock().unwrap();
            state.told = true;
            let waker = state.waker.take();
            drop(state);
            waker.into_iter().for_each(Waker::wake);
        }
    }
}

pub(crate) struct Listener {
    state: Arc<Mutex<State>>,
    list: List,
    /// What it was told has been taken.
    taken: bool,
}

impl Future for Listener {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.lock().unwrap();
        if !state.told {
            state.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        drop(state);
        self.taken = true;
        Poll::Ready(())
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.taken {
            return;
        }
        let mut listeners = self.list.lock().unwrap();
        let here = |one: &Arc<Mutex<State>>| Arc::ptr_eq(one, &self.state);
        match listeners.iter().position(here) {
            Some(place) => drop(listeners.remove(place)),
            // It was told, and another is instead.
            None => {
                drop(listeners);
                Event(self.list.clone()).notify_additional(1);
            }
        }
    }
}
