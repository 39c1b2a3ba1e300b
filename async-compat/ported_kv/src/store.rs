//! The keys and what they hold.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};

use crate::aof::Log;
use crate::command;
use crate::resp::Request;

/// Keys are spread over so many maps, each with its lock.
const SHARDS: usize = 16;

pub(crate) enum Value {
    Text(Bytes),
    Hash(HashMap<Bytes, Bytes>),
    List(VecDeque<Bytes>),
}

impl Value {
    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            Value::Text(_) => "string",
            Value::Hash(_) => "hash",
            Value::List(_) => "list",
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Value::Text(_) => false,
            Value::Hash(hash) => hash.is_empty(),
            Value::List(list) => list.is_empty(),
        }
    }
}

pub(crate) struct Entry {
    pub(crate) value: Value,
    /// Milliseconds since 1970, as the append-only file has it.
    pub(crate) expires: Option<u64>,
}

pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or(Duration::ZERO).as_millis()).unwrap_or(u64::MAX)
}

#[derive(Default)]
pub(crate) struct Shard {
    entries: HashMap<Bytes, Entry>,
    /// How many of them expire.
    expiring: usize,
}

impl Shard {
    /// The entry of a key, if it has not expired.
    pub(crate) fn get(&mut self, key: &[u8]) -> Option<&mut Entry> {
        let expired = |entry: &Entry| entry.expires.is_some_and(|at| at <= now_ms());
        if self.expiring > 0 && self.entries.get(key).is_some_and(expired) {
            self.remove(key);
            return None;
        }
        self.entries.get_mut(key)
    }

    /// Sets a key; says whether it is new.
    pub(crate) fn insert(&mut self, key: Bytes, value: Value, expires: Option<u64>) {
        self.expiring += usize::from(expires.is_some());
        if let Some(old) = self.entries.insert(key, Entry { value, expires }) {
            self.expiring -= usize::from(old.expires.is_some());
        }
    }

    pub(crate) fn remove(&mut self, key: &[u8]) -> Option<Entry> {
        let entry = self.entries.remove(key)?;
        self.expiring -= usize::from(entry.expires.is_some());
        Some(entry)
    }

    pub(crate) fn set_expiry(&mut self, key: &[u8], expires: Option<u64>) -> bool {
        let Some(entry) = self.get(key) else {
            return false;
        };
        let before = std::mem::replace(&mut entry.expires, expires);
        self.expiring += usize::from(expires.is_some());
        self.expiring -= usize::from(before.is_some());
        true
    }

    /// Removes a key whose collection has become empty.
    pub(crate) fn drop_empty(&mut self, key: &[u8]) {
        if self
            .entries
            .get(key)
            .is_some_and(|entry| entry.value.is_empty())
        {
            self.remove(key);
        }
    }

    fn sweep(&mut self) {
        if self.expiring == 0 {
            return;
        }
        let now = now_ms();
        let before = self.entries.len();
        self.entries
            .retain(|_, entry| entry.expires.is_none_or(|at| at > now));
        self.expiring -= before - self.entries.len();
    }
}

pub(crate) struct Store {
    shards: [Mutex<Shard>; SHARDS],
    hasher: RandomState,
    log: Mutex<Option<Log>>,
}

impl Store {
    pub(crate) fn new() -> Self {
        Store {
            shards: Default::default(),
            hasher: RandomState::new(),
            log: Mutex::new(None),
        }
    }

    /// From now on changes are logged.
    pub(crate) fn set_log(&self, log: Option<Log>) {
        *self.log.lock().unwrap_or_else(PoisonError::into_inner) = log;
    }

    /// Logs a change, with the lock of its key held. Says its number.
    pub(crate) fn log(&self, request: &[Bytes]) -> Option<u64> {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.as_mut().map(|log| log.append(request))
    }

    /// The shard of a key, locked. Nothing is awaited while it is.
    pub(crate) fn shard(&self, key: &[u8]) -> MutexGuard<'_, Shard> {
        let index = self.hasher.hash_one(key) as usize % SHARDS;
        lock(&self.shards[index])
    }

    /// Calls `f` with each shard in turn.
    pub(crate) fn each_shard(&self, mut f: impl FnMut(&mut Shard)) {
        self.shards.iter().for_each(|shard| f(&mut lock(shard)));
    }

    pub(crate) fn len(&self) -> usize {
        let mut count = 0;
        self.each_shard(|shard| {
            shard.sweep();
            count += shard.entries.len();
        });
        count
    }

    pub(crate) fn keys(&self, matches: impl Fn(&[u8]) -> bool) -> Vec<Bytes> {
        let mut keys = Vec::new();
        self.each_shard(|shard| {
            shard.sweep();
            keys.extend(shard.entries.keys().filter(|key| matches(key)).cloned());
        });
        keys
    }

    pub(crate) fn clear(&self) {
        self.each_shard(|shard| *shard = Shard::default());
    }

    /// Forgets what has expired, so that it takes no memory.
    pub(crate) fn sweep(&self) {
        self.each_shard(Shard::sweep);
    }

    /// Applies a command of the append-only file.
    pub(crate) fn replay(&self, request: Request) {
        command::change(self, &request, &mut BytesMut::new());
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}
