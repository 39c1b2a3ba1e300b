//! The kernel's cpufreq files as a governor.
//!
//! Where the driver lets programs name a frequency (the kernel's governor
//! `userspace`), that is used. Where it does not, as with `intel_pstate` and
//! `amd_pstate` in their active modes, the highest frequency allowed is lowered and
//! raised, which comes to the same for a processor that is kept busy.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Frequency, Governor, GovernorError, SYSTEM};
use crate::cpu::CpuSet;

/// The step, in kHz, where the driver does not list its frequencies.
const STEP: u32 = 100_000;

/// The governor `cpufreq`: sets frequencies through `/sys/devices/system/cpu`. That
/// takes the right to write there, usually root's.
///
/// It takes over all processors of the reactors or none, needs to know which of them
/// share a core, and refuses where one shares it with a processor that is not the
/// reactors'. It allows boost frequencies where the driver has a switch for that. When
/// it is no longer used, or dropped, everything is as it was.
///
/// The switch for boost is one for the whole machine, and the kernel has no way to hold it
/// for one program: of two governors that use the same directory, of one process or of two,
/// the one that ends first puts back what it has found, under the other.
///
/// # Examples
///
/// ```
/// use corespun::{cpu, reactor::governor::{Cpufreq, Frequency, Governor, GovernorError}};
///
/// let all = cpu::available()?;
/// let mut governor = Cpufreq::new();
/// match governor.init(&all) {
///     Ok(()) => _ = governor.set(all.first().unwrap(), Frequency::Max)?,
///     // As in a virtual machine, or without the right to.
///     Err(error) => assert!(error.to_string().starts_with("processor")),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Cpufreq {
    root: PathBuf,
    taken: BTreeMap<usize, Taken>,
    /// The switch for boost frequencies as it was, if it was changed.
    boost: Option<String>,
}

/// A processor that was taken over.
struct Taken {
    /// Ascending, in kHz.
    steps: Vec<u32>,
    /// The place of the frequency in force among them.
    at: usize,
    /// The file that takes a frequency.
    control: &'static str,
    siblings: CpuSet,
    /// Files that were changed, and what they held, in the order in which that is to
    /// be put back.
    before: Vec<(&'static str, String)>,
}

impl Default for Cpufreq {
    fn default() -> Self {
        Cpufreq::new()
    }
}

impl Cpufreq {
    /// Of this machine.
    #[must_use]
    pub fn new() -> Self {
        Cpufreq::at(SYSTEM)
    }

    /// With another directory in place of `/sys/devices/system/cpu`.
    #[must_use]
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Cpufreq {
            root: root.into(),
            taken: BTreeMap::new(),
            boost: None,
        }
    }

    fn path(&self, cpu: usize, file: &str) -> PathBuf {
        self.root.join(format!("cpu{cpu}")).join(file)
    }

    fn read(&self, cpu: usize, file: &str) -> Result<String, GovernorError> {
        let path = self.path(cpu, file);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.trim().to_owned()),
            Err(error) => Err(GovernorError::file(cpu, path, &error)),
        }
    }

    fn read_khz(&self, cpu: usize, file: &str) -> Result<u32, GovernorError> {
        let text = self.read(cpu, file)?;
        text.parse().map_err(|_| GovernorError::File {
            cpu,
            path: self.path(cpu, file),
            message: format!("{text:?} is no frequency"),
        })
    }

    fn write(&self, cpu: usize, file: &str, text: &str) -> Result<(), GovernorError> {
        let path = self.path(cpu, file);
        write(&path, text).map_err(|error| GovernorError::file(cpu, path, &error))
    }

    /// What there is to know about a processor; nothing is changed.
    fn look(&self, cpu: usize, cpus: &CpuSet) -> Result<Taken, GovernorError> {
        let min = self.read_khz(cpu, "cpufreq/cpuinfo_min_freq")?;
        let max = self.read_khz(cpu, "cpufreq/cpuinfo_max_freq")?;
        let listed = self.read(cpu, "topology/thread_siblings_list")?;
        let siblings = format!("[{listed}]").parse::<CpuSet>();
        let siblings = siblings.map_err(|error| GovernorError::File {
            cpu,
            path: self.path(cpu, "topology/thread_siblings_list"),
            message: error.to_string(),
        })?;
        if !(siblings & !*cpus).is_empty() {
            return Err(GovernorError::Shared {
                cpu,
                siblings: siblings.as_list().to_string(),
            });
        }
        let steps = match self.read(cpu, "cpufreq/scaling_available_frequencies") {
            Ok(listed) => {
                let listed = listed.split_whitespace().filter_map(|khz| khz.parse().ok());
                listed.collect()
            }
            Err(_) => (min..max).step_by(STEP as usize).chain([max]).collect(),
        };
        let mut steps: Vec<u32> = steps;
        steps.sort_unstable();
        steps.dedup();
        if steps.is_empty() {
            steps = vec![max];
        }
        let kernels = self.read(cpu, "cpufreq/scaling_available_governors")?;
        let named = kernels.split_whitespace().any(|name| name == "userspace");
        let control = match named {
            true => "cpufreq/scaling_setspeed",
            false => "cpufreq/scaling_max_freq",
        };
        Ok(Taken {
            at: steps.len() - 1,
            steps,
            control,
            siblings,
            before: Vec::new(),
        })
    }

    /// Makes a processor ready to be told frequencies, the highest to begin with.
    fn take(&self, cpu: usize, taken: &mut Taken) -> Result<(), GovernorError> {
        let max = taken.steps[taken.at].to_string();
        let named = taken.control == "cpufreq/scaling_setspeed";
        if named {
            const KERNEL: &str = "cpufreq/scaling_governor";
            let before = self.read(cpu, KERNEL)?;
            // A frequency that another program has set by name.
            let speed = match before == "userspace" {
                true => Some((taken.control, self.read(cpu, taken.control)?)),
                false => None,
            };
            self.write(cpu, KERNEL, "userspace")?;
            taken.before.push((KERNEL, before));
            taken.before.extend(speed);
        } else {
            taken
                .before
                .push((taken.control, self.read(cpu, taken.control)?));
        }
        self.write(cpu, taken.control, &max)
    }

    /// Allows boost frequencies, where there is a switch that may be used.
    fn boost(&mut self) {
        let path = self.root.join("cpufreq/boost");
        if let Ok(before) = fs::read_to_string(&path)
            && before.trim() == "0"
            && write(&path, "1").is_ok()
        {
            self.boost = Some(before.trim().to_owned());
        }
    }

    fn give_back(&mut self) {
        for (cpu, taken) in std::mem::take(&mut self.taken) {
            for (file, before) in &taken.before {
                if let Err(error) = self.write(cpu, file, before) {
                    tracing::error!("a frequency is not what it was: {error}");
                }
            }
        }
        if let Some(before) = self.boost.take() {
            let path = self.root.join("cpufreq/boost");
            if let Err(error) = write(&path, &before) {
                tracing::error!("{}: {error}", path.display());
            }
        }
    }
}

/// Writes to a file that is there.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(path)?;
    std::io::Write::write_all(&mut file, text.as_bytes())
}

impl Governor for Cpufreq {
    fn init(&mut self, cpus: &CpuSet) -> Result<(), GovernorError> {
        self.give_back();
        let looked: Result<Vec<_>, _> = cpus
            .iter()
            .map(|cpu| Ok((cpu, self.look(cpu, cpus)?)))
            .collect();
        let looked = looked?;
        self.boost();
        for (cpu, mut taken) in looked {
            let result = self.take(cpu, &mut taken);
            self.taken.insert(cpu, taken);
            if let Err(error) = result {
                self.give_back();
                return Err(error);
            }
        }
        Ok(())
    }

    fn deinit(&mut self) {
        self.give_back();
    }

    fn set(&mut self, cpu: usize, frequency: Frequency) -> Result<bool, GovernorError> {
        let Some(taken) = self.taken.get(&cpu) else {
            let taken: CpuSet = self.taken.keys().copied().collect();
            return Err(GovernorError::NotTaken {
                cpu,
                taken: taken.as_list().to_string(),
            });
        };
        let last = taken.steps.len() - 1;
        let at = match frequency {
            Frequency::Min => 0,
            Frequency::Down => taken.at.saturating_sub(1),
            Frequency::Up => (taken.at + 1).min(last),
            Frequency::Max => last,
        };
        if at == taken.at {
            return Ok(false);
        }
        self.write(cpu, taken.control, &taken.steps[at].to_string())?;
        if let Some(taken) = self.taken.get_mut(&cpu) {
            taken.at = at;
        }
        Ok(true)
    }

    fn frequency(&mut self, cpu: usize) -> Result<u32, GovernorError> {
        self.read_khz(cpu, "cpufreq/scaling_cur_freq")
    }

    fn siblings(&mut self, cpu: usize) -> CpuSet {
        let taken = self.taken.get(&cpu);
        taken.map_or(CpuSet::single(cpu), |taken| taken.siblings)
    }
}

impl Drop for Cpufreq {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl fmt::Debug for Cpufreq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cpufreq")
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}
