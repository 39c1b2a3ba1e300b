//! The set itself: 1024 bits, its operators and its iterator. A plain value,
//! `Copy` and without interior mutability; text forms live in `text`.

use std::iter::FusedIterator;
use std::ops::{BitAnd, BitAndAssign, BitOr, BitOrAssign, BitXor, BitXorAssign, Not};

const WORD_BITS: usize = u64::BITS as usize;
const WORDS: usize = CpuSet::CAPACITY / WORD_BITS;

/// A set of CPU cores, numbered 0 to 1023: the core mask of a thread or an app.
///
/// Mirrors `spdk_cpuset`, its text forms included: see [`FromStr`] for what it
/// reads, [`Display`] for the hexadecimal mask it writes and [`as_list`] for
/// the list form.
///
/// [`FromStr`]: std::str::FromStr
/// [`Display`]: std::fmt::Display
/// [`as_list`]: CpuSet::as_list
///
/// # Examples
///
/// ```
/// use corespun::cpu::CpuSet;
///
/// let reactors: CpuSet = "[0-3]".parse()?;
/// let wanted = CpuSet::from_iter([2, 3, 9]);
///
/// assert_eq!((reactors & wanted).iter().collect::<Vec<_>>(), [2, 3]);
/// assert_eq!((reactors | wanted).to_string(), "20f");
/// # Ok::<(), corespun::cpu::ParseCpuSetError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct CpuSet {
    pub(super) words: [u64; WORDS],
}

impl CpuSet {
    /// How many cores a set can name; valid core numbers are below it
    /// (`SPDK_CPUSET_SIZE`).
    pub const CAPACITY: usize = 1024;

    /// The set without any core.
    #[must_use]
    pub const fn empty() -> Self {
        Self { words: [0; WORDS] }
    }

    /// The set of all [`CAPACITY`](Self::CAPACITY) cores, present or not: the
    /// mask of a thread that may run anywhere.
    #[must_use]
    pub const fn all() -> Self {
        Self {
            words: [u64::MAX; WORDS],
        }
    }

    /// The set of one core.
    ///
    /// # Panics
    ///
    /// When `cpu` is not below [`CAPACITY`](Self::CAPACITY).
    #[must_use]
    #[track_caller]
    pub const fn single(cpu: usize) -> Self {
        let mut set = Self::empty();
        set.set(cpu);
        set
    }

    /// Adds a core (`spdk_cpuset_set_cpu` with `true`).
    ///
    /// # Panics
    ///
    /// When `cpu` is not below [`CAPACITY`](Self::CAPACITY).
    #[track_caller]
    pub const fn set(&mut self, cpu: usize) {
        assert!(cpu < Self::CAPACITY, "core number beyond 1023 in a CpuSet");
        self.words[cpu / WORD_BITS] |= 1 << (cpu % WORD_BITS);
    }

    /// Removes a core (`spdk_cpuset_set_cpu` with `false`). A core that is not
    /// in the set, or that no set can hold, is no error: afterwards it is not
    /// in the set.
    pub const fn clear(&mut self, cpu: usize) {
        if cpu < Self::CAPACITY {
            self.words[cpu / WORD_BITS] &= !(1 << (cpu % WORD_BITS));
        }
    }

    /// Whether the core is in the set (`spdk_cpuset_get_cpu`); `false` for
    /// numbers that no set can hold.
    #[must_use]
    pub const fn contains(&self, cpu: usize) -> bool {
        cpu < Self::CAPACITY && self.words[cpu / WORD_BITS] & (1 << (cpu % WORD_BITS)) != 0
    }

    /// The number of cores in the set (`spdk_cpuset_count`).
    #[must_use]
    pub fn count(&self) -> usize {
        self.words.iter().map(|w| w.count_ones() as usize).sum()
    }

    /// Whether no core is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words == [0; WORDS]
    }

    /// The lowest core in the set.
    #[must_use]
    pub fn first(&self) -> Option<usize> {
        self.iter().next()
    }

    /// The cores in ascending order (`spdk_cpuset_for_each_cpu`).
    ///
    /// # Examples
    ///
    /// ```
    /// let cores = corespun::cpu::CpuSet::from_iter([700, 2, 65]);
    /// assert!(cores.iter().eq([2, 65, 700]));
    /// ```
    #[must_use]
    pub fn iter(&self) -> Iter {
        Iter {
            words: self.words,
            word: 0,
        }
    }

    fn zip(mut self, other: Self, op: impl Fn(u64, u64) -> u64) -> Self {
        for (a, b) in self.words.iter_mut().zip(other.words) {
            *a = op(*a, b);
        }
        self
    }
}

impl BitAnd for CpuSet {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        self.zip(other, |a, b| a & b)
    }
}

impl BitOr for CpuSet {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.zip(other, |a, b| a | b)
    }
}

impl BitXor for CpuSet {
    type Output = Self;

    fn bitxor(self, other: Self) -> Self {
        self.zip(other, |a, b| a ^ b)
    }
}

/// All 1024 cores but these (`spdk_cpuset_negate`).
impl Not for CpuSet {
    type Output = Self;

    fn not(self) -> Self {
        self ^ Self::all()
    }
}

impl BitAndAssign for CpuSet {
    fn bitand_assign(&mut self, other: Self) {
        *self = *self & other;
    }
}

impl BitOrAssign for CpuSet {
    fn bitor_assign(&mut self, other: Self) {
        *self = *self | other;
    }
}

impl BitXorAssign for CpuSet {
    fn bitxor_assign(&mut self, other: Self) {
        *self = *self ^ other;
    }
}

impl Extend<usize> for CpuSet {
    /// Adds the cores.
    ///
    /// # Panics
    ///
    /// When one of them is not below [`CAPACITY`](Self::CAPACITY).
    fn extend<I: IntoIterator<Item = usize>>(&mut self, cpus: I) {
        for cpu in cpus {
            self.set(cpu);
        }
    }
}

impl FromIterator<usize> for CpuSet {
    /// The set of these cores.
    ///
    /// # Panics
    ///
    /// When one of them is not below [`CAPACITY`](Self::CAPACITY).
    fn from_iter<I: IntoIterator<Item = usize>>(cpus: I) -> Self {
        let mut set = Self::empty();
        set.extend(cpus);
        set
    }
}

impl IntoIterator for CpuSet {
    type Item = usize;
    type IntoIter = Iter;

    fn into_iter(self) -> Iter {
        self.iter()
    }
}

impl IntoIterator for &CpuSet {
    type Item = usize;
    type IntoIter = Iter;

    fn into_iter(self) -> Iter {
        self.iter()
    }
}

/// The cores of a [`CpuSet`] in ascending order; it owns a copy of the set.
///
/// # Examples
///
/// ```
/// let mut cores = corespun::cpu::CpuSet::from_iter([2, 5, 8]).iter();
/// assert_eq!(cores.next(), Some(2));
/// // How many are left.
/// assert_eq!(cores.len(), 2);
/// ```
#[derive(Clone, Debug)]
pub struct Iter {
    /// The cores not yet handed out.
    words: [u64; WORDS],
    /// Every word below this one is used up.
    word: usize,
}

impl Iterator for Iter {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        while self.word < WORDS {
            let word = &mut self.words[self.word];
            if *word != 0 {
                let bit = word.trailing_zeros() as usize;
                *word &= *word - 1;
                return Some(self.word * WORD_BITS + bit);
            }
            self.word += 1;
        }
        None
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.words.iter().map(|w| w.count_ones() as usize).sum();
        (left, Some(left))
    }
}

impl ExactSizeIterator for Iter {}

impl FusedIterator for Iter {}
