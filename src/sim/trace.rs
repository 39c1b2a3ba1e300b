//! What happened in a simulation: the last of it to be read, all of it as one number.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::world::Sender;
use crate::clock::Clock;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// A poll of a thread that did something.
    Polled { thread: u64 },
    /// A message to a thread on the core `to`, which arrives at a tick.
    Message { thread: u64, to: usize, at: u64 },
    /// An event to a core, which arrives at a tick.
    Event { to: usize, at: u64 },
    /// Something that the program or a stand-in says.
    Note(Arc<str>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    at: u64,
    core: Option<usize>,
    what: What,
}

/// Writes down what happens.
pub(super) struct Recorder {
    kept: VecDeque<Entry>,
    keeps: usize,
    count: u64,
    hash: u64,
    names: Vec<Option<Arc<str>>>,
}

impl Recorder {
    pub(super) fn new(keeps: usize) -> Self {
        Recorder {
            kept: VecDeque::new(),
            keeps,
            count: 0,
            hash: 0xcbf2_9ce4_8422_2325,
            names: Vec::new(),
        }
    }

    /// Learns the name of a thread.
    pub(super) fn name(&mut self, thread: u64, name: &str) {
        let index = usize::try_from(thread).expect("threads of one process");
        if index >= self.names.len() {
            self.names.resize(index + 1, None);
        }
        self.names[index].get_or_insert_with(|| name.into());
    }

    /// Takes numbers into account that no reader will see.
    pub(super) fn hash(&mut self, numbers: &[u64]) {
        for number in numbers {
            let mixed = (self.hash ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            self.hash = mixed ^ (mixed >> 29);
        }
    }

    pub(super) fn record(&mut self, at: u64, sender: Sender, what: What) {
        match &what {
            What::Polled { thread } => self.hash(&[10, at, *thread]),
            What::Message {
                thread,
                to,
                at: then,
            } => {
                self.hash(&[11, at, *thread, *to as u64, *then]);
            }
            What::Event { to, at: then } => self.hash(&[12, at, *to as u64, *then]),
            What::Note(text) => {
                self.hash(&[13, at]);
                text.bytes().for_each(|byte| self.hash(&[byte.into()]));
            }
        }
        self.count += 1;
        if self.keeps == 0 {
            return;
        }
        if self.kept.len() >= self.keeps {
            self.kept.pop_front();
        }
        let core = match sender {
            Sender::Core(core) => Some(core),
            Sender::Outside | Sender::Surroundings => None,
        };
        self.kept.push_back(Entry { at, core, what });
    }

    pub(super) fn trace(&self, clock: &Clock, cores: &[usize]) -> Trace {
        let number = |index: usize| cores.get(index).copied().unwrap_or(index);
        let name = |thread: u64| {
            let known = usize::try_from(thread).ok();
            let known = known.and_then(|index| self.names.get(index)?.clone());
            known.map_or_else(|| format!("thread {thread}"), |name| format!("{name:?}"))
        };
        let line = |entry: &Entry| {
            let core = entry
                .core
                .map_or("-".into(), |core| number(core).to_string());
            let micros = |ticks| micros(clock.duration_from(ticks));
            let what = match &entry.what {
                What::Polled { thread } => format!("polled {}", name(*thread)),
                What::Message { thread, to, at } => {
                    let (to, late) = (number(*to), micros(at - entry.at));
                    format!("message to {} on core {to}, there in {late}", name(*thread))
                }
                What::Event { to, at } => {
                    let late = micros(at - entry.at);
                    format!("event to core {}, there in {late}", number(*to))
                }
                What::Note(text) => text.to_string(),
            };
            format!("{:>16}  core {core:>2}  {what}", micros(entry.at))
        };
        Trace {
            lines: self.kept.iter().map(line).collect(),
            count: self.count,
            fingerprint: self.hash,
        }
    }
}

fn micros(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    format!("{}.{:03} µs", nanos / 1000, nanos % 1000)
}

/// What has happened in a simulation, up to the moment it was asked for.
///
/// Two runs of one program with one seed have equal traces. Displayed, it is one line for
/// each of the last things that happened.
///
/// # Examples
///
/// ```
/// use corespun::sim::Sim;
///
/// let run = |seed| {
///     let mut sim = Sim::builder().cores(2).seed(seed).build();
///     let worker = sim.thread().name("worker").create().unwrap();
///     sim.block_on(async move { worker.call(|| ()).await }).unwrap();
///     sim.trace()
/// };
/// assert_eq!(run(1), run(1));
/// assert_ne!(run(1).fingerprint(), run(2).fingerprint());
/// assert!(run(1).to_string().contains("polled \"worker\""));
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Trace {
    lines: Vec<String>,
    count: u64,
    fingerprint: u64,
}

impl Trace {
    /// A number that stands for all that has happened, also for what is not among the
    /// [`lines`](Self::lines).
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// The last things that happened, one in each line: the time, the core whose doing it
    /// was, and what.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let earlier = self.count - self.lines.len() as u64;
        if earlier > 0 {
            writeln!(f, "    ({earlier} earlier)")?;
        }
        for (index, line) in self.lines.iter().enumerate() {
            let end = if index + 1 < self.lines.len() {
                "\n"
            } else {
                ""
            };
            write!(f, "{line}{end}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Trace({:016x})\n{self}", self.fingerprint)
    }
}
