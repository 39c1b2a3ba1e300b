//! The group: its handlers, its place in a tree of groups, and the wait.
//!
//! Only the root of a tree waits, so its epoll has the descriptors of the whole
//! tree, and its table finds their handlers: by descriptor, and by a generation,
//! since a descriptor that is closed and reopened by a handler may still have an
//! event of its predecessor in the batch. Nothing is borrowed while a handler
//! runs: it may add and remove any descriptor, its own included.
//!
//! A panic of a handler, a wrapper or a destructor of either is caught where it
//! leaves them, the handler is removed, and the rest of the batch has its turn.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::{Rc, Weak};
use std::time::Duration;

use super::FdGroupError;
use super::epoll::Epoll;

/// What a descriptor is ready for: `EPOLL*` bits.
///
/// # Examples
///
/// ```
/// use corespun::interrupt::Event;
///
/// let both = Event::READABLE | Event::WRITABLE;
/// assert!(both.contains(Event::WRITABLE));
/// // As epoll knows it.
/// assert_eq!(Event::READABLE, Event(libc::EPOLLIN as u32));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event(pub u32);

impl Event {
    /// Something to read, a connection to accept, or the end of the other side.
    pub const READABLE: Event = Event(libc::EPOLLIN as u32);
    /// Room to write.
    pub const WRITABLE: Event = Event(libc::EPOLLOUT as u32);
    /// An error; always reported.
    pub const ERROR: Event = Event(libc::EPOLLERR as u32);

    /// Whether all of `other` is in this.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::interrupt::Event;
    ///
    /// assert!((Event::READABLE | Event::ERROR).contains(Event::READABLE));
    /// assert!(!Event::READABLE.contains(Event::READABLE | Event::WRITABLE));
    /// ```
    pub fn contains(self, other: Event) -> bool {
        self.0 & other.0 == other.0
    }
}

impl std::ops::BitOr for Event {
    type Output = Event;

    fn bitor(self, other: Event) -> Event {
        Event(self.0 | other.0)
    }
}

/// What the group does with a ready descriptor before its handler is called.
///
/// # Examples
///
/// ```
/// use std::{cell::Cell, rc::Rc, time::Duration};
/// use corespun::interrupt::{FdGroup, FdKind, FdOptions};
/// use nix::sys::eventfd::EventFd;
///
/// let (group, doorbell) = (FdGroup::new()?, EventFd::new()?);
/// let rings = Rc::new(Cell::new(0));
/// let counter = rings.clone();
/// let options = FdOptions { kind: FdKind::EventFd, ..FdOptions::default() };
/// group.add(&doorbell, options, move |_event| counter.set(counter.get() + 1))?;
/// doorbell.write(1)?;
/// group.wait(Some(Duration::ZERO))?;
/// // Read by the group: it is not ready any more.
/// assert_eq!(group.wait(Some(Duration::ZERO))?, 0);
/// assert_eq!(rings.get(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum FdKind {
    /// Nothing.
    #[default]
    Plain,
    /// It is an eventfd: its counter is read, and the handler is not called if
    /// there was nothing to read.
    EventFd,
}

/// How a descriptor is to be watched.
///
/// # Examples
///
/// ```
/// use corespun::interrupt::{Event, FdKind, FdOptions};
///
/// let options = FdOptions {
///     events: Event::READABLE | Event::WRITABLE,
///     name: "client 7".to_owned(),
///     ..FdOptions::default()
/// };
/// assert_eq!(options.kind, FdKind::Plain);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FdOptions {
    /// What for; readable unless set.
    pub events: Event,
    /// What it is.
    pub kind: FdKind,
    /// A name for introspection.
    pub name: String,
}

impl Default for FdOptions {
    fn default() -> Self {
        FdOptions {
            events: Event::READABLE,
            kind: FdKind::Plain,
            name: String::new(),
        }
    }
}

/// Where a handler stands.
///
/// # Examples
///
/// ```
/// use std::{cell::Cell, os::unix::net::UnixStream, rc::Rc, time::Duration};
/// use corespun::interrupt::{Event, FdGroup, FdHandlerState, FdOptions};
///
/// let group = Rc::new(FdGroup::new()?);
/// let (_peer, socket) = UnixStream::pair()?;
/// let socket = Rc::new(socket);
/// let options = FdOptions { events: Event::WRITABLE, ..FdOptions::default() };
/// let (here, fd) = (group.clone(), socket.clone());
/// let inside = Rc::new(Cell::new(None));
/// let seen = inside.clone();
/// group.add(&socket, options, move |_event| seen.set(here.handler(&fd).map(|found| found.1)))?;
/// assert_eq!(group.handler(&socket).unwrap().1, FdHandlerState::Waiting);
/// group.wait(Some(Duration::ZERO))?;
/// assert_eq!(inside.get(), Some(FdHandlerState::Running));
/// # group.remove(&socket)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FdHandlerState {
    /// Waits for its descriptor.
    Waiting,
    /// Its descriptor is in the batch of events being worked on.
    Running,
    /// Was taken out of its group.
    Removed,
}

type Callback = Box<dyn FnMut(Event)>;

/// What a handler panicked with.
type Payload = Box<dyn Any + Send>;

fn contain(f: impl FnOnce()) -> Result<(), Payload> {
    // What it leaves half-changed is the program's own.
    catch_unwind(AssertUnwindSafe(f))
}

struct Handler {
    fd: RawFd,
    events: Cell<u32>,
    kind: FdKind,
    name: String,
    state: Cell<FdHandlerState>,
    /// Told apart from what had the same descriptor before, within a root.
    generation: Cell<u32>,
    /// Absent while it runs.
    callback: Cell<Option<Callback>>,
    /// The group that it was added to.
    group: Weak<Group>,
}

impl Handler {
    fn data(&self) -> u64 {
        u64::from(self.generation.get()) << 32 | self.fd as u32 as u64
    }

    /// Ends it. The callback, absent while it runs, is the caller's to drop.
    fn retire(&self) -> Option<Callback> {
        self.state.set(FdHandlerState::Removed);
        self.callback.take()
    }
}

/// A descriptor of a group, known by itself and not by its number.
pub(crate) struct Member(Rc<Handler>);

impl Member {
    pub(crate) fn fd(&self) -> RawFd {
        self.0.fd
    }
}

/// A callback around the handlers of a group.
type Wrapper = Rc<dyn Fn(&mut dyn FnMut())>;

struct Group {
    epoll: Epoll,
    parent: RefCell<Option<Rc<Group>>>,
    children: RefCell<Vec<Weak<Group>>>,
    handlers: RefCell<BTreeMap<RawFd, Rc<Handler>>>,
    wrapper: RefCell<Option<Wrapper>>,
    /// Of the whole tree, if this is its root; else empty.
    table: RefCell<BTreeMap<RawFd, Rc<Handler>>>,
    last_generation: Cell<u32>,
    current: Cell<Option<Event>>,
}

impl Group {
    fn root(self: &Rc<Self>) -> Rc<Group> {
        let mut root = self.clone();
        loop {
            let parent = root.parent.borrow().clone();
            match parent {
                Some(parent) => root = parent,
                None => return root,
            }
        }
    }

    /// Makes a handler of the tree known to its root.
    fn watch(&self, handler: &Rc<Handler>) -> io::Result<()> {
        let generation = self.last_generation.get().wrapping_add(1);
        self.last_generation.set(generation);
        let before = handler.generation.replace(generation);
        let added = self
            .epoll
            .add(handler.fd, handler.events.get(), handler.data());
        if let Err(error) = added {
            handler.generation.set(before);
            return Err(error);
        }
        self.table.borrow_mut().insert(handler.fd, handler.clone());
        Ok(())
    }

    fn unwatch(&self, handler: &Rc<Handler>) {
        let mut table = self.table.borrow_mut();
        // One that was closed may have left its number to another of the tree.
        let known = table.get(&handler.fd);
        if known.is_some_and(|known| Rc::ptr_eq(known, handler)) {
            table.remove(&handler.fd);
            // Refused for a descriptor that was closed: then it is out already.
            let _ = self.epoll.delete(handler.fd);
        }
    }

    /// Whether the handler's number is still that of the descriptor that was
    /// added, which is out of the epoll if it was closed.
    fn is_open(&self, handler: &Handler) -> bool {
        let events = handler.events.get();
        self.epoll
            .modify(handler.fd, events, handler.data())
            .is_ok()
    }

    /// Takes a handler of this group out; its callback is the caller's to drop.
    fn remove(self: &Rc<Self>, handler: &Rc<Handler>) -> Option<Callback> {
        let mut handlers = self.handlers.borrow_mut();
        let own = handlers.get(&handler.fd);
        if own.is_some_and(|own| Rc::ptr_eq(own, handler)) {
            handlers.remove(&handler.fd);
        }
        drop(handlers);
        self.root().unwatch(handler);
        handler.retire()
    }

    /// The handlers of this group and all nested in it.
    fn subtree(&self, handlers: &mut Vec<Rc<Handler>>) {
        handlers.extend(self.handlers.borrow().values().cloned());
        for child in self.live_children() {
            child.subtree(handlers);
        }
    }

    fn live_children(&self) -> Vec<Rc<Group>> {
        let children = self.children.borrow();
        children.iter().filter_map(Weak::upgrade).collect()
    }

    /// Moves handlers from one root to another, all or none.
    fn transfer(from: &Group, to: &Group, handlers: &[Rc<Handler>]) -> io::Result<()> {
        for (done, handler) in handlers.iter().enumerate() {
            if let Err(error) = to.watch(handler) {
                for moved in &handlers[..done] {
                    to.unwatch(moved);
                    // Its old place has the older generation.
                    from.unwatch(moved);
                    from.watch(moved)?;
                }
                return Err(error);
            }
        }
        handlers.iter().for_each(|handler| from.unwatch(handler));
        Ok(())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The root may be in the middle of a batch that has them.
        let root = self.parent.take().map(|parent| parent.root());
        for handler in std::mem::take(self.handlers.get_mut()).into_values() {
            if let Some(root) = &root {
                root.unwatch(&handler);
            }
            let callback = handler.retire();
            if let Err(payload) = contain(|| drop(callback)) {
                report_and_forget(&handler.name, payload);
            }
        }
        let wrapper = self.wrapper.take();
        if let Err(payload) = contain(|| drop(wrapper)) {
            report_and_forget("wrapper", payload);
        }
    }
}

/// The end of a payload that goes to nobody.
fn report_and_forget(name: &str, payload: Payload) {
    tracing::error!(name, "a handler of a descriptor group panicked");
    if let Err(second) = contain(|| drop(payload)) {
        std::mem::forget(second);
    }
}

/// A group of file descriptors with a handler each (`struct spdk_fd_group`).
///
/// # Examples
///
/// ```
/// use std::{cell::Cell, io::Write, os::unix::net::UnixStream, rc::Rc, time::Duration};
/// use corespun::interrupt::{Event, FdGroup, FdOptions};
///
/// let (mut here, there) = UnixStream::pair()?;
/// let group = FdGroup::new()?;
/// let seen = Rc::new(Cell::new(false));
/// let readable = seen.clone();
/// group.add(&there, FdOptions::default(), move |event| {
///     readable.set(event.contains(Event::READABLE));
/// })?;
/// here.write_all(b"x")?;
/// assert_eq!(group.wait(Some(Duration::from_secs(1)))?, 1);
/// assert!(seen.get());
/// group.remove(&there)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct FdGroup {
    group: Rc<Group>,
}

impl FdGroup {
    /// An empty group.
    ///
    /// # Errors
    ///
    /// The kernel's, when it gives no epoll descriptor.
    ///
    /// # Examples
    ///
    /// ```
    /// use corespun::interrupt::FdGroup;
    ///
    /// let group = FdGroup::new()?;
    /// assert_eq!(group.fd_count(), 0);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn new() -> io::Result<Self> {
        Ok(FdGroup {
            group: Rc::new(Group {
                epoll: Epoll::new()?,
                parent: RefCell::default(),
                children: RefCell::default(),
                handlers: RefCell::default(),
                wrapper: RefCell::default(),
                table: RefCell::default(),
                last_generation: Cell::new(0),
                current: Cell::new(None),
            }),
        })
    }

    /// Adds a descriptor, to be kept open until it is removed. One that was closed
    /// before gives way to a new one with its number.
    ///
    /// # Errors
    ///
    /// [`FdGroupError::Exists`] when the group has it, and the kernel's: when
    /// another group of the tree has it, or it cannot be waited for.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{cell::RefCell, io::{Read, Write}, os::unix::net::UnixStream, rc::Rc};
    /// use corespun::interrupt::{FdGroup, FdOptions};
    ///
    /// let (mut peer, socket) = UnixStream::pair()?;
    /// let group = FdGroup::new()?;
    /// let received = Rc::new(RefCell::new([0; 4]));
    /// let (buffer, mut reader) = (received.clone(), socket.try_clone()?);
    /// group.add(&socket, FdOptions::default(), move |_event| {
    ///     reader.read_exact(&mut *buffer.borrow_mut()).unwrap();
    /// })?;
    /// peer.write_all(b"ping")?;
    /// group.wait(None)?;
    /// assert_eq!(&*received.borrow(), b"ping");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn add(
        &self,
        fd: &impl AsFd,
        options: FdOptions,
        callback: impl FnMut(Event) + 'static,
    ) -> Result<(), FdGroupError> {
        self.add_member(fd.as_fd(), options, callback).map(drop)
    }

    pub(crate) fn add_member(
        &self,
        fd: BorrowedFd<'_>,
        options: FdOptions,
        callback: impl FnMut(Event) + 'static,
    ) -> Result<Member, FdGroupError> {
        let fd = fd.as_raw_fd();
        let root = self.group.root();
        let before = self.group.handlers.borrow().get(&fd).cloned();
        if let Some(before) = &before
            && root.is_open(before)
        {
            return Err(FdGroupError::Exists(fd));
        }
        let handler = Rc::new(Handler {
            fd,
            events: Cell::new(options.events.0),
            kind: options.kind,
            name: options.name,
            state: Cell::new(FdHandlerState::Waiting),
            generation: Cell::new(0),
            callback: Cell::new(Some(Box::new(callback))),
            group: Rc::downgrade(&self.group),
        });
        root.watch(&handler)?;
        let member = Member(handler.clone());
        self.group.handlers.borrow_mut().insert(fd, handler);
        drop(before.and_then(|before| before.retire()));
        Ok(member)
    }

    /// Removes a descriptor; its handler is not called again, also if it is in
    /// the batch being worked on.
    ///
    /// # Errors
    ///
    /// [`FdGroupError::Unknown`].
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{io::Write, os::unix::net::UnixStream, time::Duration};
    /// use corespun::interrupt::{FdGroup, FdOptions};
    ///
    /// let (mut peer, socket) = UnixStream::pair()?;
    /// let group = FdGroup::new()?;
    /// group.add(&socket, FdOptions::default(), |_event| unreachable!())?;
    /// peer.write_all(b"x")?;
    /// group.remove(&socket)?;
    /// assert_eq!(group.wait(Some(Duration::ZERO))?, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn remove(&self, fd: &impl AsFd) -> Result<(), FdGroupError> {
        drop(self.group.remove(&self.find(fd)?));
        Ok(())
    }

    fn find(&self, fd: &impl AsFd) -> Result<Rc<Handler>, FdGroupError> {
        let fd = fd.as_fd().as_raw_fd();
        let handlers = self.group.handlers.borrow();
        handlers.get(&fd).cloned().ok_or(FdGroupError::Unknown(fd))
    }

    /// As [`FdGroup::remove`], for the caller to drop the handler; nothing if
    /// that is removed already or runs.
    pub(crate) fn remove_member(&self, member: &Member) -> Option<Callback> {
        self.group.remove(&member.0)
    }

    /// Changes what a descriptor is watched for.
    ///
    /// # Errors
    ///
    /// [`FdGroupError::Unknown`], or the kernel's.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{os::unix::net::UnixStream, time::Duration};
    /// use corespun::interrupt::{Event, FdGroup, FdOptions};
    ///
    /// let (_peer, socket) = UnixStream::pair()?;
    /// let group = FdGroup::new()?;
    /// group.add(&socket, FdOptions::default(), |_event| ())?;
    /// assert_eq!(group.wait(Some(Duration::ZERO))?, 0);
    /// group.modify(&socket, Event::READABLE | Event::WRITABLE)?;
    /// assert_eq!(group.wait(Some(Duration::ZERO))?, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn modify(&self, fd: &impl AsFd, events: Event) -> Result<(), FdGroupError> {
        self.modify_member(&Member(self.find(fd)?), events)
    }

    pub(crate) fn modify_member(&self, member: &Member, events: Event) -> Result<(), FdGroupError> {
        let handler = &member.0;
        if handler.state.get() == FdHandlerState::Removed {
            return Err(FdGroupError::Unknown(handler.fd));
        }
        let root = self.group.root();
        root.epoll.modify(handler.fd, events.0, handler.data())?;
        handler.events.set(events.0);
        Ok(())
    }

    /// What a descriptor is watched for, where its handler stands, and its name.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::os::unix::net::UnixStream;
    /// use corespun::interrupt::{Event, FdGroup, FdOptions};
    ///
    /// let (peer, socket) = UnixStream::pair()?;
    /// let group = FdGroup::new()?;
    /// let options = FdOptions { name: "client 7".to_owned(), ..FdOptions::default() };
    /// group.add(&socket, options, |_event| ())?;
    /// let (events, _state, name) = group.handler(&socket).unwrap();
    /// assert_eq!((events, &name[..]), (Event::READABLE, "client 7"));
    /// assert!(group.handler(&peer).is_none());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn handler(&self, fd: &impl AsFd) -> Option<(Event, FdHandlerState, String)> {
        let handlers = self.group.handlers.borrow();
        let handler = handlers.get(&fd.as_fd().as_raw_fd())?;
        let events = Event(handler.events.get());
        Some((events, handler.state.get(), handler.name.clone()))
    }

    /// How many descriptors this group waits for: its own and those of nested
    /// groups, or none if it is nested itself.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::os::unix::net::UnixStream;
    /// use corespun::interrupt::{FdGroup, FdOptions};
    ///
    /// let (one, other) = UnixStream::pair()?;
    /// let (outer, inner) = (FdGroup::new()?, FdGroup::new()?);
    /// outer.add(&one, FdOptions::default(), |_event| ())?;
    /// inner.add(&other, FdOptions::default(), |_event| ())?;
    /// outer.nest(&inner)?;
    /// assert_eq!((outer.fd_count(), inner.fd_count()), (2, 0));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn fd_count(&self) -> usize {
        self.group.table.borrow().len()
    }

    /// Waits for up to `timeout` (`None`: for ever) and calls the handler of
    /// each descriptor that is ready. Says how many were.
    ///
    /// A nested group finds nothing, since the outermost waits in its place.
    ///
    /// # Errors
    ///
    /// [`FdGroupError::Nested`] for a nested group that would wait for ever;
    /// the kernel's, `Interrupted` by a signal among them; and that of reading
    /// an eventfd, after all other handlers were called.
    ///
    /// # Panics
    ///
    /// When a handler does; that one is not called again.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{io::Write, os::unix::net::UnixStream, time::Duration};
    /// use corespun::interrupt::{FdGroup, FdOptions};
    ///
    /// let pairs = [UnixStream::pair()?, UnixStream::pair()?];
    /// let group = FdGroup::new()?;
    /// for (_peer, socket) in &pairs {
    ///     group.add(socket, FdOptions::default(), |_event| ())?;
    /// }
    /// assert_eq!(group.wait(Some(Duration::ZERO))?, 0);
    /// for (mut peer, _socket) in pairs.each_ref().map(|(peer, socket)| (peer, socket)) {
    ///     peer.write_all(b"x")?;
    /// }
    /// assert_eq!(group.wait(None)?, 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn wait(&self, timeout: Option<Duration>) -> Result<usize, FdGroupError> {
        let mut first = None;
        let waited = self.wait_with(timeout, &mut |name, outcome| match outcome {
            Err(payload) if first.is_none() => first = Some(payload),
            Err(payload) => report_and_forget(name, payload),
            Ok(()) => {}
        });
        match first {
            Some(payload) => resume_unwind(payload),
            None => waited,
        }
    }

    /// As [`FdGroup::wait`]; after each call of a handler, and when its destructor
    /// has panicked, `told` hears of it, with the handler's name.
    pub(crate) fn wait_with(
        &self,
        timeout: Option<Duration>,
        told: &mut dyn FnMut(&str, Result<(), Payload>),
    ) -> Result<usize, FdGroupError> {
        let root = &self.group;
        if root.parent.borrow().is_some() {
            return match timeout {
                None => Err(FdGroupError::Nested),
                Some(_) => Ok(0),
            };
        }
        let none = libc::epoll_event { events: 0, u64: 0 };
        let mut few = [none; 16];
        let mut many = Vec::new();
        let capacity = self.fd_count().max(1);
        let events = if capacity <= few.len() {
            &mut few[..capacity]
        } else {
            many.resize(capacity, none);
            &mut many[..]
        };
        let millis = timeout.map_or(-1, |timeout| {
            let millis = timeout.as_nanos().div_ceil(1_000_000);
            libc::c_int::try_from(millis).unwrap_or(libc::c_int::MAX)
        });
        let count = root.epoll.wait(events, millis)?;
        if count == 0 {
            return Ok(0);
        }
        let fired: Vec<_> = {
            let table = root.table.borrow();
            let find = |event: &libc::epoll_event| {
                let (data, ready) = (event.u64, event.events);
                let handler = table.get(&(data as u32 as RawFd))?;
                (handler.data() == data).then(|| (handler.clone(), Event(ready)))
            };
            events[..count].iter().filter_map(find).collect()
        };
        for (handler, _) in &fired {
            handler.state.set(FdHandlerState::Running);
        }
        let mut failed = None;
        for (place, (handler, event)) in fired.into_iter().enumerate() {
            if let Err(error) = root.dispatch(&handler, event, place > 0, told) {
                failed = Some(error);
            }
            if handler.state.get() == FdHandlerState::Running {
                handler.state.set(FdHandlerState::Waiting);
            }
        }
        match failed {
            Some(error) => Err(error.into()),
            None => Ok(count),
        }
    }

    /// The event that the handler being called was called for.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{cell::Cell, os::unix::net::UnixStream, rc::Rc};
    /// use corespun::interrupt::{Event, FdGroup, FdOptions};
    ///
    /// let group = Rc::new(FdGroup::new()?);
    /// let (_peer, socket) = UnixStream::pair()?;
    /// let (here, seen) = (group.clone(), Rc::new(Cell::new(None)));
    /// let inside = seen.clone();
    /// let options = FdOptions { events: Event::WRITABLE, ..FdOptions::default() };
    /// group.add(&socket, options, move |_event| inside.set(here.current_event()))?;
    /// group.wait(None)?;
    /// assert_eq!(seen.get(), Some(Event::WRITABLE));
    /// assert_eq!(group.current_event(), None);
    /// # group.remove(&socket)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn current_event(&self) -> Option<Event> {
        self.group.root().current.get()
    }

    /// Nests `child` in this group: its descriptors, and those nested in it, are
    /// waited for here (`spdk_fd_group_nest`).
    ///
    /// # Errors
    ///
    /// When the child is nested already or this group is nested in it, when
    /// this group has a wrapper, and the kernel's; nothing has changed then.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{io::Write, os::unix::net::UnixStream};
    /// use corespun::interrupt::{FdGroup, FdGroupError, FdOptions};
    ///
    /// let (mut peer, socket) = UnixStream::pair()?;
    /// let (reactor, thread) = (FdGroup::new()?, FdGroup::new()?);
    /// thread.add(&socket, FdOptions::default(), |_event| ())?;
    /// reactor.nest(&thread)?;
    /// peer.write_all(b"x")?;
    /// // One wait for the descriptors of both.
    /// assert_eq!(reactor.wait(None)?, 1);
    /// assert!(matches!(thread.wait(None), Err(FdGroupError::Nested)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn nest(&self, child: &FdGroup) -> Result<(), FdGroupError> {
        let (parent, child) = (&self.group, &child.group);
        if child.parent.borrow().is_some() {
            return Err(FdGroupError::Nested);
        }
        if parent.wrapper.borrow().is_some() {
            return Err(FdGroupError::HasWrapper);
        }
        let root = parent.root();
        if Rc::ptr_eq(&root, child) {
            return Err(FdGroupError::Cycle);
        }
        let mut handlers = Vec::new();
        child.subtree(&mut handlers);
        Group::transfer(child, &root, &handlers)?;
        child.parent.replace(Some(parent.clone()));
        let mut children = parent.children.borrow_mut();
        children.retain(|child| child.strong_count() > 0);
        children.push(Rc::downgrade(child));
        Ok(())
    }

    /// Takes a nested group out again (`spdk_fd_group_unnest`).
    ///
    /// # Errors
    ///
    /// [`FdGroupError::NotNested`] when `child` is not nested in this very
    /// group, and the kernel's; nothing has changed then.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{io::Write, os::unix::net::UnixStream};
    /// use corespun::interrupt::{FdGroup, FdOptions};
    ///
    /// let (mut peer, socket) = UnixStream::pair()?;
    /// let (from, thread, to) = (FdGroup::new()?, FdGroup::new()?, FdGroup::new()?);
    /// thread.add(&socket, FdOptions::default(), |_event| ())?;
    /// from.nest(&thread)?;
    /// // The thread moves to another reactor.
    /// from.unnest(&thread)?;
    /// to.nest(&thread)?;
    /// peer.write_all(b"x")?;
    /// assert_eq!((from.fd_count(), to.wait(None)?), (0, 1));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn unnest(&self, child: &FdGroup) -> Result<(), FdGroupError> {
        let (parent, child) = (&self.group, &child.group);
        let nested = child.parent.borrow().clone();
        if !nested.is_some_and(|nested| Rc::ptr_eq(&nested, parent)) {
            return Err(FdGroupError::NotNested);
        }
        let mut handlers = Vec::new();
        child.subtree(&mut handlers);
        Group::transfer(&parent.root(), child, &handlers)?;
        child.parent.replace(None);
        let mut children = parent.children.borrow_mut();
        children
            .retain(|other| other.strong_count() > 0 && !std::ptr::eq(other.as_ptr(), &**child));
        Ok(())
    }

    /// Has `wrapper` called in place of the handlers of this group, with a
    /// function that calls the handler.
    ///
    /// # Errors
    ///
    /// When the group has a wrapper, or nested groups.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{cell::RefCell, os::unix::net::UnixStream, rc::Rc};
    /// use corespun::interrupt::{Event, FdGroup, FdOptions};
    ///
    /// let group = FdGroup::new()?;
    /// let (_peer, socket) = UnixStream::pair()?;
    /// let log = Rc::new(RefCell::new(Vec::new()));
    /// let (outside, inside) = (log.clone(), log.clone());
    /// group.set_wrapper(move |call| {
    ///     outside.borrow_mut().push("enter");
    ///     call();
    ///     outside.borrow_mut().push("leave");
    /// })?;
    /// let options = FdOptions { events: Event::WRITABLE, ..FdOptions::default() };
    /// group.add(&socket, options, move |_event| inside.borrow_mut().push("handle"))?;
    /// group.wait(None)?;
    /// assert_eq!(*log.borrow(), ["enter", "handle", "leave"]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_wrapper(
        &self,
        wrapper: impl Fn(&mut dyn FnMut()) + 'static,
    ) -> Result<(), FdGroupError> {
        if self.group.wrapper.borrow().is_some() {
            return Err(FdGroupError::HasWrapper);
        }
        if !self.group.live_children().is_empty() {
            return Err(FdGroupError::HasChildren);
        }
        self.group.wrapper.replace(Some(Rc::new(wrapper)));
        Ok(())
    }

    /// Calls the handlers directly again.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::os::unix::net::UnixStream;
    /// use corespun::interrupt::{Event, FdGroup, FdOptions};
    ///
    /// let group = FdGroup::new()?;
    /// let (_peer, socket) = UnixStream::pair()?;
    /// let options = FdOptions { events: Event::WRITABLE, ..FdOptions::default() };
    /// group.add(&socket, options, |_event| ())?;
    /// group.set_wrapper(|_call| panic!("wrapped"))?;
    /// group.clear_wrapper();
    /// assert_eq!(group.wait(None)?, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn clear_wrapper(&self) {
        self.group.wrapper.take();
    }
}

impl Group {
    /// Calls a handler, `later` than another of the batch or not.
    fn dispatch(
        &self,
        handler: &Rc<Handler>,
        event: Event,
        later: bool,
        told: &mut dyn FnMut(&str, Result<(), Payload>),
    ) -> io::Result<()> {
        // An earlier handler of the batch may have removed it.
        if handler.state.get() == FdHandlerState::Removed {
            return Ok(());
        }
        if handler.kind == FdKind::EventFd {
            // Or closed it, and what has its number is not to be read.
            if later && !self.is_open(handler) || !read_counter(handler.fd)? {
                return Ok(());
            }
        }
        let Some(mut callback) = handler.callback.take() else {
            return Ok(());
        };
        let group = handler.group.upgrade();
        let wrapper = group.as_ref().and_then(|group| {
            let wrapper = group.wrapper.borrow();
            wrapper.clone()
        });
        let before = self.current.replace(Some(event));
        let call = &mut callback;
        let outcome = contain(move || match wrapper {
            Some(wrapper) => wrapper(&mut || call(event)),
            None => call(event),
        });
        self.current.set(before);
        if outcome.is_err()
            && let Some(group) = &group
        {
            // It would be ready, and panic, again at once.
            group.remove(handler);
        }
        // The last reference, if the handler ended its group.
        drop(group);
        told(&handler.name, outcome);
        if handler.state.get() != FdHandlerState::Removed {
            handler.callback.set(Some(callback));
        } else if let Err(payload) = contain(|| drop(callback)) {
            told(&handler.name, Err(payload));
        }
        Ok(())
    }
}

/// Reads an eventfd's counter; `false` if it was zero.
fn read_counter(fd: RawFd) -> io::Result<bool> {
    let mut counter = 0u64;
    // SAFETY: the buffer is eight bytes.
    let count = unsafe { libc::read(fd, (&raw mut counter).cast(), 8) };
    if count >= 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        error if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        error => Err(error),
    }
}

impl AsFd for FdGroup {
    /// The epoll descriptor: readable while a descriptor of the group is ready.
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is owned by the group, which the result borrows.
        unsafe { BorrowedFd::borrow_raw(self.group.epoll.raw()) }
    }
}

impl fmt::Debug for FdGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FdGroup")
            .field("fds", &self.fd_count())
            .field("nested", &self.group.parent.borrow().is_some())
            .finish_non_exhaustive()
    }
}
