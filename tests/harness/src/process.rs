//! Scenarios that take a process of their own: what is tested belongs to the whole
//! process, or ends it. The test starts its binary once more, where the ignored test
//! `plays_a_scenario` plays the one that is named.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

/// Names the scenario that a process of its own plays.
const SCENARIO: &str = "CORESPUN_TEST_SCENARIO";

/// A process started by a test: this binary, playing one scenario.
pub struct Scenario {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Scenario {
    /// The scenario that this process is to play, if it was started for one.
    pub fn played() -> Option<String> {
        let scenario = std::env::var(SCENARIO).ok()?;
        // If the test that started this is gone, or what is tested hangs.
        std::thread::spawn(|| {
            std::thread::sleep(Duration::from_secs(60));
            std::process::exit(86);
        });
        Some(scenario)
    }

    /// Starts the process that plays it.
    pub fn start(name: &str) -> Self {
        Scenario::spawn(&mut Scenario::command(name))
    }

    /// Every OS thread of the process starts with SIGINT and SIGTERM blocked.
    pub fn start_with_signals_blocked(name: &str) -> Self {
        let mut command = Scenario::command(name);
        let block = || {
            SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]).thread_block()?;
            Ok(())
        };
        // SAFETY: it makes one system call, which is async-signal-safe.
        Scenario::spawn(unsafe { command.pre_exec(block) })
    }

    fn command(name: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--ignored", "--exact", "plays_a_scenario", "--nocapture"])
            .env(SCENARIO, name)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn spawn(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Scenario { child, output }
    }

    /// Waits until the process says `word` on a line of its own.
    pub fn says(&mut self, word: &str) {
        let mut line = String::new();
        while line.trim_end() != word {
            line.clear();
            let read = self.output.read_line(&mut line).unwrap();
            assert!(read > 0, "it ended before it said {word}");
        }
    }

    /// Waits until the process has said all of `parts` on stderr, in that order.
    pub fn complains_of(&mut self, parts: &[&str]) {
        let mut errors = BufReader::new(self.child.stderr.take().unwrap());
        for part in parts {
            let mut line = String::new();
            while !line.contains(part) {
                line.clear();
                let read = errors.read_line(&mut line).unwrap();
                assert!(read > 0, "it ended before it said {part:?}");
                eprint!("{line}");
            }
        }
    }

    /// Sends `signal` again and again until the process has ended. Signals that come
    /// too soon after each other are one.
    pub fn insist(mut self, signal: Signal) -> ExitStatus {
        while self.child.try_wait().unwrap().is_none() {
            self.send(signal);
            std::thread::sleep(Duration::from_millis(50));
        }
        self.end()
    }

    /// Sends the process a signal.
    pub fn send(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().try_into().unwrap());
        kill(pid, signal).unwrap();
    }

    /// How it ends.
    pub fn end(mut self) -> ExitStatus {
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).unwrap();
        if let Some(errors) = &mut self.child.stderr {
            // For who looks into a failure.
            let _ = errors.read_to_string(&mut rest);
            eprintln!("{rest}");
        }
        self.child.wait().unwrap()
    }
}

impl Drop for Scenario {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Says a word to the test that has started this process.
pub fn say(word: &str) {
    // On a line of its own, whatever the test harness has begun.
    println!("\n{word}");
    std::io::stdout().flush().unwrap();
}

/// How many entries a directory has: descriptors, OS threads.
pub fn entries(directory: &str) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}

/// How many descriptors of this process lead to the file at `path`.
pub fn open_descriptors_of(path: &std::path::Path) -> usize {
    let path = path.canonicalize().unwrap();
    std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| *target == path)
        .count()
}

/// Runs the body of the test `name` in a process of its own: for what a process has one of.
pub fn in_a_process_of_its_own(name: &str, body: impl FnOnce()) {
    const ALONE: &str = "CORESPUN_TEST_ALONE";
    if std::env::var_os(ALONE).is_some_and(|alone| alone == *name) {
        return body();
    }
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--test-threads=1", "--nocapture"])
        .env(ALONE, name)
        .status()
        .unwrap();
    assert!(status.success(), "{name}: {status}");
}

/// Makes the kernel refuse a system call to the calling thread from now on, as container run times do.
pub fn refuse(call: libc::c_long) {
    let statement = |code, k| libc::sock_filter {
        code,
        jt: 0,
        jf: 0,
        k,
    };
    let mut program = [
        statement((libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, 0),
        libc::sock_filter {
            code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
            jt: 0,
            jf: 1,
            k: call as u32,
        },
        statement(
            libc::BPF_RET as u16,
            libc::SECCOMP_RET_ERRNO | libc::EPERM as u32,
        ),
        statement(libc::BPF_RET as u16, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the program lives until the call has copied it.
    let set = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            | libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &filter)
    };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}
