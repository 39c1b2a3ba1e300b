//! Files: what is read from them, and what was told to be written.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;

use corespun::fs::File;

use crate::activity::{Activity, Buffer, Waits};
use crate::perform::length;
use crate::things::{FileOf, World, pattern};

impl World {
    /// A file that no operation writes.
    pub fn idle_file(&self, a: usize) -> Option<&FileOf> {
        let file = self.files.get(a % self.files.len().max(1))?;
        (file.busy.get() == 0).then_some(file)
    }

    pub fn file_operation(
        &mut self,
        a: usize,
        name: &'static str,
        operation: impl FnOnce(Rc<File>) -> Pin<Box<dyn Future<Output = Option<String>>>>,
    ) {
        let Some(file) = self.files.get(a % self.files.len().max(1)) else {
            return;
        };
        let (shared, operation) = (self.shared.clone(), operation(file.file.clone()));
        let mut activity = Activity::new(name, Waits::Soon, async move {
            if let Some(what) = operation.await {
                shared.wrong(format!("file: {what}"));
            }
        });
        activity.descriptors = 1;
        self.begin(activity);
    }

    pub fn read_at(&mut self, a: usize, b: usize) {
        let Some(file) = self.idle_file(a) else {
            return;
        };
        let (content, len, at) = (file.content.clone(), length(b), length(a + b));
        let buffer = Buffer::empty(&self.shared.buffers, len);
        let version = file.version.clone();
        let before = version.get();
        self.file_operation(a, "read_at", move |file| {
            Box::pin(async move {
                let (result, buffer) = file.read_at(buffer, at as u64).await;
                let count = match result {
                    Ok(count) if count > len => return Some("more than asked for".to_owned()),
                    Ok(count) => count,
                    Err(error) => return Some(error.to_string()),
                };
                buffer.check_beyond(count);
                let content = content.borrow();
                let expected = content.get(at..).unwrap_or_default();
                let expected = &expected[..len.min(expected.len())];
                // A write that began meanwhile may be in it.
                let wrong = version.get() == before && buffer.bytes()[..count] != *expected;
                wrong.then(|| "it reads something else".to_owned())
            })
        });
    }

    /// Takes effect once it has been started, whether it is waited for or not.
    pub fn write_at(&mut self, a: usize, b: usize) {
        self.next += 1;
        let (len, at, from) = (length(b).min(5000), length(a + b).min(5000), self.next);
        let Some(file) = self.idle_file(a) else {
            return;
        };
        let bytes: Vec<u8> = (0..len).map(|n| pattern(from, n as u64)).collect();
        let buffer = Buffer::full(&self.shared.buffers, bytes.clone());
        let (content, shared) = (file.content.clone(), self.shared.clone());
        let busy = Busy::new(&file.busy);
        file.version.set(file.version.get() + 1);
        let file = file.file.clone();
        let mut activity = Activity::new("write_at", Waits::Soon, async move {
            busy.undecided.set(true);
            let (result, _buffer) = file.write_at(buffer, at as u64).await;
            busy.undecided.set(false);
            let count = match result {
                Ok(count) => count,
                Err(error) => return shared.wrong(format!("write_at: {error}")),
            };
            let mut content = content.borrow_mut();
            if count > 0 {
                let end = content.len().max(at + count);
                content.resize(end, 0);
                content[at..at + count].copy_from_slice(&bytes[..count]);
            }
        });
        activity.descriptors = 1;
        self.begin(activity);
    }
}

/// A write that has not been compared with the file yet. A file of which one was
/// dropped midway is left alone from then on.
struct Busy {
    count: Rc<Cell<usize>>,
    undecided: Cell<bool>,
}

impl Busy {
    fn new(count: &Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Busy {
            count: count.clone(),
            undecided: Cell::new(false),
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if !self.undecided.get() {
            self.count.set(self.count.get() - 1);
        }
    }
}
