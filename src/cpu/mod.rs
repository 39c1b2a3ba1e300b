//! CPU cores: sets of them, and which ones an OS thread may run on.
//!
//! [`CpuSet`] is the core mask that SpdkThreads, reactors and the command line
//! share (`spdk_cpuset`). The functions here pin OS threads: reactors to one
//! core each, helper threads to whatever the process had before anything was
//! pinned.

mod affinity;
mod set;
mod text;

pub use affinity::{
    AffinityError, available, current_affinity, pin_current_thread, set_current_affinity,
};
pub use set::{CpuSet, Iter};
pub use text::{CpuList, ParseCpuSetError};
