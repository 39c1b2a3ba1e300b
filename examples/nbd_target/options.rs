//! The command line: what it can say, and how a mistake in it is reported.
//!
//! Plain values, parsed once. Nothing here touches the system: whether a core exists or
//! a path can be used is found out when the server starts.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::num::IntErrorKind;
use std::path::PathBuf;
use std::str::FromStr;

use clap::error::ErrorKind;
use clap::{Parser, ValueEnum};
use corespun::cpu::CpuSet;
use corespun::io::BackendChoice;
use corespun::reactor::ReactorMode;

/// Serves a disk in memory, or a file, to NBD clients.
#[derive(Debug, Parser)]
#[command(name = "nbd_target")]
pub(crate) struct Options {
    /// Serve a RAM disk of this size: bytes, or with K, M, G, T for powers of 1024.
    #[arg(long, value_name = "SIZE", default_value = "256M", conflicts_with_all = ["file", "size"])]
    pub(crate) memory: Size,

    /// Serve this file or block device instead.
    #[arg(long, value_name = "PATH")]
    pub(crate) file: Option<PathBuf>,

    /// Create the file with this size if it does not exist.
    #[arg(
        long,
        value_name = "SIZE",
        requires = "file",
        conflicts_with = "read_only"
    )]
    pub(crate) size: Option<Size>,

    /// Listen on this Unix socket. Without --socket and --listen: on one in a fresh
    /// private directory.
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,

    /// Listen on TCP; without ADDR on the loopback interface only.
    #[arg(long, value_name = "[ADDR:]PORT", value_parser = listen_address)]
    pub(crate) listen: Option<SocketAddr>,

    /// The export's name. Clients that ask for none get it too.
    #[arg(long, value_name = "NAME", default_value = "", value_parser = export_name)]
    pub(crate) export: String,

    /// Refuse everything that would change the disk.
    #[arg(long)]
    pub(crate) read_only: bool,

    /// The cores to run on, as a hex mask (0x3) or a list ([0-1]); all of the process
    /// unless given.
    #[arg(long, value_name = "MASK")]
    pub(crate) cores: Option<CpuSet>,

    /// What an idle core does: poll never sleeps, interrupt sleeps at once, adaptive
    /// polls for a while first.
    #[arg(long, value_enum, default_value_t = Mode::Adaptive)]
    pub(crate) mode: Mode,

    /// How I/O reaches the kernel; auto is io_uring where it is permitted.
    #[arg(long, value_enum, default_value_t = Backend::Auto)]
    pub(crate) backend: Backend,
}

impl Options {
    /// Reads the command line of the process.
    ///
    /// # Errors
    ///
    /// What to print instead of serving, and the exit code.
    pub(crate) fn read() -> Result<Options, Refused> {
        Options::try_parse().map_err(|error| match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Refused {
                text: error.to_string(),
                code: 0,
            },
            _ => Refused {
                text: one_line(&error.to_string()),
                code: 2,
            },
        })
    }
}

/// A command line that is not to be served.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) text: String,
    pub(crate) code: u8,
}

/// The first paragraph of clap's message, without its prefix: the rest is usage.
fn one_line(message: &str) -> String {
    let paragraph: Vec<_> = message
        .lines()
        .map(str::trim)
        .take_while(|line| !line.is_empty())
        .collect();
    let line = paragraph.join(" ");
    line.strip_prefix("error: ").unwrap_or(&line).to_owned()
}

/// A line without its middle if it is long: an error echoes what was given, then says
/// what is wrong with it.
pub(crate) fn cut(line: &str) -> String {
    const KEPT: usize = 160;
    let count = line.chars().count();
    if count <= 2 * KEPT {
        return line.to_owned();
    }
    let begin: String = line.chars().take(KEPT).collect();
    let end: String = line.chars().skip(count - KEPT).collect();
    format!("{begin} … {end}")
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Mode {
    Poll,
    Adaptive,
    Interrupt,
}

impl From<Mode> for ReactorMode {
    fn from(mode: Mode) -> ReactorMode {
        match mode {
            Mode::Poll => ReactorMode::Poll,
            Mode::Adaptive => ReactorMode::Adaptive,
            Mode::Interrupt => ReactorMode::Interrupt,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Backend {
    Auto,
    IoUring,
    Epoll,
}

impl From<Backend> for BackendChoice {
    fn from(backend: Backend) -> BackendChoice {
        match backend {
            Backend::Auto => BackendChoice::Auto,
            Backend::IoUring => BackendChoice::IoUring,
            Backend::Epoll => BackendChoice::Epoll,
        }
    }
}

/// A disk's size in bytes: at least one, at most the greatest file offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let shift = match &*text[digits.len()..].to_ascii_uppercase() {
            "" | "B" => 0,
            "K" | "KIB" => 10,
            "M" | "MIB" => 20,
            "G" | "GIB" => 30,
            "T" | "TIB" => 40,
            unit if unit.len() > 16 => return Err("use K, M, G or T as unit".to_owned()),
            unit => return Err(format!("{unit:?} is no unit: use K, M, G or T")),
        };
        let too_large = || "larger than a file can be".to_owned();
        let number = digits.parse::<u64>().map_err(|error| match error.kind() {
            IntErrorKind::PosOverflow => too_large(),
            _ => "write a number, and K, M, G or T behind it if you like".to_owned(),
        })?;
        match number.checked_mul(1 << shift) {
            Some(0) => Err("a disk has at least one byte".to_owned()),
            Some(size) if i64::try_from(size).is_ok() => Ok(Size(size)),
            _ => Err(too_large()),
        }
    }
}

/// As a number of the greatest unit that divides it.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
        let unit = units
            .into_iter()
            .find(|(shift, _)| self.0.trailing_zeros() >= *shift);
        match unit {
            Some((shift, unit)) => write!(f, "{} {unit}", self.0 >> shift),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let full = match text.strip_prefix(':').unwrap_or(text).parse::<u16>() {
        Ok(port) => format!("127.0.0.1:{port}"),
        Err(error) if *error.kind() == IntErrorKind::PosOverflow => {
            return Err("a port is at most 65535".to_owned());
        }
        Err(_) => text.to_owned(),
    };
    full.to_socket_addrs()
        .map_err(|error| error.to_string())?
        .next()
        .ok_or_else(|| "the name has no address".to_owned())
}

fn export_name(text: &str) -> Result<String, String> {
    match crate::protocol::is_string(text.as_bytes()) {
        true => Ok(text.to_owned()),
        false => Err("longer than 4096 bytes, or with a zero byte".to_owned()),
    }
}
