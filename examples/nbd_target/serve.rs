//! From the options to a server that runs: the disk, the listeners, one group per core.
//!
//! Runs on the app thread. Everything is made before the first client is let in, and is
//! owned by one future: when that ends, or the app stops and drops it, the sockets and
//! what was made for them are gone.

use std::cell::Cell;
use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use corespun::app::AppHandle;
use corespun::task::spawn_local;
use corespun::thread::CreateError;
use corespun::time::sleep;
use futures::channel::mpsc::{UnboundedSender, unbounded};
use futures::future::{Either, join_all, select, try_join_all};

use crate::connection::{Group, Source};
use crate::file_disk::{Created, Image, ImageError};
use crate::listen::{Accepted, ListenError, Listener};
use crate::options::{Options, Size};
use crate::protocol::{BlockSizes, Export};
use crate::ram_disk::RamDisk;
use crate::status::{self, GroupStatus};

/// How long to wait when the process is out of descriptors or memory for a new client.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why nothing can be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ServeError {
    /// The RAM disk.
    #[error("cannot make a RAM disk of {size}: {source}")]
    Memory { size: Size, source: io::Error },
    /// The file.
    #[error("cannot serve {}: {source}", path.display())]
    Image { path: PathBuf, source: ImageError },
    /// A socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A thread.
    #[error(transparent)]
    Thread(#[from] CreateError),
    /// Something the system refuses only when it is out of its means.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Serves until the app stops.
///
/// # Errors
///
/// [`ServeError`], with nothing left behind, before the first client was let in.
pub(crate) async fn serve(app: AppHandle, options: Options) -> Result<(), ServeError> {
    let (disk, created) = Backing::open(&options).await?;
    let listeners = listen(&options)?;
    let export = Arc::new(Export {
        name: options.export.clone(),
        description: disk.to_string(),
        size: disk.size(),
        read_only: options.read_only,
        blocks: BlockSizes::default(),
    });
    let (mut groups, mut statuses, mut running) = (Vec::new(), Vec::new(), Vec::new());
    for thread in app.reactors().thread_per_core("nbd")? {
        let (sender, accepted) = unbounded();
        let status = Arc::<GroupStatus>::default();
        let group = Group {
            source: disk.source()?,
            export: export.clone(),
            status: status.clone(),
            accepted,
        };
        running.push(thread.spawn_with(move || group.run()));
        groups.push(sender);
        statuses.push(status);
    }
    announce(&app, &options, &export, &listeners)?;
    created.keep();
    drop(spawn_local(status::show(statuses)));
    let next = Cell::new(0);
    let accepting = listeners
        .iter()
        .map(|listener| accept(listener, &groups, &next));
    match select(join_all(accepting), try_join_all(running)).await {
        Either::Left(_) => Ok(()),
        // A group ends by itself only when it cannot take the disk up, and is cancelled
        // only when the app stops.
        Either::Right((groups, _)) => {
            for group in groups.unwrap_or_default() {
                group?;
            }
            Ok(())
        }
    }
}

/// What is served, before it is given to the groups.
enum Backing {
    Memory(RamDisk),
    Image(Image, PathBuf),
}

impl Backing {
    async fn open(options: &Options) -> Result<(Backing, Created), ServeError> {
        let Some(path) = &options.file else {
            let size = options.memory;
            let disk =
                RamDisk::new(size.0).map_err(|source| ServeError::Memory { size, source })?;
            return Ok((Backing::Memory(disk), Created::nothing()));
        };
        match Image::open(path, options.size, options.read_only).await {
            Ok((image, created)) => Ok((Backing::Image(image, path.clone()), created)),
            Err(source) => Err(ServeError::Image {
                path: path.clone(),
                source,
            }),
        }
    }

    fn size(&self) -> u64 {
        match self {
            Backing::Memory(disk) => disk.size(),
            Backing::Image(image, _) => image.size,
        }
    }

    /// For one more thread.
    fn source(&self) -> io::Result<Source> {
        Ok(match self {
            Backing::Memory(disk) => Source::Memory(disk.clone()),
            Backing::Image(image, _) => Source::Image(image.try_clone()?),
        })
    }
}

impl fmt::Display for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Backing::Memory(_) => f.write_str("RAM disk"),
            Backing::Image(_, path) => path.display().fmt(f),
        }
    }
}

fn listen(options: &Options) -> Result<Vec<Listener>, ListenError> {
    let unix = options.socket.as_deref().map(Listener::unix);
    let tcp = options.listen.map(Listener::tcp);
    let asked: Vec<_> = unix.into_iter().chain(tcp).collect::<Result<_, _>>()?;
    match asked.is_empty() {
        true => Ok(vec![Listener::private()?]),
        false => Ok(asked),
    }
}

/// Lets clients in, one group after the other taking the next; never ends.
async fn accept(listener: &Listener, groups: &[UnboundedSender<Accepted>], next: &Cell<usize>) {
    loop {
        match listener.accept().await {
            Ok(client) => {
                let turn = next.replace(next.get() + 1) % groups.len();
                // Refused only while the app stops.
                let _ = groups[turn].unbounded_send(client);
            }
            Err(error) => {
                tracing::warn!("cannot let a client in: {error}");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Says on stdout what is served where, with lines to copy.
fn announce(
    app: &AppHandle,
    options: &Options,
    export: &Export,
    listeners: &[Listener],
) -> io::Result<()> {
    let reactors = app.reactors();
    let backend = reactors.stats().into_iter().find_map(|stats| stats.backend);
    let mut text = format!(
        "serving {}, {}, {}, on cores {} ({:?} mode, {})\n",
        export.description,
        Size(export.size),
        match export.read_only {
            true => "read-only",
            false => "read and write",
        },
        reactors.cores().as_list(),
        options.mode,
        backend.map_or_else(String::new, |backend| backend.to_string()),
    );
    for listener in listeners {
        let uri = listener.uri(&export.name)?;
        text.push_str(&format!(
            "  nbdinfo '{uri}'\n  \
               nbdcopy '{uri}' copy.img\n  \
               qemu-img convert -f raw -O qcow2 '{uri}' copy.qcow2\n"
        ));
    }
    text.push_str("Ctrl-C ends it\n");
    // Nobody has to read it.
    let _ = io::stdout().write_all(text.as_bytes());
    let _ = io::stdout().flush();
    Ok(())
}
