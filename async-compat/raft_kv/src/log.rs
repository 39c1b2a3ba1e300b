//! openraft's log: all entries in memory, and every change of them, and of the vote, a frame of
//! a file that is on the disk before openraft is told.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::path::Path;
use std::rc::Rc;

use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::type_config::alias::{EntryOf, LogIdOf, VoteOf};
use serde::{Deserialize, Serialize};

use crate::Types;
use crate::wal::Wal;

/// What one frame says.
#[derive(Serialize, Deserialize)]
enum Record {
    Vote(VoteOf<Types>),
    Entries(Vec<EntryOf<Types>>),
    /// The entries behind this one are no more; all, without one.
    TruncatedAfter(Option<LogIdOf<Types>>),
    /// The entries up to this one are in a snapshot.
    Purged(LogIdOf<Types>),
}

/// The sum of all frames.
#[derive(Default)]
struct Contents {
    vote: Option<VoteOf<Types>>,
    entries: BTreeMap<u64, EntryOf<Types>>,
    purged: Option<LogIdOf<Types>>,
}

impl Contents {
    fn apply(&mut self, record: Record) {
        match record {
            Record::Vote(vote) => self.vote = Some(vote),
            Record::Entries(entries) => {
                let entries = entries.into_iter();
                self.entries.extend(entries.map(|one| (one.index(), one)));
            }
            Record::TruncatedAfter(last) => {
                let first_gone = last.map_or(0, |last| last.index + 1);
                self.entries.split_off(&first_gone);
            }
            Record::Purged(last) => {
                self.entries = self.entries.split_off(&(last.index + 1));
                self.purged = Some(last);
            }
        }
    }

    /// The fewest frames of that sum.
    fn records(&self) -> impl Iterator<Item = Record> {
        let purged = self.purged.map(Record::Purged);
        let vote = self.vote.map(Record::Vote);
        let entries = Record::Entries(self.entries.values().cloned().collect());
        purged.into_iter().chain(vote).chain([entries])
    }
}

pub(crate) struct Log {
    wal: Wal,
    contents: Rc<RefCell<Contents>>,
}

impl Log {
    /// Opens the log of a directory, as it was left.
    pub(crate) async fn open(directory: &Path) -> io::Result<Log> {
        let (wal, frames) = Wal::open(&directory.join("log")).await?;
        let mut contents = Contents::default();
        for frame in frames {
            contents.apply(serde_json::from_slice(&frame)?);
        }
        let contents = Rc::new(RefCell::new(contents));
        Ok(Log { wal, contents })
    }

    async fn write(&mut self, record: Record) -> io::Result<()> {
        self.wal.append(&serde_json::to_vec(&record)?).await?;
        self.contents.borrow_mut().apply(record);
        Ok(())
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let contents = self.contents.borrow();
        let last = contents.entries.values().next_back();
        Ok(LogState {
            last_purged_log_id: contents.purged,
            last_log_id: last.map(|entry| entry.log_id()).or(contents.purged),
        })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        LogReader(self.contents.clone())
    }

    async fn save_vote(&mut self, vote: &VoteOf<Types>) -> io::Result<()> {
        self.write(Record::Vote(*vote)).await
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = EntryOf<Types>>,
    {
        let entries = entries.into_iter().collect();
        self.write(Record::Entries(entries)).await?;
        callback.io_completed(Ok(()));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogIdOf<Types>>) -> io::Result<()> {
        self.write(Record::TruncatedAfter(last)).await
    }

    /// The one moment at which the file gets smaller.
    async fn purge(&mut self, last: LogIdOf<Types>) -> io::Result<()> {
        self.contents.borrow_mut().apply(Record::Purged(last));
        let records = self.contents.borrow().records().collect::<Vec<_>>();
        let frames: Result<Vec<_>, _> = records.iter().map(serde_json::to_vec).collect();
        self.wal.replace(&frames?).await
    }
}

/// What replication reads from, at the same time.
pub(crate) struct LogReader(Rc<RefCell<Contents>>);

impl RaftLogReader<Types> for LogReader {
    async fn try_get_log_entries<R>(&mut self, range: R) -> io::Result<Vec<EntryOf<Types>>>
    where
        R: RangeBounds<u64> + Clone + Debug,
    {
        let contents = self.0.borrow();
        let entries = contents.entries.range(range);
        Ok(entries.map(|(_, entry)| entry.clone()).collect())
    }

    async fn read_vote(&mut self) -> io::Result<Option<VoteOf<Types>>> {
        Ok(self.0.borrow().vote)
    }
}

#[cfg(test)]
mod tests {
    use corespun::app::App;
    use openraft::StorageError;
    use openraft::testing::log::{StoreBuilder, Suite};
    use tempfile::TempDir;

    use super::*;
    use crate::state::State;

    struct InDirectories;

    impl StoreBuilder<Types, Log, State, TempDir> for InDirectories {
        async fn build(&self) -> Result<(TempDir, Log, State), StorageError<Types>> {
            let directory = tempfile::tempdir().unwrap();
            let log = Log::open(directory.path()).await.unwrap();
            let state = State::new(directory.path());
            Ok((directory, log, state))
        }
    }

    /// What openraft asks of a log and of a state, with each of the first opened anew.
    #[test]
    fn the_log_and_the_state_are_what_openraft_asks_for() {
        let app = App::builder().handle_signals(false);
        let passed = app.block_on(async |_app| Suite::test_all(InDirectories).await);
        passed.unwrap().unwrap();
    }

    /// Whatever was done, opened again it is what it was.
    #[test]
    fn a_log_is_found_as_it_was_left() {
        use openraft::testing::{blank_ent, log_id};

        let app = App::builder().handle_signals(false);
        let run = app.block_on(async |_app| {
            let directory = tempfile::tempdir()?;
            let mut log = Log::open(directory.path()).await?;
            let vote = VoteOf::<Types>::new(3, 1);
            log.save_vote(&vote).await?;
            let entries = (0..10).map(|index| blank_ent::<Types>(1, 1, index));
            log.append(entries, IOFlushed::noop()).await?;
            log.truncate_after(Some(log_id::<Types>(1, 1, 7))).await?;
            log.purge(log_id::<Types>(1, 1, 3)).await?;
            log.append([blank_ent::<Types>(2, 1, 8)], IOFlushed::noop())
                .await?;
            drop(log);

            let mut log = Log::open(directory.path()).await?;
            let mut reader = log.get_log_reader().await;
            assert_eq!(reader.read_vote().await?, Some(vote));
            let entries = reader.try_get_log_entries(..).await?;
            let ids: Vec<_> = entries.iter().map(|entry| entry.log_id).collect();
            let expected = [(1, 4), (1, 5), (1, 6), (1, 7), (2, 8)];
            assert_eq!(
                ids,
                expected.map(|(term, index)| log_id::<Types>(term, 1, index))
            );
            let state = log.get_log_state().await?;
            assert_eq!(state.last_purged_log_id, Some(log_id::<Types>(1, 1, 3)));
            io::Result::Ok(())
        });
        run.unwrap().unwrap();
    }
}
