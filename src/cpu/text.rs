//! A `CpuSet` as text: the hexadecimal mask and the bracketed list that
//! `spdk_cpuset_parse` reads, the mask that `spdk_cpuset_fmt` writes, and the
//! list for people.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use thiserror::Error;

use super::CpuSet;

const DIGIT_BITS: usize = 4;

/// Why a text is not a [`CpuSet`]. Positions count bytes from 0 in the text as
/// it was given.
///
/// # Examples
///
/// ```
/// use corespun::cpu::{CpuSet, ParseCpuSetError};
///
/// let error = "0xf0g".parse::<CpuSet>().unwrap_err();
/// assert_eq!(error, ParseCpuSetError::NotHex { found: 'g', at: 4 });
/// assert_eq!(error.to_string(), "'g' at byte 4 of the core mask is not a hex digit");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ParseCpuSetError {
    /// The text has no digit at all.
    #[error("the core mask is empty: write a hex mask such as 0x3, or a list such as [0-3]")]
    Empty,
    /// A character of a mask is neither a hexadecimal digit nor a comma.
    #[error("{found:?} at byte {at} of the core mask is not a hex digit")]
    NotHex {
        /// The character.
        found: char,
        /// Where it stands.
        at: usize,
    },
    /// A list wants a core number here.
    #[error("the core list wants a core number at byte {at}, not {}", quoted(.found))]
    ExpectedCpu {
        /// The character that stands there, if the text goes on at all.
        found: Option<char>,
        /// Where the number should be.
        at: usize,
    },
    /// A list wants `,` or `]` here, or the only `-` of a range.
    #[error(
        "the core list wants ',' or ']' (or the one '-' of a range) at byte {at}, not {}",
        quoted(.found)
    )]
    ExpectedSeparator {
        /// The character that stands there, if the text goes on at all.
        found: Option<char>,
        /// Where the separator should be.
        at: usize,
    },
    /// Something follows the `]` of a list.
    #[error("{found:?} at byte {at} follows the end of the core list")]
    AfterList {
        /// The character.
        found: char,
        /// Where it stands.
        at: usize,
    },
    /// A core number of 1024 or more.
    #[error("core {cpu} does not exist: the highest possible core number is 1023")]
    OutOfRange {
        /// The number as written, cut if it is long; for a mask, that of its lowest
        /// bit beyond.
        cpu: String,
    },
    /// A range of a list runs downwards.
    #[error("core range {first}-{last} runs downwards: write {last}-{first}")]
    Reversed {
        /// Left of the `-`.
        first: usize,
        /// Right of the `-`.
        last: usize,
    },
}

/// Enough of a number to be recognised: an error is one line of text, whatever was
/// given.
fn cut(number: &str) -> String {
    const LONGEST: usize = 24;
    match number.get(..LONGEST) {
        Some(begin) if number.len() > LONGEST => format!("{begin}…"),
        _ => number.to_owned(),
    }
}

fn quoted(found: &Option<char>) -> String {
    match found {
        Some(c) => format!("{c:?}"),
        None => "the end of the text".to_owned(),
    }
}

/// Reads what `spdk_cpuset_parse` reads: a hexadecimal mask (`3`, `0xF0`, with
/// commas anywhere, as sysfs writes them) or a bracketed list
/// (`[0-3,5,128-254]`). Blanks around the whole and around the numbers of a
/// list are skipped.
///
/// # Errors
///
/// A [`ParseCpuSetError`] that names the first offence found: no digit at all,
/// a foreign character, a core number above 1023, a range that runs downwards.
///
/// # Examples
///
/// ```
/// use corespun::cpu::{CpuSet, ParseCpuSetError};
///
/// assert_eq!("0x2f".parse::<CpuSet>(), "[0-3,5]".parse());
/// assert_eq!(
///     "[3-1]".parse::<CpuSet>(),
///     Err(ParseCpuSetError::Reversed { first: 3, last: 1 })
/// );
/// ```
impl FromStr for CpuSet {
    type Err = ParseCpuSetError;

    fn from_str(text: &str) -> Result<Self, ParseCpuSetError> {
        let start = text.len() - text.trim_ascii_start().len();
        let trimmed = text.trim_ascii_end();
        match trimmed.get(start..) {
            None | Some("") => Err(ParseCpuSetError::Empty),
            Some(body) if body.starts_with('[') => parse_list(trimmed, start + 1),
            Some(body) => {
                let prefix = body.starts_with("0x") || body.starts_with("0X");
                parse_mask(trimmed, start + if prefix { 2 } else { 0 })
            }
        }
    }
}

/// Reads the mask that starts at byte `start`, last digit first.
fn parse_mask(text: &str, start: usize) -> Result<CpuSet, ParseCpuSetError> {
    let mut set = CpuSet::empty();
    let mut digits = 0;
    for (at, found) in text[start..].char_indices().rev() {
        if found == ',' {
            continue;
        }
        let digit = found.to_digit(16).ok_or(ParseCpuSetError::NotHex {
            found,
            at: start + at,
        })?;
        for bit in (0..DIGIT_BITS).filter(|bit| digit & (1 << bit) != 0) {
            let cpu = digits * DIGIT_BITS + bit;
            if cpu >= CpuSet::CAPACITY {
                return Err(ParseCpuSetError::OutOfRange {
                    cpu: cpu.to_string(),
                });
            }
            set.set(cpu);
        }
        digits += 1;
    }
    if digits == 0 {
        return Err(ParseCpuSetError::Empty);
    }
    Ok(set)
}

/// Reads the list whose `[` stands just before byte `start`.
fn parse_list(text: &str, start: usize) -> Result<CpuSet, ParseCpuSetError> {
    let mut list = ListReader { text, at: start };
    let mut set = CpuSet::empty();
    loop {
        let first = list.cpu()?;
        let mut separator = list.separator()?;
        let mut last = first;
        if separator == '-' {
            last = list.cpu()?;
            if first > last {
                return Err(ParseCpuSetError::Reversed { first, last });
            }
            separator = list.separator()?;
        }
        match separator {
            ',' => set.extend(first..=last),
            ']' => {
                set.extend(first..=last);
                break;
            }
            _ => {
                return Err(ParseCpuSetError::ExpectedSeparator {
                    found: Some(separator),
                    at: list.at - 1,
                });
            }
        }
    }
    match list.peek() {
        None => Ok(set),
        Some(found) => Err(ParseCpuSetError::AfterList { found, at: list.at }),
    }
}

/// Where the reading of a list has got to.
struct ListReader<'a> {
    text: &'a str,
    at: usize,
}

impl ListReader<'_> {
    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn skip_blanks(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_ascii_start().len();
    }

    fn cpu(&mut self) -> Result<usize, ParseCpuSetError> {
        self.skip_blanks();
        let rest = &self.text[self.at..];
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        if digits == 0 {
            return Err(ParseCpuSetError::ExpectedCpu {
                found: self.peek(),
                at: self.at,
            });
        }
        let number = &rest[..digits];
        self.at += digits;
        match number.parse() {
            Ok(cpu) if cpu < CpuSet::CAPACITY => Ok(cpu),
            // A number too long for usize is out of range like any other.
            _ => Err(ParseCpuSetError::OutOfRange { cpu: cut(number) }),
        }
    }

    fn separator(&mut self) -> Result<char, ParseCpuSetError> {
        self.skip_blanks();
        match self.peek() {
            Some(c @ (',' | '-' | ']')) => {
                self.at += 1;
                Ok(c)
            }
            found => Err(ParseCpuSetError::ExpectedSeparator { found, at: self.at }),
        }
    }
}

/// Writes the mask as `spdk_cpuset_fmt` does: lowercase hexadecimal without
/// prefix or leading zeros, `0` for the empty set.
impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let highest = self.words.iter().rposition(|&w| w != 0).unwrap_or(0);
        write!(f, "{:x}", self.words[highest])?;
        for word in self.words[..highest].iter().rev() {
            write!(f, "{word:016x}")?;
        }
        Ok(())
    }
}

/// Writes the set as a list: `[0-3,5]`.
impl fmt::Debug for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.as_list(), f)
    }
}

impl CpuSet {
    /// The set in list form, for people: `[0-3,5]`, and `[]` for the empty set.
    /// What it writes for any other set parses back to that set.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::cpu::CpuSet;
    ///
    /// let cores = CpuSet::from_iter([0, 1, 2, 3, 5]);
    /// assert_eq!(cores.as_list().to_string(), "[0-3,5]");
    /// ```
    #[must_use]
    pub fn as_list(&self) -> CpuList<'_> {
        CpuList(self)
    }

    /// The longest runs of neighbours, ascending.
    fn runs(&self) -> impl Iterator<Item = RangeInclusive<usize>> {
        let mut cpus = self.iter().peekable();
        std::iter::from_fn(move || {
            let first = cpus.next()?;
            let mut last = first;
            while let Some(next) = cpus.next_if_eq(&(last + 1)) {
                last = next;
            }
            Some(first..=last)
        })
    }
}

/// A [`CpuSet`] that displays as a list; made by [`CpuSet::as_list`].
///
/// # Examples
///
/// ```
/// use corespun::cpu::CpuSet;
///
/// let cores = CpuSet::from_iter([0, 1, 2, 7]);
/// let text = cores.as_list().to_string();
/// assert_eq!(text, "[0-2,7]");
/// // Which is read again.
/// assert_eq!(text.parse(), Ok(cores));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct CpuList<'a>(&'a CpuSet);

impl fmt::Display for CpuList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, run) in self.0.runs().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            let (first, last) = run.into_inner();
            if first == last {
                write!(f, "{comma}{first}")?;
            } else {
                write!(f, "{comma}{first}-{last}")?;
            }
        }
        f.write_str("]")
    }
}
