//! What an app changes of the OS thread that runs it, and puts back.

use std::ffi::CString;

use nix::sys::prctl;

use crate::cpu::{self, AffinityError, CpuSet};

/// The caller's name and affinity, restored when dropped.
pub(super) struct Borrowed {
    affinity: CpuSet,
    name: Option<CString>,
}

impl Borrowed {
    pub(super) fn new() -> Result<Self, AffinityError> {
        Ok(Borrowed {
            affinity: cpu::current_affinity()?,
            name: prctl::get_name().ok(),
        })
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        if let Err(error) = cpu::set_current_affinity(&self.affinity) {
            tracing::warn!(%error, "the main thread stays pinned");
        }
        if let Some(name) = &self.name {
            let _ = prctl::set_name(name);
        }
    }
}

/// Names the OS thread after its reactor, as SPDK does.
pub(super) fn name_after_core(core: usize) {
    if let Ok(name) = CString::new(reactor_name(core)) {
        let _ = prctl::set_name(&name);
    }
}

pub(super) fn reactor_name(core: usize) -> String {
    format!("reactor_{core}")
}
