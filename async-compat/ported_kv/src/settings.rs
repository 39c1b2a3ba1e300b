//! The command line.

use std::path::PathBuf;

pub(crate) const HELP: &str = "\
ported_kv [--port PORT] [--threads N] [--aof FILE] [--fsync always|everysec|no]
  --port     where to listen on the loopback interface (6380; 0: any, printed)
  --threads  1: everything on one thread; more: that many workers (1)
  --aof      the append-only file: read at the start, written from then on (none)
  --fsync    when that reaches the disk: before each reply, each second, or when the
             kernel likes (everysec)";

/// When what was appended reaches the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fsync {
    /// Before the reply.
    Always,
    /// Each second.
    EverySecond,
    /// When the kernel likes.
    No,
}

#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) port: u16,
    pub(crate) threads: usize,
    pub(crate) aof: Option<PathBuf>,
    pub(crate) fsync: Fsync,
}

impl Settings {
    /// `None` when help was asked for.
    pub(crate) fn from_args(
        mut args: impl Iterator<Item = String>,
    ) -> Result<Option<Settings>, String> {
        let mut settings = Settings {
            port: 6380,
            threads: 1,
            aof: None,
            fsync: Fsync::EverySecond,
        };
        while let Some(name) = args.next() {
            if name == "--help" {
                return Ok(None);
            }
            let value = args.next().ok_or_else(|| format!("{name} needs a value"))?;
            let wrong = || format!("{name} cannot be {value:?}");
            match name.as_str() {
                "--port" => settings.port = value.parse().map_err(|_| wrong())?,
                "--threads" => {
                    settings.threads = value.parse().map_err(|_| wrong())?;
                    if settings.threads == 0 {
                        return Err(wrong());
                    }
                }
                "--aof" => settings.aof = Some(value.into()),
                "--fsync" => {
                    settings.fsync = match value.as_str() {
                        "always" => Fsync::Always,
                        "everysec" => Fsync::EverySecond,
                        "no" => Fsync::No,
                        _ => return Err(wrong()),
                    };
                }
                _ => return Err(format!("there is no setting {name}")),
            }
        }
        Ok(Some(settings))
    }
}
