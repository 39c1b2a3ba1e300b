//! Who listens to which channel.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

use crate::resp::Reply;

/// How many messages may wait for a subscriber that does not read; then it misses some.
pub(crate) const WAITING: usize = 1024;

type Subscribers = HashMap<u64, mpsc::Sender<Bytes>>;

#[derive(Default)]
pub(crate) struct Hub {
    channels: Mutex<HashMap<Bytes, Subscribers>>,
}

impl Hub {
    fn channels(&self) -> MutexGuard<'_, HashMap<Bytes, Subscribers>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn subscribe(&self, channel: Bytes, client: u64, messages: mpsc::Sender<Bytes>) {
        let mut channels = self.channels();
        channels
            .entry(channel)
            .or_default()
            .insert(client, messages);
    }

    pub(crate) fn unsubscribe(&self, channel: &Bytes, client: u64) {
        let mut channels = self.channels();
        if let Some(subscribers) = channels.get_mut(channel) {
            subscribers.remove(&client);
            if subscribers.is_empty() {
                channels.remove(channel);
            }
        }
    }

    /// Says how many have got it.
    pub(crate) fn publish(&self, channel: &Bytes, message: &[u8]) -> usize {
        let channels = self.channels();
        let Some(subscribers) = channels.get(channel) else {
            return 0;
        };
        let mut text = BytesMut::new();
        text.array(3);
        text.bulk(b"message");
        text.bulk(channel);
        text.bulk(message);
        let text = text.freeze();
        let sent = subscribers
            .values()
            .map(|client| client.try_send(text.clone()));
        sent.filter(Result::is_ok).count()
    }
}
