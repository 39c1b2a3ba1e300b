//! How long a processor may take to wake from its idle states.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use super::{GovernorError, SYSTEM};

/// Tells the kernel how long a processor may take to wake: it then uses only idle
/// states that are left as quickly. For reactors that sleep (interrupt and adaptive
/// mode) and have to answer soon nevertheless. Needs the right to write to
/// `/sys/devices/system/cpu/cpu*/power/pm_qos_resume_latency_us`, usually root's.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use corespun::reactor::governor::ResumeLatency;
///
/// match ResumeLatency::new().limit(0, Duration::from_micros(20)) {
///     // In force as long as the value lives.
///     Ok(limit) => assert_eq!(limit.cpu(), 0),
///     Err(error) => assert!(error.to_string().starts_with("processor 0")),
/// }
/// ```
#[derive(Clone, Debug)]
pub struct ResumeLatency {
    root: PathBuf,
}

impl Default for ResumeLatency {
    fn default() -> Self {
        ResumeLatency::new()
    }
}

impl ResumeLatency {
    /// Of this machine.
    #[must_use]
    pub fn new() -> Self {
        ResumeLatency::at(SYSTEM)
    }

    /// With another directory in place of `/sys/devices/system/cpu`.
    #[must_use]
    pub fn at(root: impl Into<PathBuf>) -> Self {
        ResumeLatency { root: root.into() }
    }

    /// Has `cpu` wake within `latency`, rounded down to microseconds, until the
    /// result is dropped. Zero keeps it from sleeping in any idle state.
    ///
    /// # Errors
    ///
    /// [`GovernorError`]: the kernel does not offer that for this processor, or does
    /// not permit it.
    pub fn limit(&self, cpu: usize, latency: Duration) -> Result<LatencyLimit, GovernorError> {
        let path = self.root.join(format!("cpu{cpu}"));
        let path = path.join("power/pm_qos_resume_latency_us");
        let failed = |error: std::io::Error| GovernorError::file(cpu, path.clone(), &error);
        let before = fs::read_to_string(&path).map_err(failed)?;
        // In this file 0 means no limit, and `n/a` none at all is allowed.
        let text = match latency.as_micros() {
            0 => "n/a".to_owned(),
            // The kernel takes a signed number of 32 bits.
            micros => micros.min(i32::MAX as u128).to_string(),
        };
        write(&path, &text).map_err(failed)?;
        Ok(LatencyLimit {
            cpu,
            path,
            before: before.trim().to_owned(),
        })
    }
}

fn write(path: &PathBuf, text: &str) -> std::io::Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(path)?;
    file.write_all(text.as_bytes())
}

/// A limit in force; what was there before is put back when it is dropped.
#[derive(Debug)]
#[must_use = "the limit ends when this is dropped"]
pub struct LatencyLimit {
    cpu: usize,
    path: PathBuf,
    before: String,
}

impl LatencyLimit {
    /// The processor.
    #[must_use]
    pub fn cpu(&self) -> usize {
        self.cpu
    }
}

impl Drop for LatencyLimit {
    fn drop(&mut self) {
        if let Err(error) = write(&self.path, &self.before) {
            tracing::error!("{}: {error}", self.path.display());
        }
    }
}
