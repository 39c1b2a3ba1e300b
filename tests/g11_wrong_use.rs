//! G11: wrong use is a clear panic or error where it is not a compile error;
//! the compile errors are doctests beside the types.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use corespun::channel::{IoChannel, IoDevice, WalkStep};
use corespun::sharded::Sharded;
use corespun::stream::PollerStream;
use corespun::task::{self, JoinHandle, JoinSet};
use corespun::thread::{ParkedThread, Poller, PollerError, SpdkThread, ThreadLib, ThreadRunner};
use corespun::time::{self, Sleep};

fn panic_text(f: impl FnOnce()) -> String {
    let payload = catch_unwind(AssertUnwindSafe(f)).unwrap_err();
    match payload.downcast::<String>() {
        Ok(text) => *text,
        Err(payload) => payload.downcast::<&str>().unwrap().to_string(),
    }
}

#[test]
fn spawning_without_a_current_thread_says_what_to_do() {
    for text in [
        panic_text(|| drop(task::spawn_local(async {}))),
        panic_text(|| drop(task::spawn(async {}))),
    ] {
        assert!(text.contains("current SpdkThread"), "{text}");
        assert!(text.contains("SpdkThread::spawn"), "{text}");
    }
}

#[test]
fn sleeping_without_a_current_thread_says_what_to_do() {
    let sleep = time::sleep(std::time::Duration::from_micros(1));
    let text = panic_text(|| futures::executor::block_on(sleep));
    assert!(text.contains("spawn the task"), "{text}");
}

#[test]
fn registering_a_poller_without_a_current_thread_is_an_error() {
    let error = Poller::active(|| ()).unwrap_err();
    assert!(matches!(error, PollerError::NotOnThread(_)));
    assert!(error.to_string().contains("on a SpdkThread"));
    assert!(SpdkThread::current().is_none());
}

#[test]
fn registering_a_poller_on_an_exited_thread_is_an_error_that_names_it() {
    let library = ThreadLib::new();
    let mut runner = library.thread().name("done").build().unwrap().attach();
    let thread = runner.handle();
    drop(thread.exit());
    while !thread.is_exited() {
        runner.poll(0, 0);
    }
    let error = runner.enter(|| Poller::active(|| ()).unwrap_err());
    assert!(error.to_string().contains("\"done\""), "{error}");
}

/// The panic of the user's own code inside `enter` leaves no current thread.
#[test]
fn a_panic_inside_enter_restores_the_current_thread() {
    let library = ThreadLib::new();
    let [mut outer, mut inner] = [(); 2].map(|()| library.thread().build().unwrap().attach());
    let (o, i) = (outer.handle(), inner.handle());
    outer.enter(|| {
        let _ = catch_unwind(AssertUnwindSafe(|| {
            inner.enter(|| {
                assert_eq!(SpdkThread::current(), Some(i));
                std::panic::resume_unwind(Box::new(()));
            })
        }));
        assert_eq!(SpdkThread::current(), Some(o));
    });
    assert!(SpdkThread::current().is_none());
}

/// Has one `check` for a type that is not `Send`, and two to choose from, which
/// does not compile, for one that is.
trait StaysIfUnambiguous<Choice> {
    fn check() {}
}

impl<T: ?Sized> StaysIfUnambiguous<()> for T {}

struct IsSend;

impl<T: ?Sized + Send> StaysIfUnambiguous<IsSend> for T {}

/// Checked by being compiled.
#[test]
fn what_is_bound_to_a_thread_does_not_cross_os_threads() {
    macro_rules! stay {
        ($($bound:ty),* $(,)?) => { $( <$bound as StaysIfUnambiguous<_>>::check(); )* };
    }
    stay!(
        ThreadRunner,
        Poller,
        PollerStream<u8>,
        IoChannel<u8>,
        WalkStep<u8, u8>,
        corespun::mpsc::Receiver<u8>,
        corespun::local::mpsc::Sender<u8>,
        corespun::local::mpsc::Receiver<u8>,
        corespun::local::oneshot::Sender<u8>,
        corespun::local::oneshot::Receiver<u8>,
        task::LocalSpawner,
        task::Scope<'static>,
        task::ScopedHandle<u8>,
        JoinHandle<Rc<u8>>,
        JoinSet<Rc<u8>>,
    );
}

#[test]
fn what_may_cross_os_threads_does() {
    fn crosses<T: Send>() {}
    fn shared<T: Send + Sync>() {}
    crosses::<ParkedThread>();
    crosses::<Sleep>();
    shared::<SpdkThread>();
    shared::<ThreadLib>();
    shared::<JoinHandle<u8>>();
    shared::<task::AbortHandle>();
    shared::<task::JoinError>();
    shared::<IoDevice<Rc<u8>>>();
    shared::<Sharded<Rc<u8>>>();
    shared::<corespun::mpsc::Sender<u8>>();
    crosses::<JoinSet<u8>>();
    crosses::<task::Call<u8>>();
    crosses::<task::CallAsync<u8>>();
    crosses::<task::MoveTo>();
}
