//! A child, and the wait for its end.

use std::future::poll_fn;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::pin::Pin;
use std::process::{Child as StdChild, ExitStatus, Output};
use std::task::{Context, Poll, ready};

use corespun::io::Interest;
use tokio::io::{AsyncRead, ReadBuf};

use super::orphans;
use super::stdio::{ChildStderr, ChildStdin, ChildStdout};
use crate::io::evented::Evented;

/// A child process.
///
/// # Examples
///
/// ```
/// # use corespun_compat as tokio;
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let mut child = tokio::process::Command::new("true").spawn()?;
/// assert!(child.wait().await?.success());
/// assert_eq!(child.id(), None);
/// # std::io::Result::Ok(())
/// # }).unwrap();
/// ```
#[derive(Debug)]
pub struct Child {
    state: State,
    /// The writing end of its standard input, if that is a pipe. [`wait`](Child::wait) drops it.
    pub stdin: Option<ChildStdin>,
    /// The reading end of its standard output, if that is a pipe.
    pub stdout: Option<ChildStdout>,
    /// The reading end of its standard error, if that is a pipe.
    pub stderr: Option<ChildStderr>,
}

#[derive(Debug)]
enum State {
    Runs(Running),
    Ended(ExitStatus),
}

/// A child that was not reaped yet; dropped, it becomes an orphan.
#[derive(Debug)]
struct Running {
    /// Taken by the drop.
    child: Option<Waited>,
    kill_on_drop: bool,
}

/// A child and what tells of its end.
#[derive(Debug)]
pub(super) struct Waited {
    pub(super) child: StdChild,
    end: End,
}

#[derive(Debug)]
enum End {
    Pidfd(Evented<OwnedFd>),
    Sigchld(crate::signal::unix::Signal),
}

impl Waited {
    #[track_caller]
    fn new(child: StdChild) -> io::Result<Self> {
        let end = match pidfd(child.id()) {
            Ok(fd) => End::Pidfd(Evented::with_interest(fd, Interest::READABLE)?),
            Err(error) => {
                tracing::debug!(%error, "no pidfd: SIGCHLD tells of the end of a child");
                let kind = crate::signal::unix::SignalKind::child();
                End::Sigchld(crate::signal::unix::signal(kind)?)
            }
        };
        Ok(Waited { child, end })
    }

    pub(super) fn poll_wait(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<ExitStatus>> {
        let child = &mut self.child;
        let mut reap = || match child.try_wait()? {
            Some(status) => Ok(status),
            None => Err(io::ErrorKind::WouldBlock.into()),
        };
        match &mut self.end {
            End::Pidfd(fd) => fd.poll_io(cx, Interest::READABLE, |_| reap()),
            End::Sigchld(signal) => loop {
                // Asked for first: one that comes between the two is not lost.
                let came = signal.poll_recv(cx);
                match reap() {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        if came.is_pending() {
                            return Poll::Pending;
                        }
                    }
                    reaped => return Poll::Ready(reaped),
                }
            },
        }
    }
}

fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes numbers alone, and gives a descriptor that is nobody's yet.
    unsafe {
        match libc::syscall(libc::SYS_pidfd_open, pid, 0) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd as i32)),
        }
    }
}

impl Running {
    fn waited(&mut self) -> &mut Waited {
        self.child.as_mut().expect("taken by the drop alone")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut waited = self.child.take().expect("dropped once");
        if self.kill_on_drop {
            // Fails only if it has ended.
            let _ = waited.child.kill();
        }
        if let Ok(None) = waited.child.try_wait() {
            orphans::adopt(waited);
        }
    }
}

impl Child {
    /// Takes a child that was spawned.
    #[track_caller]
    pub(super) fn new(mut child: StdChild, kill_on_drop: bool) -> io::Result<Child> {
        orphans::reap();
        let stdin = child.stdin.take().map(ChildStdin::from_std);
        let stdout = child.stdout.take().map(ChildStdout::from_std);
        let stderr = child.stderr.take().map(ChildStderr::from_std);
        let running = Running {
            child: Some(Waited::new(child)?),
            kill_on_drop,
        };
        Ok(Child {
            state: State::Runs(running),
            stdin: stdin.transpose()?,
            stdout: stdout.transpose()?,
            stderr: stderr.transpose()?,
        })
    }

    /// Its number, as long as it was not reaped.
    pub fn id(&self) -> Option<u32> {
        match &self.state {
            State::Runs(running) => running.child.as_ref().map(|waited| waited.child.id()),
            State::Ended(_) => None,
        }
    }

    /// Kills it (SIGKILL), without waiting for its end.
    ///
    /// One whose end was seen already is no error.
    ///
    /// # Errors
    ///
    /// Those of `kill(2)`.
    pub fn start_kill(&mut self) -> io::Result<()> {
        match &mut self.state {
            State::Runs(running) => running.waited().child.kill(),
            State::Ended(_) => Ok(()),
        }
    }

    /// Kills it (SIGKILL) and waits for its end.
    ///
    /// # Errors
    ///
    /// Those of `kill(2)` and `waitpid(2)`. A child that has ended by itself is none.
    pub async fn kill(&mut self) -> io::Result<()> {
        self.start_kill()?;
        self.wait().await.map(drop)
    }

    /// Waits for its end. Its standard input is closed first, so that it does not wait for that.
    ///
    /// # Errors
    ///
    /// Those of `waitpid(2)`.
    ///
    /// # Cancel safety
    ///
    /// Safe: the next call goes on waiting.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        drop(self.stdin.take());
        poll_fn(|cx| self.poll_wait(cx)).await
    }

    fn poll_wait(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<ExitStatus>> {
        let status = match &mut self.state {
            State::Runs(running) => ready!(running.waited().poll_wait(cx))?,
            State::Ended(status) => return Poll::Ready(Ok(*status)),
        };
        self.end(status);
        Poll::Ready(Ok(status))
    }

    fn end(&mut self, status: ExitStatus) {
        if let State::Runs(running) = &mut self.state {
            running.kill_on_drop = false;
        }
        self.state = State::Ended(status);
    }

    /// Its exit status, if it has ended.
    ///
    /// # Errors
    ///
    /// Those of `waitpid(2)`.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        let ended = match &mut self.state {
            State::Runs(running) => running.waited().child.try_wait()?,
            State::Ended(status) => return Ok(Some(*status)),
        };
        if let Some(status) = ended {
            self.end(status);
        }
        Ok(ended)
    }

    /// Waits for its end, and for all that it writes to the pipes that were not taken.
    ///
    /// # Errors
    ///
    /// Those of reading and of `waitpid(2)`.
    pub async fn wait_with_output(mut self) -> io::Result<Output> {
        async fn all(pipe: &mut Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
            match pipe {
                Some(pipe) => read_to_end(pipe).await,
                None => Ok(Vec::new()),
            }
        }
        let (mut stdout, mut stderr) = (self.stdout.take(), self.stderr.take());
        let (status, stdout, stderr) =
            futures::future::try_join3(self.wait(), all(&mut stdout), all(&mut stderr)).await?;
        Ok(Output {
            status,
            stdout,
            stderr,
        })
    }
}

async fn read_to_end(mut pipe: impl AsyncRead + Unpin) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    poll_fn(|cx| {
        loop {
            let known = all.len();
            all.reserve(4096);
            let mut space = ReadBuf::uninit(all.spare_capacity_mut());
            ready!(Pin::new(&mut pipe).poll_read(cx, &mut space))?;
            let count = space.filled().len();
            if count == 0 {
                return Poll::Ready(Ok(()));
            }
            // SAFETY: the reader has filled that many bytes behind the known ones.
            unsafe { all.set_len(known + count) };
        }
    })
    .await
    .map(|()| all)
}
