//! SIGINT and SIGTERM stop the app: the first asks. If the end takes its time,
//! stderr is told what holds it, by an OS thread that is no reactor and so can
//! tell that of a reactor that is blocked.

use std::fmt::Write;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::AppHandle;
use crate::cpu::CpuSet;
use crate::signal::{self, Registration, Stoppable};
use crate::thread::local::Local;
use crate::thread::{CriticalMsgError, SpdkThread, ThreadState};

/// How long a reactor, or a thread, may take to answer on a loaded machine. One that
/// takes longer is said to be held.
const ANSWER: Duration = Duration::from_secs(1);
/// How long asking the threads may take together.
const ANSWERS: Duration = Duration::from_secs(5);

/// How many threads, and how many things of each, are named.
const NAMED: usize = 16;

/// Has signals stop `app` until the result is dropped, and stderr told what holds
/// it once the end takes longer than `limit`.
pub(super) fn register(
    app: &AppHandle,
    limit: Duration,
    cpus: &CpuSet,
) -> io::Result<Registration> {
    let app = Arc::new(SignalledApp {
        app: app.clone(),
        limit,
        asked: Mutex::new(None),
    });
    signal::register_app(app, cpus)
}

struct SignalledApp {
    app: AppHandle,
    limit: Duration,
    asked: Mutex<Option<Asked>>,
}

/// The first signal, and when stderr is told if the app is still there then.
#[derive(Clone, Copy)]
struct Asked {
    signal: Signal,
    at: Instant,
    tell_at: Option<Instant>,
}

impl Stoppable for SignalledApp {
    fn ask_to_stop(&self, signal: Signal) {
        let at = Instant::now();
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let told = asked.filter(|asked| asked.tell_at.is_none());
        *asked = match (*asked, told) {
            (None, _) => Some(Asked {
                signal,
                at,
                // A limit of centuries is none.
                tell_at: at.checked_add(self.limit),
            }),
            // A user who sends another one by then waits for news.
            (_, Some(told)) => Some(Asked {
                tell_at: Some(at),
                ..told
            }),
            (waiting, None) => waiting,
        };
        drop(asked);
        self.ask();
    }

    fn look(&self, now: Instant) -> Option<Instant> {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let due = asked.as_mut()?;
        let tell_at = due.tell_at?;
        if now < tell_at {
            return Some(tell_at);
        }
        due.tell_at = None;
        let due = *due;
        drop(asked);
        signal::tell(&self.what_holds(due));
        None
    }

    fn shut_down_if_current(&self) {
        if self.app.shared.app_thread().is_current() {
            self.app.start_shutdown();
        }
    }
}

impl SignalledApp {
    /// Has the app's shutdown begin, where that belongs: on the app thread, ahead of
    /// all that waits there; if that has exited, on the main reactor.
    fn ask(&self) {
        let app = &self.app;
        if app.is_shutting_down() || app.is_stopping() {
            return;
        }
        let shut_down = || {
            let app = app.clone();
            move || app.start_shutdown()
        };
        let thread = app.shared.app_thread();
        let sent = match thread.send_critical_msg(signal::shut_down_current_app) {
            Ok(()) => return,
            // One of the program's own is in the only place.
            Err(CriticalMsgError::Pending) => thread.send_msg(shut_down()).is_ok(),
            Err(_) => false,
        };
        if !sent {
            // Refused by one that has ended: then so has the app.
            app.shared.group.call_main(shut_down());
        }
    }

    /// What is said on stderr.
    fn what_holds(&self, asked: Asked) -> String {
        let app = &self.app;
        let mut text = format!(
            "corespun: {:?} has not ended {:.1?} after {}; three signals within two seconds end the process at once\n",
            app.name(),
            asked.at.elapsed(),
            asked.signal,
        );
        if !app.is_stopping() {
            text.push_str(match app.is_shutting_down() {
                true => "  on_shutdown was called, and nothing has stopped the app since\n",
                false => "  its shutdown has not begun\n",
            });
        }
        if let Some(step) = app.shared.subsystems.step() {
            let _ = writeln!(text, "  the {step} has not ended");
        }
        let held = self.held_reactors();
        for core in &held {
            let _ = writeln!(
                text,
                "  reactor {core} does not answer: a callback, a poll of a task or an event there does not return"
            );
        }
        let threads = app.library().threads();
        let mut named = 0;
        let until = Instant::now() + ANSWERS;
        for thread in threads.iter().filter(|thread| !thread.is_exited()) {
            if named == NAMED || Instant::now() > until {
                text.push_str("  and others\n");
                break;
            }
            if let Some(line) = describe(thread, &held) {
                named += 1;
                let _ = writeln!(text, "  thread {:?}: {line}", thread.name());
            }
        }
        text
    }

    /// The cores whose reactors do not run an event now.
    fn held_reactors(&self) -> Vec<usize> {
        let group = &self.app.shared.group;
        let (answer, answers) = mpsc::channel();
        let mut asked = group.call_each(|core| {
            let answer = answer.clone();
            move || _ = answer.send(core)
        });
        drop(answer);
        let until = Instant::now() + ANSWER;
        while let Ok(core) = answers.recv_timeout(until.saturating_duration_since(Instant::now())) {
            asked.retain(|one| *one != core);
        }
        asked
    }
}

/// What a thread that has not exited is held by, if it says so; `held` are the
/// reactors that run nothing.
fn describe(thread: &SpdkThread, held: &[usize]) -> Option<String> {
    if let Some(core) = thread.core().filter(|core| held.contains(core)) {
        return Some(format!("on reactor {core}"));
    }
    let (answer, answers) = mpsc::channel();
    let sent = thread.send_msg(move || {
        let _ = answer.send(Local::with_current(Local::exit_holders).unwrap_or_default());
    });
    let Ok(holders) = sent.map(|()| answers.recv_timeout(ANSWER)) else {
        return Some("takes no message".to_owned());
    };
    let Ok(holders) = holders else {
        return Some("does not answer".to_owned());
    };
    // One that is asked to exit says what it waits for; the others may go on.
    if holders.is_empty() {
        return None;
    }
    let more = holders.len().saturating_sub(NAMED);
    let named: Vec<_> = holders
        .iter()
        .take(NAMED)
        .map(ToString::to_string)
        .collect();
    let state = match thread.state() {
        ThreadState::Running => "has",
        _ => "waits for",
    };
    let more = match more {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(format!("{state} {}{more}", named.join(", ")))
}
