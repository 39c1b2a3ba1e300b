//! A network for datagrams in memory: slow, out of order, lossy, and divided at times.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use super::SimHandle;
use super::chance::Span;
use crate::sync::budget::poll_budget;

/// How many datagrams may wait for a socket's owner; more are lost.
const BACKLOG: usize = 1024;

/// How a [`SimNetwork`] behaves, and how it fails. Chances are one in so many, 0 for
/// never.
#[derive(Clone, Debug)]
pub struct DatagramFaults {
    /// How long a datagram is on its way: 10 µs to 1 ms.
    pub delay: RangeInclusive<Duration>,
    /// One in so many is lost: 20.
    pub loss: u32,
    /// One in so many comes twice: 50.
    pub duplicates: u32,
    /// Whether those from one sender to one receiver may overtake each other; they may.
    pub reorders: bool,
}

impl Default for DatagramFaults {
    /// A bad network.
    fn default() -> Self {
        DatagramFaults {
            delay: Duration::from_micros(10)..=Duration::from_millis(1),
            loss: 20,
            duplicates: 50,
            reorders: true,
        }
    }
}

/// A network for datagrams. Clones are the same network; any thread may use them.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use corespun::{sim::Sim, time::timeout};
///
/// let mut sim = Sim::builder().seed(5).build();
/// let network = sim.handle().network(Default::default());
/// let (here, there) = ("10.0.0.1:1".parse()?, "10.0.0.2:1".parse()?);
/// let (one, other) = (network.bind(here)?, network.bind(there)?);
/// sim.block_on(async move {
///     let mut buf = [0; 16];
///     loop {
///         one.send_to(b"ping", there)?;
///         // Lost, perhaps.
///         let arrived = timeout(Duration::from_millis(2), other.recv_from(&mut buf)).await;
///         if let Ok(received) = arrived {
///             assert_eq!(received?, (4, here));
///             break;
///         }
///     }
///     // Nothing passes.
///     network.partition([here]);
///     one.send_to(b"ping", there)?;
///     std::io::Result::Ok(())
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct SimNetwork {
    handle: SimHandle,
    delay: Span,
    net: Arc<Mutex<Net>>,
}

struct Net {
    faults: DatagramFaults,
    sockets: BTreeMap<SocketAddr, Inbox>,
    /// Those on one side of a partition.
    apart: BTreeSet<SocketAddr>,
    number: u64,
}

#[derive(Default)]
struct Inbox {
    coming: BinaryHeap<Reverse<Datagram>>,
    /// When the last one of each sender arrives, where order is kept.
    last: BTreeMap<SocketAddr, u64>,
    receivers: Vec<Waker>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Datagram {
    at: u64,
    number: u64,
    from: SocketAddr,
    data: Vec<u8>,
}

impl SimHandle {
    /// A network without any socket.
    #[must_use]
    pub fn network(&self, faults: DatagramFaults) -> SimNetwork {
        SimNetwork {
            handle: self.clone(),
            delay: Span::new(&faults.delay, &self.world.clock),
            net: Arc::new(Mutex::new(Net {
                faults,
                sockets: BTreeMap::new(),
                apart: BTreeSet::new(),
                number: 0,
            })),
        }
    }
}

impl SimNetwork {
    /// A socket at an address.
    ///
    /// # Errors
    ///
    /// `AddrInUse`.
    pub fn bind(&self, address: SocketAddr) -> io::Result<SimSocket> {
        let mut net = self.net();
        if net.sockets.contains_key(&address) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        net.sockets.insert(address, Inbox::default());
        Ok(SimSocket {
            network: self.clone(),
            address,
        })
    }

    /// Divides the network: nothing passes between these addresses and all others, also
    /// what is on its way, until [`heal`](Self::heal). Takes the place of a division
    /// before.
    pub fn partition(&self, side: impl IntoIterator<Item = SocketAddr>) {
        self.net().apart = side.into_iter().collect();
        self.handle.note("the network is divided");
    }

    /// Ends a division.
    pub fn heal(&self) {
        self.net().apart.clear();
        self.handle.note("the network is whole");
    }

    /// Changes how it fails from now on; its delay stays.
    pub fn set_faults(&self, faults: DatagramFaults) {
        self.net().faults = faults;
    }

    fn net(&self) -> MutexGuard<'_, Net> {
        // No user code runs under this lock.
        self.net.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn arrival(&self) -> u64 {
        let time = {
            let dice = &mut self.handle.world.state().dice;
            self.delay.throw(&mut dice.rng)
        };
        self.handle.world.now().saturating_add(time)
    }

    fn send(&self, from: SocketAddr, to: SocketAddr, data: &[u8]) {
        let mut net = self.net();
        let passes = net.passes(from, to);
        let (loss, duplicates) = (net.faults.loss, net.faults.duplicates);
        if !passes || self.handle.chance(loss) {
            drop(net);
            return self.lost(from, to);
        }
        let copies = 1 + usize::from(self.handle.chance(duplicates));
        let mut receivers = Vec::new();
        for _ in 0..copies {
            let at = self.arrival();
            receivers.extend(net.deliver(from, to, data, at));
        }
        drop(net);
        receivers.into_iter().for_each(Waker::wake);
    }

    fn lost(&self, from: SocketAddr, to: SocketAddr) {
        self.handle
            .note(format_args!("a datagram from {from} to {to} is lost"));
    }
}

impl Net {
    fn passes(&self, from: SocketAddr, to: SocketAddr) -> bool {
        self.apart.contains(&from) == self.apart.contains(&to)
    }

    /// Puts a datagram where it arrives, and gives the wakers of its waiters.
    fn deliver(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        data: &[u8],
        mut at: u64,
    ) -> Vec<Waker> {
        let reorders = self.faults.reorders;
        self.number += 1;
        let number = self.number;
        let Some(inbox) = self.sockets.get_mut(&to) else {
            return Vec::new();
        };
        if inbox.coming.len() >= BACKLOG {
            return Vec::new();
        }
        let last = inbox.last.entry(from).or_default();
        if !reorders {
            at = at.max(*last);
        }
        *last = at;
        let data = data.to_vec();
        inbox.coming.push(Reverse(Datagram {
            at,
            number,
            from,
            data,
        }));
        std::mem::take(&mut inbox.receivers)
    }
}

/// A socket of a [`SimNetwork`]. Any thread may use it; dropped, its address is free.
pub struct SimSocket {
    network: SimNetwork,
    address: SocketAddr,
}

impl SimSocket {
    /// The socket's own address.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Sends a datagram; the sender is not told whether it arrives.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for more than 65,507 bytes.
    pub fn send_to(&self, data: &[u8], to: SocketAddr) -> io::Result<usize> {
        if data.len() > 65_507 {
            let message = "a datagram has 65,507 bytes at most";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        self.network.send(self.address, to, data);
        Ok(data.len())
    }

    /// The next datagram that arrives, and its sender's address; what `buf` has no room
    /// for is cut off.
    ///
    /// # Errors
    ///
    /// None today.
    ///
    /// # Cancel safety
    ///
    /// Dropped before it is ready, it has taken no datagram.
    pub async fn recv_from(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        poll_fn(|cx| self.poll_recv_from(cx, buf)).await
    }

    /// [`recv_from`](Self::recv_from) as a poll function.
    ///
    /// # Errors
    ///
    /// None today.
    pub fn poll_recv_from(
        &self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<(usize, SocketAddr)>> {
        let budget = ready!(poll_budget(cx));
        budget.on(self.receive(cx, buf).map(Ok))
    }

    /// Takes the next datagram that has arrived.
    fn receive(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<(usize, SocketAddr)> {
        let world = &self.network.handle.world;
        loop {
            let mut net = self.network.net();
            let inbox = net.sockets.get_mut(&self.address);
            let inbox = inbox.expect("it is there as long as its socket");
            match inbox.coming.peek() {
                Some(Reverse(first)) if world.is_due(first.at) => {}
                first => {
                    if let Some(Reverse(first)) = first {
                        world.wake_at(first.at, cx.waker());
                    }
                    if !inbox.receivers.iter().any(|one| one.will_wake(cx.waker())) {
                        inbox.receivers.push(cx.waker().clone());
                    }
                    return Poll::Pending;
                }
            }
            let Some(Reverse(datagram)) = inbox.coming.pop() else {
                continue;
            };
            let passes = net.passes(datagram.from, self.address);
            drop(net);
            if !passes {
                self.network.lost(datagram.from, self.address);
                continue;
            }
            let count = datagram.data.len().min(buf.len());
            buf[..count].copy_from_slice(&datagram.data[..count]);
            return Poll::Ready((count, datagram.from));
        }
    }
}

impl Drop for SimSocket {
    fn drop(&mut self) {
        // Dropped outside of the lock: wakers are foreign code.
        let inbox = self.network.net().sockets.remove(&self.address);
        drop(inbox);
    }
}

impl fmt::Debug for SimNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let net = self.net();
        f.debug_struct("SimNetwork")
            .field("sockets", &net.sockets.keys())
            .field("apart", &net.apart)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for SimSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimSocket")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}
