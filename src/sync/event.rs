//! What stands in for event-listener's `Event` in models, with as much of it as is
//! used: a list of those who listen, of whom as many as are notified are told.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use loom::sync::{Arc, Mutex};

#[derive(Default)]
struct State {
    told: bool,
    waker: Option<Waker>,
}

pub(crate) struct Event(Mutex<Vec<Arc<Mutex<State>>>>);

impl Event {
    pub(crate) fn new() -> Self {
        Event(Mutex::new(Vec::new()))
    }

    pub(crate) fn listen(&self) -> Listener {
        let state = Arc::new(Mutex::new(State::default()));
        self.0.lock().unwrap().push(state.clone());
        Listener(state)
    }

    /// Tells `count` of those who were not told.
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

pub(crate) struct Listener(Arc<Mutex<State>>);

impl Future for Listener {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.0.lock().unwrap();
        if state.told {
            return Poll::Ready(());
        }
        state.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}
