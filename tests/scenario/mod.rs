//! Scenarios that take a process of their own: what is tested belongs to the whole
//! process, or ends it. The test starts its binary once more, where the ignored test
//! `plays_a_scenario` plays the one that is named.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses a part of it"
)]

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
