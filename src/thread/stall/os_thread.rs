//! What the kernel says of an OS thread of this process: whether a callback that
//! does not return spins, or is blocked in a system call.

use std::fmt;
use std::fs;

/// Whether an OS thread runs.
///
/// # Examples
///
/// ```
/// use corespun::thread::OsThreadState;
///
/// fn what_to_look_for(state: OsThreadState) -> &'static str {
///     match state {
///         OsThreadState::Running => "a loop without an await",
///         OsThreadState::Sleeping => "a lock or a blocking call",
///         OsThreadState::Uninterruptible => "blocking file I/O",
///         _ => "a debugger",
///     }
/// }
/// assert_eq!(what_to_look_for(OsThreadState::Sleeping), "a lock or a blocking call");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OsThreadState {
    /// Runs, or waits for a processor (R).
    Running,
    /// Sleeps in the kernel until something happens, or a signal comes (S).
    Sleeping,
    /// Sleeps in the kernel, usually for a disk, and no signal ends that (D).
    Uninterruptible,
    /// Another letter of proc_pid_stat(5): stopped, traced, dead.
    Other(char),
}

/// An OS thread, as the kernel sees it at one moment.
///
/// # Examples
///
/// ```
/// use corespun::app::App;
/// use std::{sync::mpsc, time::Duration};
///
/// let (seen, stalls) = mpsc::channel();
/// App::builder()
///     .stall_limit(Duration::from_millis(20))
///     .stall_hook(move |stall| _ = seen.send((stall.still_running, stall.os_thread.clone())))
///     .block_on(async move |_| {
///         // Blocks the reactor until the watcher has seen it.
///         let found = stalls.iter().find(|(still_running, _)| *still_running);
///         if let Some((_, Some(os_thread))) = found {
///             assert!(os_thread.tid > 0);
///             println!("blocked: {os_thread}");
///         }
///     })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OsThread {
    /// Its id.
    pub tid: i32,
    /// Whether it runs.
    pub state: OsThreadState,
    /// The number of the system call that it is blocked in, where the kernel
    /// tells.
    pub system_call: Option<u64>,
    /// The function of the kernel that it sleeps in, where the kernel tells.
    pub wait_channel: Option<String>,
}

impl OsThread {
    /// Asks the kernel; `None` when it does not tell, or there is no such thread.
    pub(crate) fn read(tid: i32) -> Option<Self> {
        let ask = |what| fs::read_to_string(format!("/proc/self/task/{tid}/{what}")).ok();
        let stat = ask("stat")?;
        // The name before it, in parentheses, may hold anything.
        let (_, after_name) = stat.rsplit_once(") ")?;
        let state = match after_name.chars().next()? {
            'R' => OsThreadState::Running,
            'S' => OsThreadState::Sleeping,
            'D' => OsThreadState::Uninterruptible,
            other => OsThreadState::Other(other),
        };
        // "running", or a number and its arguments.
        let system_call = ask("syscall");
        let wait_channel = ask("wchan");
        Some(OsThread {
            tid,
            state,
            system_call: system_call.and_then(|text| text.split(' ').next()?.parse().ok()),
            wait_channel: wait_channel.filter(|name| !matches!(&**name, "" | "0")),
        })
    }
}

impl fmt::Display for OsThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.state {
            OsThreadState::Running => f.write_str("running")?,
            OsThreadState::Sleeping => f.write_str("sleeping")?,
            OsThreadState::Uninterruptible => f.write_str("in uninterruptible sleep")?,
            OsThreadState::Other(letter) => write!(f, "in state {letter}")?,
        }
        if let Some(number) = self.system_call {
            write!(f, " in system call {number}")?;
        }
        if let Some(function) = &self.wait_channel {
            write!(f, " ({function})")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn the_kernel_tells_a_blocked_thread_from_one_that_spins() {
        let own = nix::unistd::gettid().as_raw();
        assert_eq!(OsThread::read(own).unwrap().state, OsThreadState::Running);
        let (tell, told) = channel();
        let (release, released) = channel::<()>();
        let blocked = std::thread::Builder::new()
            .name("a) R (b".into())
            .spawn(move || {
                tell.send(nix::unistd::gettid().as_raw()).unwrap();
                let _ = released.recv();
            })
            .unwrap();
        let tid = told.recv().unwrap();
        let sleeps = |seen: &OsThread| seen.state == OsThreadState::Sleeping;
        while !OsThread::read(tid).is_some_and(|seen| sleeps(&seen)) {
            std::thread::yield_now();
        }
        drop(release);
        blocked.join().unwrap();
        assert_eq!(OsThread::read(0), None, "there is no such thread");
    }

    #[test]
    fn a_report_says_where_it_is_blocked() {
        let mut seen = OsThread {
            tid: 1,
            state: OsThreadState::Sleeping,
            system_call: Some(230),
            wait_channel: Some("hrtimer_nanosleep".to_owned()),
        };
        let text = "sleeping in system call 230 (hrtimer_nanosleep)";
        assert_eq!(seen.to_string(), text);
        seen = OsThread {
            state: OsThreadState::Running,
            system_call: None,
            wait_channel: None,
            ..seen
        };
        assert_eq!(seen.to_string(), "running");
    }
}
