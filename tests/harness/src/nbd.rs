//! The built `nbd_target` as a child process: started, asked about itself, stopped.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::PATIENCE;

/// The example, which `cargo test` builds beside the tests.
pub fn binary() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(Path::parent).unwrap();
    let binary = profile.join("examples/nbd_target");
    assert!(
        binary.exists(),
        "{} is not built: run `cargo build --example nbd_target` (a whole `cargo test` does)",
        binary.display()
    );
    binary
}

/// A server that runs, in a directory of its own, which is also its `TMPDIR`.
pub struct Server {
    child: Child,
    stdout: BufReader<ChildStdout>,
    /// Where it runs.
    pub directory: TempDir,
    /// One per listener.
    pub uris: Vec<String>,
    /// What it said before the URIs.
    pub banner: String,
}

impl Server {
    /// Starts it on the Unix socket that [`Server::socket`] names.
    pub fn start<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Server {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("nbd.sock");
        let mut all: Vec<_> = ["--socket".into(), socket.into_os_string()].into();
        all.extend(arguments.into_iter().map(|it| it.as_ref().to_owned()));
        Server::start_in(directory, all)
    }

    /// Starts it with exactly these arguments.
    pub fn start_in<S: AsRef<OsStr>>(
        directory: TempDir,
        arguments: impl IntoIterator<Item = S>,
    ) -> Server {
        let mut child = Command::new(binary())
            .args(arguments)
            .env("TMPDIR", directory.path())
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let (mut banner, mut uris) = (String::new(), Vec::new());
        loop {
            let mut line = String::new();
            let read = stdout.read_line(&mut line).unwrap();
            assert!(read > 0, "the server ended before it served: {banner}");
            if line.starts_with("Ctrl-C") {
                break;
            }
            match line.trim().strip_prefix("nbdinfo '") {
                Some(uri) => uris.push(uri.trim_end_matches('\'').to_owned()),
                None if uris.is_empty() => banner.push_str(&line),
                None => {}
            }
        }
        Server {
            child,
            stdout,
            directory,
            uris,
            banner,
        }
    }

    /// The first listener's URI.
    pub fn uri(&self) -> &str {
        &self.uris[0]
    }

    /// The first listener's port, when that is TCP.
    pub fn port(&self) -> u16 {
        let (_, port) = self.uri().rsplit_once(':').unwrap();
        port.trim_end_matches('/').parse().unwrap()
    }

    /// The Unix socket it listens on unless told otherwise.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("nbd.sock")
    }

    fn process(&self, entry: &str) -> PathBuf {
        format!("/proc/{}/{entry}", self.child.id()).into()
    }

    /// How many descriptors it has open.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(self.process("fd")).unwrap().count()
    }

    /// Bytes of memory it occupies.
    pub fn memory(&self) -> usize {
        let status = std::fs::read_to_string(self.process("status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:"));
        let kilobytes = line.unwrap().split_whitespace().nth(1).unwrap();
        kilobytes.parse::<usize>().unwrap() * 1024
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Waits until it has ended, and checks that it did so as it should.
    pub fn ended(mut self) -> TempDir {
        let code = until("the server ends", || self.child.try_wait().unwrap());
        assert_eq!(code.code(), Some(0), "the server ended with {code}");
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        let fresh = tempfile::tempdir().unwrap();
        std::mem::replace(&mut self.directory, fresh)
    }

    /// Ends it as a user does.
    pub fn stop(self) {
        self.signal(Signal::SIGINT);
        self.ended();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail if it has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the server with arguments it has to refuse; returns its one line on stderr.
pub fn refused<S: AsRef<OsStr>>(
    directory: &Path,
    arguments: impl IntoIterator<Item = S>,
) -> String {
    let mut child = Command::new(binary())
        .args(arguments)
        .env("TMPDIR", directory)
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    let code = loop {
        match child.try_wait().unwrap() {
            Some(code) => break code,
            None if begun.elapsed() > PATIENCE => {
                child.kill().unwrap();
                panic!("the server serves what it should refuse");
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    let mut text = String::new();
    let mut stderr = child.stderr.take().unwrap();
    stderr.read_to_string(&mut text).unwrap();
    assert!(
        matches!(code.code(), Some(code) if code != 0),
        "ended with {code}"
    );
    assert_eq!(text.lines().count(), 1, "not one line: {text:?}");
    text
}

/// Asks until there is an answer. Real time, because another process has to act.
#[track_caller]
pub fn until<T>(what: &str, mut answer: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = answer() {
            return answer;
        }
        assert!(begun.elapsed() < PATIENCE, "this never happened: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The names in a directory, sorted.
pub fn listing(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
