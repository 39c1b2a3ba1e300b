//! What runs at this moment, written by the OS thread that runs it, for any
//! other to read.
//!
//! A sequence lock whose writer never waits and whose words are all atomics: a
//! reader that met a write throws away what it has read. What it hands out is
//! copied or `'static`, since a name may be gone as soon as what has it returns;
//! of names, the beginning is kept.

use std::panic::Location;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU8, AtomicU64, AtomicUsize, Ordering};

use super::StallSource;
use crate::thread::cut;
use crate::thread::poll::message::MessageVTable;

/// Bytes of a name that are kept.
const NAME: usize = 64;

/// Something that runs, and what it is called.
#[derive(Clone, Copy)]
pub(crate) enum Occupant<'a> {
    /// Whatever else a poll does.
    Poll,
    /// An event of a reactor.
    Event(&'static MessageVTable),
    Message(&'static MessageVTable),
    Poller {
        name: Option<&'a str>,
        id: u64,
    },
    Task {
        name: Option<&'a str>,
        location: &'static Location<'static>,
    },
}

impl Occupant<'_> {
    pub(crate) fn source(&self) -> StallSource {
        match self {
            Occupant::Poll => StallSource::Poll,
            Occupant::Event(_) => StallSource::Event,
            Occupant::Message(_) => StallSource::Message,
            Occupant::Poller { .. } => StallSource::Poller,
            Occupant::Task { .. } => StallSource::Task,
        }
    }

    /// Its name, or what stands for one.
    pub(crate) fn describe(&self) -> String {
        match *self {
            Occupant::Poll => "outside of messages, pollers and tasks".to_owned(),
            Occupant::Event(vtable) | Occupant::Message(vtable) => (vtable.name)().to_owned(),
            Occupant::Poller { name, id } => match name {
                Some(name) => name.to_owned(),
                None => format!("poller {id}"),
            },
            Occupant::Task { name, location } => match name {
                Some(name) => format!("{name} (spawned at {location})"),
                None => format!("spawned at {location}"),
            },
        }
    }
}

/// What one SpdkThread, or a reactor outside of those, runs now.
#[derive(Default)]
pub(crate) struct StallRecord {
    /// Odd while the owner writes. A number stands for one occupant, whatever
    /// comes after it.
    version: AtomicU64,
    /// The version that was reported as still running.
    reported: AtomicU64,
    since: AtomicU64,
    /// A code of the source, or 0.
    source: AtomicU8,
    /// Null, or from a `&'static`; so is `location`.
    message: AtomicPtr<MessageVTable>,
    location: AtomicPtr<Location<'static>>,
    id: AtomicU64,
    /// Of the name, in bytes; `NO_NAME` for none.
    name_length: AtomicUsize,
    name: [AtomicU64; NAME / 8],
}

const NO_NAME: usize = usize::MAX;

/// What a reader found.
pub(crate) struct Occupation {
    version: u64,
    pub(crate) since: u64,
    pub(crate) source: StallSource,
    pub(crate) name: String,
}

impl StallRecord {
    /// From tick `since` on `occupant` runs. Owner only.
    pub(crate) fn begin(&self, occupant: Occupant<'_>, since: u64) {
        self.write(|| {
            self.since.store(since, Ordering::Release);
            let source = occupant.source() as u8 + 1;
            self.source.store(source, Ordering::Release);
            match occupant {
                Occupant::Poll => {}
                Occupant::Event(vtable) | Occupant::Message(vtable) => {
                    let vtable = ptr::from_ref(vtable).cast_mut();
                    self.message.store(vtable, Ordering::Release);
                }
                Occupant::Poller { name, id } => {
                    self.id.store(id, Ordering::Release);
                    self.write_name(name);
                }
                Occupant::Task { name, location } => {
                    let location = ptr::from_ref(location).cast_mut();
                    self.location.store(location, Ordering::Release);
                    self.write_name(name);
                }
            }
        });
    }

    /// Nothing runs any more. Owner only.
    pub(crate) fn clear(&self) {
        self.write(|| self.source.store(0, Ordering::Release));
    }

    /// Since when the thread has been outside of a callback within a poll. For
    /// the owner.
    pub(crate) fn polls_since(&self) -> Option<u64> {
        let polls = self.source.load(Ordering::Relaxed) == StallSource::Poll as u8 + 1;
        polls.then(|| self.since.load(Ordering::Relaxed))
    }

    /// The fields are stored with `Release`: a reader that sees one sees the odd
    /// version before it.
    #[inline(always)]
    fn write(&self, fields: impl FnOnce()) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version + 1, Ordering::Relaxed);
        fields();
        self.version.store(version + 2, Ordering::Release);
    }

    fn write_name(&self, name: Option<&str>) {
        let Some(name) = name else {
            return self.name_length.store(NO_NAME, Ordering::Release);
        };
        let bytes = cut(name, NAME).as_bytes();
        self.name_length.store(bytes.len(), Ordering::Release);
        for (word, part) in self.name.iter().zip(bytes.chunks(8)) {
            let mut whole = [0; 8];
            whole[..part.len()].copy_from_slice(part);
            word.store(u64::from_le_bytes(whole), Ordering::Release);
        }
    }

    /// What runs, if that began at a tick that `is_long_ago`. Any thread.
    pub(crate) fn read(&self, is_long_ago: impl FnOnce(u64) -> bool) -> Option<Occupation> {
        let version = self.version.load(Ordering::Acquire);
        let since = self.since.load(Ordering::Acquire);
        if version % 2 == 1 || !is_long_ago(since) {
            return None;
        }
        let source = match self.source.load(Ordering::Acquire) {
            0 => return None,
            code => StallSource::ALL[usize::from(code) - 1],
        };
        let name = self.read_name();
        let name = name.as_deref();
        let occupant = match source {
            StallSource::Poll => Occupant::Poll,
            StallSource::Event => Occupant::Event(self.read_message()?),
            StallSource::Message => Occupant::Message(self.read_message()?),
            StallSource::Poller => Occupant::Poller {
                name,
                id: self.id.load(Ordering::Acquire),
            },
            StallSource::Task => Occupant::Task {
                name,
                location: self.read_location()?,
            },
        };
        let name = occupant.describe();
        // Unchanged, so all of this belongs together.
        let whole = self.version.load(Ordering::Relaxed) == version;
        whole.then_some(Occupation {
            version,
            since,
            source,
            name,
        })
    }

    fn read_message(&self) -> Option<&'static MessageVTable> {
        let vtable = self.message.load(Ordering::Acquire);
        // SAFETY: null, or stored by `begin`, which had it from a `&'static`.
        unsafe { vtable.as_ref() }
    }

    fn read_location(&self) -> Option<&'static Location<'static>> {
        let location = self.location.load(Ordering::Acquire);
        // SAFETY: as for `read_message`.
        unsafe { location.as_ref() }
    }

    /// The name, or a mixture of two if the owner writes meanwhile.
    fn read_name(&self) -> Option<String> {
        let length = self.name_length.load(Ordering::Acquire);
        if length == NO_NAME {
            return None;
        }
        let words = self.name.iter().map(|word| word.load(Ordering::Acquire));
        let mut bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        bytes.truncate(length);
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Whether `occupation` was not reported before; from now on it was.
    pub(crate) fn take_report(&self, occupation: &Occupation) -> bool {
        self.reported.swap(occupation.version, Ordering::Relaxed) != occupation.version
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    fn named(name: &str, id: u64) -> Occupant<'_> {
        let name = Some(name);
        Occupant::Poller { name, id }
    }

    #[test]
    fn a_name_that_is_too_long_is_cut_between_characters() {
        let record = StallRecord::default();
        let name = "é".repeat(40) + "x";
        record.begin(named(&name, 0), 1);
        assert_eq!(record.read(|_| true).unwrap().name, "é".repeat(32));
        record.begin(named(&format!("x{name}"), 0), 1);
        assert_eq!(
            record.read(|_| true).unwrap().name,
            format!("x{}", "é".repeat(31))
        );
        record.begin(named("", 0), 1);
        assert_eq!(record.read(|_| true).unwrap().name, "");
    }

    #[test]
    fn an_occupant_is_reported_once_and_the_same_one_later_again() {
        let record = StallRecord::default();
        assert!(record.read(|_| true).is_none());
        for since in [1, 2] {
            record.begin(named("poller", 0), since);
            assert!(record.read(|since| since > 2).is_none());
            let seen = record.read(|_| true).unwrap();
            assert_eq!((seen.since, seen.source), (since, StallSource::Poller));
            assert!(record.take_report(&seen));
            assert!(!record.take_report(&record.read(|_| true).unwrap()));
        }
        record.clear();
        assert!(record.read(|_| true).is_none());
    }

    #[test]
    fn a_reader_never_sees_parts_of_two_occupants() {
        const ROUNDS: u64 = 200_000;
        let record = StallRecord::default();
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..=ROUNDS {
                    let name = round.to_string().repeat(4);
                    record.begin(named(&name, round), round);
                }
                ended.store(true, Ordering::Release);
            });
            let mut seen = 0;
            while !ended.load(Ordering::Acquire) || seen == 0 {
                let Some(occupation) = record.read(|_| true) else {
                    continue;
                };
                seen += 1;
                assert_eq!(occupation.name, occupation.since.to_string().repeat(4));
                assert_eq!(occupation.version, occupation.since * 2);
            }
        });
    }
}
