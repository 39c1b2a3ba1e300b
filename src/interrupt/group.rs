//! The group: its handlers, its place in a tree of groups, and the wait.
//!
//! Only the root of a tree waits, so its epoll has the descriptors of the whole
//! tree, and its table finds their handlers: by descriptor, and by a generation,
//! since a descriptor that is closed and reopened by a handler may still have an
//! event of its predecessor in the batch. Nothing is borrowed while a handler
//! runs: it may add and remove any descriptor, its own included.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::rc::{Rc, Weak};

use super::dispatch::{contain, report_and_forget};
use super::epoll::Epoll;
use super::{FdGroupError, FdHandlerState, FdKind, FdOptions, Readiness};

type Callback = Box<dyn FnMut(Readiness)>;

pub(super) struct Handler {
    pub(super) fd: RawFd,
    events: Cell<u32>,
    pub(super) kind: FdKind,
    pub(super) name: String,
    pub(super) state: Cell<FdHandlerState>,
    /// Told apart from what had the same descriptor before, within a root.
    generation: Cell<u32>,
    /// Absent while it runs.
    pub(super) callback: Cell<Option<Callback>>,
    /// The group that it was added to.
    pub(super) group: Weak<Group>,
}

impl Handler {
    pub(super) fn data(&self) -> u64 {
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

    /// Whether it may still be called.
    pub(crate) fn is_registered(&self) -> bool {
        self.0.state.get() != FdHandlerState::Removed
    }
}

/// A callback around the handlers of a group.
type Wrapper = Rc<dyn Fn(&mut dyn FnMut())>;

pub(super) struct Group {
    pub(super) epoll: Epoll,
    pub(super) parent: RefCell<Option<Rc<Group>>>,
    children: RefCell<Vec<Weak<Group>>>,
    handlers: RefCell<BTreeMap<RawFd, Rc<Handler>>>,
    pub(super) wrapper: RefCell<Option<Wrapper>>,
    /// Of the whole tree, if this is its root; else empty.
    pub(super) table: RefCell<BTreeMap<RawFd, Rc<Handler>>>,
    last_generation: Cell<u32>,
    pub(super) current: Cell<Option<Readiness>>,
}

impl Group {
    pub(super) fn root(self: &Rc<Self>) -> Rc<Group> {
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
    pub(super) fn is_open(&self, handler: &Handler) -> bool {
        let events = handler.events.get();
        self.epoll
            .modify(handler.fd, events, handler.data())
            .is_ok()
    }

    /// Takes a handler of this group out; its callback is the caller's to drop.
    pub(super) fn remove(self: &Rc<Self>, handler: &Rc<Handler>) -> Option<Callback> {
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

/// A group of file descriptors with a handler each (`struct spdk_fd_group`).
///
/// # Examples
///
/// ```
/// use std::{cell::Cell, io::Write, os::unix::net::UnixStream, rc::Rc, time::Duration};
/// use corespun::interrupt::{Readiness, FdGroup, FdOptions};
///
/// let (mut here, there) = UnixStream::pair()?;
/// let group = FdGroup::new()?;
/// let seen = Rc::new(Cell::new(false));
/// let readable = seen.clone();
/// group.add(&there, FdOptions::default(), move |event| {
///     readable.set(event.contains(Readiness::READABLE));
/// })?;
/// here.write_all(b"x")?;
/// assert_eq!(group.wait(Some(Duration::from_secs(1)))?, 1);
/// assert!(seen.get());
/// group.remove(&there)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct FdGroup {
    pub(super) group: Rc<Group>,
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
        callback: impl FnMut(Readiness) + 'static,
    ) -> Result<(), FdGroupError> {
        self.add_member(fd.as_fd(), options, callback).map(drop)
    }

    pub(crate) fn add_member(
        &self,
        fd: BorrowedFd<'_>,
        options: FdOptions,
        callback: impl FnMut(Readiness) + 'static,
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
    pub fn modify(&self, fd: &impl AsFd, events: Readiness) -> Result<(), FdGroupError> {
        self.modify_member(&Member(self.find(fd)?), events)
    }

    pub(crate) fn modify_member(
        &self,
        member: &Member,
        events: Readiness,
    ) -> Result<(), FdGroupError> {
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
    /// use corespun::interrupt::{Readiness, FdGroup, FdOptions};
    ///
    /// let (peer, socket) = UnixStream::pair()?;
    /// let group = FdGroup::new()?;
    /// let options = FdOptions { name: "client 7".to_owned(), ..FdOptions::default() };
    /// group.add(&socket, options, |_event| ())?;
    /// let (events, _state, name) = group.handler(&socket).unwrap();
    /// assert_eq!((events, &name[..]), (Readiness::READABLE, "client 7"));
    /// assert!(group.handler(&peer).is_none());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn handler(&self, fd: &impl AsFd) -> Option<(Readiness, FdHandlerState, String)> {
        let handlers = self.group.handlers.borrow();
        let handler = handlers.get(&fd.as_fd().as_raw_fd())?;
        let events = Readiness(handler.events.get());
        Some((events, handler.state.get(), handler.name.clone()))
    }

    /// How many descriptors this group waits for: its own and those of nested
    /// groups, or none if it is nested itself.
    pub fn fd_count(&self) -> usize {
        self.group.table.borrow().len()
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
    /// use corespun::interrupt::{Readiness, FdGroup, FdOptions};
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
    /// let options = FdOptions { events: Readiness::WRITABLE, ..FdOptions::default() };
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
    /// use corespun::interrupt::{Readiness, FdGroup, FdOptions};
    ///
    /// let group = FdGroup::new()?;
    /// let (_peer, socket) = UnixStream::pair()?;
    /// let options = FdOptions { events: Readiness::WRITABLE, ..FdOptions::default() };
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
