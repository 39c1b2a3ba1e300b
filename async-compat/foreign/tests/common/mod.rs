//! The runtimes that each test is run on.

use corespun::reactor::ReactorMode;
use corespun_compat::runtime::{Builder, Runtime};

/// One of one thread, and one for each mode of reactors.
pub(crate) fn runtimes() -> [Runtime; 4] {
    let workers = |mode| {
        let mut builder = Builder::new_multi_thread();
        let builder = builder.worker_threads(2).reactor_mode(mode).enable_all();
        builder.build().unwrap()
    };
    [
        Builder::new_current_thread().enable_all().build().unwrap(),
        workers(ReactorMode::Adaptive),
        workers(ReactorMode::Poll),
        workers(ReactorMode::Interrupt),
    ]
}
