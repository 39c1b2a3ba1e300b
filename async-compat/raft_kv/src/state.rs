//! What the log amounts to: the values, in memory, and a snapshot of them in a file from time to
//! time, so that the log may be cut off at its beginning.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use corespun::{fs, local};
use futures::{Stream, StreamExt};
use openraft::EntryPayload;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot};
use openraft::type_config::alias::{LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf};
use serde::{Deserialize, Serialize};

use crate::Types;
use crate::wal::replace_file;

pub(crate) type Values = BTreeMap<String, String>;

#[derive(Default)]
struct Applied {
    last: Option<LogIdOf<Types>>,
    membership: StoredMembershipOf<Types>,
    values: Values,
}

/// A snapshot, as the file has it.
#[derive(Serialize, Deserialize)]
struct Saved {
    meta: SnapshotMetaOf<Types>,
    values: Values,
}

#[derive(Clone)]
pub(crate) struct State {
    applied: Rc<RefCell<Applied>>,
    path: Rc<PathBuf>,
    /// Up to where the file goes. Locked while it is written: one is made here while another may
    /// come from the leader.
    saved: Rc<local::Mutex<Option<LogIdOf<Types>>>>,
}

impl State {
    /// An empty one. openraft installs the snapshot of the directory and applies what is newer.
    pub(crate) fn new(directory: &Path) -> State {
        State {
            applied: Rc::default(),
            path: Rc::new(directory.join("snapshot")),
            saved: Rc::new(local::Mutex::new(None)),
        }
    }

    pub(crate) fn get(&self, key: &str) -> Option<String> {
        self.applied.borrow().values.get(key).cloned()
    }

    /// What a snapshot of this moment holds.
    fn now(&self) -> Saved {
        let applied = self.applied.borrow();
        Saved {
            meta: SnapshotMetaOf::<Types> {
                last_log_id: applied.last,
                last_membership: applied.membership.clone(),
            },
            values: applied.values.clone(),
        }
    }

    /// Writes a snapshot, unless there is a newer one.
    async fn save(&self, saved: &Saved) -> io::Result<()> {
        let mut last = self.saved.lock().await;
        if *last > saved.meta.last_log_id {
            return Ok(());
        }
        replace_file(&self.path, serde_json::to_vec(saved)?).await?;
        *last = saved.meta.last_log_id;
        Ok(())
    }
}

impl RaftStateMachine<Types> for State {
    type SnapshotData = Values;
    type SnapshotBuilder = State;

    async fn applied_state(
        &mut self,
    ) -> io::Result<(Option<LogIdOf<Types>>, StoredMembershipOf<Types>)> {
        let applied = self.applied.borrow();
        Ok((applied.last, applied.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            let mut applied = self.applied.borrow_mut();
            applied.last = Some(entry.log_id);
            match entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Normal(set) => drop(applied.values.insert(set.key, set.value)),
                EntryPayload::Membership(membership) => {
                    applied.membership =
                        StoredMembershipOf::<Types>::new(Some(entry.log_id), membership);
                }
            }
            drop(applied);
            if let Some(responder) = responder {
                responder.send(());
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> State {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<Types>,
        values: Values,
    ) -> io::Result<()> {
        let saved = Saved {
            meta: meta.clone(),
            values,
        };
        self.save(&saved).await?;
        self.applied.replace(Applied {
            last: saved.meta.last_log_id,
            membership: saved.meta.last_membership,
            values: saved.values,
        });
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<Types, Values>>> {
        let bytes = match fs::read(&*self.path).await {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let Saved { meta, values } = serde_json::from_slice(&bytes)?;
        Ok(Some(Snapshot {
            meta,
            snapshot: values,
        }))
    }
}

impl RaftSnapshotBuilder<Types> for State {
    type SnapshotData = Values;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<Types, Values>> {
        let saved = self.now();
        self.save(&saved).await?;
        Ok(Snapshot {
            meta: saved.meta,
            snapshot: saved.values,
        })
    }
}
