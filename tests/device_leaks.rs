//! What is said of devices that a program leaves registered, and of buffers that are
//! out when their pools end.

use std::convert::Infallible;

use corespun::channel::IoDevice;
use corespun::iobuf::Iobuf;
use corespun::thread::ThreadLib;
use harness::log::Log;

/// The leak report of `spdk_thread_lib_fini`: by name, and only what is left.
#[test]
fn a_device_that_was_never_unregistered_is_named_at_the_end() {
    let (log, _guard) = Log::install();
    {
        let mut runner = ThreadLib::new().thread().build().unwrap().attach();
        for name in ["left0", "gone0"] {
            let construct = || Ok::<_, Infallible>(());
            let device = runner.enter(|| IoDevice::builder().name(name).register(construct));
            if name == "gone0" {
                let device = device.unwrap();
                runner.enter(|| device.unregister_with(|| ())).unwrap();
            }
        }
        while runner.poll(0, 0).is_busy() {}
        assert_eq!(log.take(), [""; 0]);
    }
    let log = log.take().concat();
    assert!(log.contains("io_device was never unregistered"), "{log}");
    assert!(log.contains("left0") && !log.contains("gone0"), "{log}");
}

/// IO-030: by class, and how many.
#[test]
fn buffers_that_are_out_when_their_pools_end_are_counted() {
    let (log, _guard) = Log::install();
    for out in [0, 3] {
        let mut runner = ThreadLib::new().thread().build().unwrap().attach();
        let builder = Iobuf::builder().small(64, 4096).large(8, 8192);
        let iobuf = runner.enter(|| builder.build()).unwrap();
        iobuf.register_module("m").unwrap();
        let channel = runner.enter(|| iobuf.channel("m", 0, 0)).unwrap();
        let get = |_| channel.try_get(8192).unwrap().unwrap();
        let held: Vec<_> = runner.enter(|| (0..out).map(get).collect());
        runner.enter(|| drop(channel));
        let finish = runner.enter(|| iobuf.finish()).unwrap();
        while runner.poll(0, 0).is_busy() {}
        futures::executor::block_on(finish).unwrap();
        let lines = log.take();
        if out == 0 {
            assert_eq!(lines, [""; 0]);
        } else {
            assert_eq!(lines.len(), 1, "{lines:?}");
            assert!(lines[0].contains("buffers are still out"), "{lines:?}");
            assert!(lines[0].contains("class=Large free=5 count=8"), "{lines:?}");
        }
        drop(held);
    }
}
