//! What is said of devices that a program leaves registered. Alone in its process:
//! whether an event is wanted is remembered for all OS threads, and a test beside
//! it, which wants none, may be the one that was asked.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use corespun::channel::IoDevice;
use corespun::thread::ThreadLib;

/// The leak report of `spdk_thread_lib_fini`: by name, and only what is left.
#[test]
fn a_device_that_was_never_unregistered_is_named_at_the_end() {
    let log: Arc<Mutex<Vec<u8>>> = Arc::default();
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(move || Log(writer.clone()))
        .finish();
    tracing::subscriber::with_default(subscriber, || {
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
        assert!(log.lock().unwrap().is_empty());
    });
    let log = String::from_utf8(std::mem::take(&mut *log.lock().unwrap())).unwrap();
    assert!(log.contains("io_device was never unregistered"), "{log}");
    assert!(log.contains("left0") && !log.contains("gone0"), "{log}");
}
