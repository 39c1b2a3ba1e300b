//! The times that are set on a file.

use std::time::SystemTime;

/// The times that [`File::set_times`](super::File::set_times) sets, as [`std::fs::FileTimes`].
#[derive(Clone, Copy, Debug, Default)]
pub struct FileTimes(pub(super) std::fs::FileTimes);

impl FileTimes {
    /// None.
    pub fn new() -> Self {
        FileTimes::default()
    }

    /// Sets when it was read last.
    #[must_use]
    pub fn set_accessed(self, t: SystemTime) -> Self {
        FileTimes(self.0.set_accessed(t))
    }

    /// Sets when it was written last.
    #[must_use]
    pub fn set_modified(self, t: SystemTime) -> Self {
        FileTimes(self.0.set_modified(t))
    }
}
