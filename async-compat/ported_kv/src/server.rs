//! Listening, and ending.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::aof::{self, Written};
use crate::connection;
use crate::hub::Hub;
use crate::settings::{Fsync, Settings};
use crate::store::Store;

/// What every connection has.
pub(crate) struct Shared {
    pub(crate) store: Store,
    pub(crate) hub: Hub,
    /// What replies wait for, if they do.
    pub(crate) written: Option<watch::Receiver<Written>>,
    /// Ends the server.
    pub(crate) stop: watch::Sender<bool>,
}

/// How long connections have to finish what they do.
const GRACE: Duration = Duration::from_secs(5);

pub(crate) async fn serve(settings: Settings) -> io::Result<()> {
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    let store = Store::new();
    let (mut written, mut writer) = (None, None);
    if let Some(path) = &settings.aof {
        let (log, progress, task) = aof::open(path, settings.fsync, &store).await?;
        store.set_log(Some(log));
        written = (settings.fsync == Fsync::Always).then_some(progress);
        writer = Some(task);
    }
    let (stop, mut stopping) = watch::channel(false);
    let shared = Arc::new(Shared {
        store,
        hub: Hub::default(),
        written,
        stop,
    });
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, settings.port)).await?;
    println!("listening on {}", listener.local_addr()?);

    let sweeper = tokio::spawn(sweep(shared.clone()));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let shared = shared.clone();
                    connections.spawn(connection::serve(stream, shared, stopping.clone()));
                }
                // Out of descriptors, perhaps: some will be free soon.
                Err(error) => {
                    eprintln!("cannot accept: {error}");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            },
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    eprintln!("a connection failed: {error}");
                }
            }
            _ = interrupted.recv() => break,
            _ = terminated.recv() => break,
            _ = stopping.changed() => break,
        }
    }
    drop(listener);
    shared.stop.send_replace(true);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if timeout(GRACE, all_ended).await.is_err() {
        connections.shutdown().await;
    }
    sweeper.abort();
    // The writer ends with the last change.
    shared.store.set_log(None);
    if let Some(writer) = writer {
        writer.await??;
    }
    println!("stopped");
    Ok(())
}

async fn sweep(shared: Arc<Shared>) {
    let mut ticks = interval(Duration::from_millis(100));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        shared.store.sweep();
    }
}
