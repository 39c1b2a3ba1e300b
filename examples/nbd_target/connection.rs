//! One SpdkThread's share of the clients: the poll group of one reactor.
//!
//! Each group is a task that takes accepted sockets in and gives every client a task of
//! its own on the same thread. A client never leaves its thread, so nothing of it needs
//! a lock.

use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use corespun::task::spawn_local;
use corespun::time::sleep;
use futures::channel::mpsc::UnboundedReceiver;
use futures::future::{Either, select};
use futures::io::{AsyncRead, AsyncWrite};
use futures::stream::StreamExt;

use crate::disk::Disk;
use crate::file_disk::{FileDisk, Image};
use crate::listen::{Accepted, Stream};
use crate::negotiate::{NegotiateError, Outcome, negotiate};
use crate::protocol::Export;
use crate::ram_disk::RamDisk;
use crate::status::GroupStatus;
use crate::transmit::{Spawn, TransmitError, transmit};

/// How long a client may take for the handshake, all of it.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// A disk on its way to the thread of a group.
pub(crate) enum Source {
    Memory(RamDisk),
    Image(Image),
}

/// What a group is made from.
pub(crate) struct Group {
    pub(crate) source: Source,
    pub(crate) export: Arc<Export>,
    pub(crate) status: Arc<GroupStatus>,
    pub(crate) accepted: UnboundedReceiver<Accepted>,
}

impl Group {
    /// Serves the clients that are sent to this thread, until nobody can send any more.
    ///
    /// # Errors
    ///
    /// If the disk cannot be taken up here.
    pub(crate) async fn run(self) -> io::Result<()> {
        let Group {
            source,
            export,
            status,
            mut accepted,
        } = self;
        let export = Rc::new((*export).clone());
        match source {
            Source::Memory(disk) => serve(disk, export, status, &mut accepted).await,
            Source::Image(image) => {
                let disk = FileDisk::new(image)?;
                serve(disk, export, status, &mut accepted).await;
            }
        }
        Ok(())
    }
}

async fn serve<D: Disk>(
    disk: D,
    export: Rc<Export>,
    status: Arc<GroupStatus>,
    accepted: &mut UnboundedReceiver<Accepted>,
) {
    while let Some(client) = accepted.next().await {
        let (disk, export, status) = (disk.clone(), export.clone(), status.clone());
        let task = spawn_local(async move {
            let _counted = status.connected();
            let ended = match client.attach() {
                Ok(Stream::Unix(stream)) => connection(stream, disk, &export, &status).await,
                Ok(Stream::Tcp(stream)) => connection(stream, disk, &export, &status).await,
                Err(error) => Err(ConnectionError::Attach(error)),
            };
            if let Err(error) = ended {
                tracing::info!("a client was cut off: {error}");
            }
        });
        drop(task); // which detaches it
    }
}

/// Why a client was cut off.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
enum ConnectionError {
    #[error("its socket cannot be used here: {0}")]
    Attach(#[source] io::Error),
    #[error("no export was chosen within {HANDSHAKE:?}")]
    Silent,
    #[error(transparent)]
    Negotiate(#[from] NegotiateError),
    #[error(transparent)]
    Transmit(#[from] TransmitError),
}

async fn connection<S, D>(
    mut stream: S,
    disk: D,
    export: &Export,
    status: &GroupStatus,
) -> Result<(), ConnectionError>
where
    S: AsyncRead + AsyncWrite + Unpin,
    D: Disk,
{
    let outcome = {
        let handshake = pin!(negotiate(&mut stream, export));
        match select(handshake, sleep(HANDSHAKE)).await {
            Either::Left((outcome, _)) => outcome?,
            Either::Right(_) => return Err(ConnectionError::Silent),
        }
    };
    if let Outcome::Transmit { structured } = outcome {
        transmit(
            &mut stream,
            disk,
            export,
            structured,
            &OnThread,
            &status.traffic,
        )
        .await?;
    }
    Ok(())
}

/// Runs requests as tasks of the current thread.
struct OnThread;

impl Spawn for OnThread {
    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        // Nobody joins it: it reports its own result.
        drop(spawn_local(task));
    }
}
