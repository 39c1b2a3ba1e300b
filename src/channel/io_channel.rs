//! The channel: a thread's own part of a device, counted by its handles.
//!
//! The last handle dropped sends the thread a message, and that message
//! destroys the channel, unless a user on the thread has got it again
//! meanwhile or a later message will do it: `destroys` counts those that are
//! queued, so of several only the last acts. Everything here belongs to the
//! owner of one thread; its table is never borrowed while user code runs.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;

use super::ChannelError;
use super::device::{Device, DeviceCore, IoDevice};
use crate::thread::BoundBy;
use crate::thread::SpdkThread;
use crate::thread::bound::Stay;
use crate::thread::exit::ExitHolder;
use crate::thread::local::Local;
use crate::thread::message::Message;
use crate::thread::part::Part;
use crate::thread::{Exited, NotOnThread};

pub(super) struct ChannelCell<C: 'static> {
    head: Head,
    device: Arc<Device<C>>,
    pub(super) context: C,
    /// Gone once it is known that the context is `Send`.
    stay: Cell<Option<Stay>>,
}

impl<C: 'static> ChannelCell<C> {
    /// Has a message destroy the channel if it is not used then. After a handle
    /// went.
    fn destroy_later(&self, local: &Local) {
        let head = &self.head;
        if !head.attached.get() || head.is_used() {
            return;
        }
        head.destroys.set(head.destroys.get() + 1);
        let serial = self.device.core.serial;
        let message = Message::new(move || destroy_if_unused(serial));
        local.send_to_itself(message);
        local.begun_outside();
    }

    /// Counts a handle that may be anywhere, and lets the channel move.
    pub(super) fn add_send_ref(&self)
    where
        C: Send,
    {
        let refs = &self.head.send_refs;
        refs.set(refs.get() + 1);
        drop(self.stay.take());
    }

    /// One of those is gone.
    pub(super) fn remove_send_ref(&self, local: &Local) {
        let refs = &self.head.send_refs;
        refs.set(refs.get() - 1);
        self.destroy_later(local);
    }
}

/// What does not depend on the context's type.
struct Head {
    /// Handles that belong to the OS thread, besides the first: -1 while there is
    /// none. So the sign of the sum tells the first and the last, without a compare.
    others: Cell<isize>,
    /// Handles that may be anywhere.
    send_refs: Cell<usize>,
    /// Destroy messages in the thread's queue.
    destroys: Cell<usize>,
    /// Whether the thread's table has it. A forced exit takes it out under the
    /// handles, which keep it alive from then on.
    attached: Cell<bool>,
    /// There while there are handles that belong to the OS thread, so that they bind
    /// the thread.
    local: Cell<Option<Rc<Local>>>,
}

impl Head {
    /// There is a first handle, on the channel's thread.
    #[cold]
    fn hold_thread(&self) {
        self.local.set(Local::current_rc());
    }

    fn is_used(&self) -> bool {
        self.refs() + self.send_refs.get() > 0
    }

    /// Handles that belong to the OS thread.
    fn refs(&self) -> usize {
        self.others.get().wrapping_add(1) as usize
    }
}

/// A cell of any context.
trait AnyCell: Any {
    fn head(&self) -> &Head;
    fn core(&self) -> &Arc<DeviceCore>;
    /// Whether the context may not be `Send`, for all that is known.
    fn stays(&self) -> bool;
}

impl<C: 'static> AnyCell for ChannelCell<C> {
    fn head(&self) -> &Head {
        &self.head
    }

    fn core(&self) -> &Arc<DeviceCore> {
        &self.device.core
    }

    fn stays(&self) -> bool {
        let stay = self.stay.take();
        let stays = stay.is_some();
        self.stay.set(stay);
        stays
    }
}

struct Entry {
    /// The device's, at hand for the search.
    serial: u64,
    device: Arc<DeviceCore>,
    /// `None` while the constructor runs.
    cell: Option<Rc<dyn AnyCell>>,
}

/// The channels of one thread, sorted by the serial number of their device.
#[derive(Default)]
struct ChannelTable {
    entries: RefCell<Vec<Entry>>,
}

enum Found<C: 'static> {
    Nothing,
    Constructing,
    Cell(Rc<ChannelCell<C>>),
}

impl ChannelTable {
    fn of(local: &Local) -> &ChannelTable {
        let part = local
            .channels
            .get_or_init(|| Box::new(ChannelTable::default()));
        let part: &dyn Any = &**part;
        part.downcast_ref()
            .expect("only this function stores there")
    }

    #[inline]
    fn find<C>(&self, device: &DeviceCore) -> Found<C> {
        let entries = self.entries.borrow();
        let Some(index) = position(&entries, device) else {
            return Found::Nothing;
        };
        match &entries[index].cell {
            None => Found::Constructing,
            Some(cell) => {
                let cell: Rc<dyn Any> = cell.clone();
                Found::Cell(cell.downcast().expect("a device has one type of channel"))
            }
        }
    }

    fn insert(&self, device: Arc<DeviceCore>) {
        let mut entries = self.entries.borrow_mut();
        let index = entries.partition_point(|entry| entry.serial < device.serial);
        let entry = Entry {
            serial: device.serial,
            device,
            cell: None,
        };
        entries.insert(index, entry);
    }

    fn set(&self, device: &DeviceCore, cell: Rc<dyn AnyCell>) {
        let mut entries = self.entries.borrow_mut();
        if let Some(index) = position(&entries, device) {
            entries[index].cell = Some(cell);
        }
    }

    fn remove(&self, device: &DeviceCore) {
        let mut entries = self.entries.borrow_mut();
        if let Some(index) = position(&entries, device) {
            entries.remove(index);
        }
    }
}

/// Where the device's entry is. The serial number, by which they are sorted, only
/// says where to look: a device of another library instance has the same.
#[inline]
fn position(entries: &[Entry], device: &DeviceCore) -> Option<usize> {
    let index = search(entries, device.serial).ok()?;
    std::ptr::eq(&*entries[index].device, device).then_some(index)
}

/// Where the device of a thread's own library is, or would be.
#[inline]
fn search(entries: &[Entry], serial: u64) -> Result<usize, usize> {
    entries.binary_search_by_key(&serial, |entry| entry.serial)
}

impl Part for ChannelTable {
    fn holds(&self) -> bool {
        !self.entries.borrow().is_empty()
    }

    fn holders(&self, holders: &mut Vec<ExitHolder>) {
        let entries = self.entries.borrow();
        let cells = entries.iter().filter_map(|entry| entry.cell.as_ref());
        holders.extend(cells.map(|cell| ExitHolder::Channel(cell.core().name())));
    }

    fn binders(&self, by: &mut Vec<BoundBy>) -> usize {
        let mut handles = 0;
        for cell in self.entries.borrow().iter().filter_map(|e| e.cell.as_ref()) {
            let is_held = cell.head().refs() > 0;
            handles += usize::from(is_held);
            if is_held || cell.stays() {
                by.push(BoundBy::Channel(cell.core().name()));
            }
        }
        handles
    }

    fn cancel(&self, local: &Local) {
        // Destructors may open and drop channels.
        loop {
            let last = self.entries.borrow_mut().pop();
            match last {
                Some(entry) => destroy(local, entry),
                None => return,
            }
        }
    }
}

/// The end of a channel that was taken out of its table: its context is dropped
/// now, unless a forced exit left handles behind.
fn destroy(local: &Local, entry: Entry) {
    let Entry { device, cell, .. } = entry;
    // One that is being made is taken back by its maker.
    let Some(cell) = cell else {
        return;
    };
    cell.head().attached.set(false);
    local.drop_contained(cell);
    device.remove_channel(local.shared.id);
}

/// The message that the last handle sent.
fn destroy_if_unused(serial: u64) {
    Local::with_current(|local| {
        let table = ChannelTable::of(local);
        let entry = {
            let mut entries = table.entries.borrow_mut();
            let Ok(index) = search(&entries, serial) else {
                return;
            };
            let Some(cell) = &entries[index].cell else {
                return;
            };
            let head = cell.head();
            head.destroys.set(head.destroys.get() - 1);
            if head.is_used() || head.destroys.get() > 0 {
                return;
            }
            entries.remove(index)
        };
        destroy(local, entry);
    });
}

/// The current thread's channel, if it has one, for a walk: not counted as a
/// handle.
pub(super) fn existing<C>(local: &Local, device: &DeviceCore) -> Option<Rc<ChannelCell<C>>> {
    match ChannelTable::of(local).find(device) {
        Found::Cell(cell) => Some(cell),
        _ => None,
    }
}

#[inline]
pub(super) fn get<C>(device: &Arc<Device<C>>) -> Result<IoChannel<C>, ChannelError> {
    let core = &*device.core;
    let found = Local::with_current(|local| ChannelTable::of(local).find(core));
    match found {
        Some(Found::Cell(cell)) if core.is_registered() => Ok(IoChannel::new(cell)),
        Some(Found::Constructing) => Err(ChannelError::Recursive(core.name())),
        _ => create(device),
    }
}

/// The error of a thread that has exited.
#[cold]
pub(super) fn opens_no_channel(thread: &str, core: &DeviceCore) -> ChannelError {
    let device = core.name();
    let gone = format!("has exited and opens no channel of io_device {device:?}");
    Exited::new(thread, gone).into()
}

#[cold]
fn create<C>(device: &Arc<Device<C>>) -> Result<IoChannel<C>, ChannelError> {
    let core = &*device.core;
    let local = Local::current_rc().ok_or_else(|| {
        let name = core.name();
        NotOnThread::new(format!(
            "a channel of io_device {name:?} can be had on a SpdkThread only"
        ))
    })?;
    if local.refuses_work() {
        return Err(opens_no_channel(local.shared.name(), core));
    }
    if !core.is_registered() {
        return Err(ChannelError::Unregistered(core.name()));
    }
    if !core.belongs_to(&local) {
        return Err(ChannelError::OtherLibrary {
            thread: local.shared.name().to_owned(),
            device: core.name(),
        });
    }
    if !core.add_channel(&local) {
        return Err(ChannelError::Unregistered(core.name()));
    }
    let table = ChannelTable::of(&local);
    table.insert(device.core.clone());
    // Takes all of it back if the constructor fails or panics.
    let unwind = Unfinished {
        table,
        core,
        thread: local.shared.id,
    };
    let context = device
        .construct()
        .map_err(|source| ChannelError::Constructor {
            device: core.name(),
            source,
        })?;
    std::mem::forget(unwind);
    let cell = Rc::new(ChannelCell {
        head: Head {
            others: Cell::new(-1),
            send_refs: Cell::new(0),
            destroys: Cell::new(0),
            attached: Cell::new(true),
            local: Cell::new(None),
        },
        device: device.clone(),
        context,
        stay: Cell::new(Some(local.anchor.stay())),
    });
    table.set(core, cell.clone());
    Ok(IoChannel::new(cell))
}

struct Unfinished<'a> {
    table: &'a ChannelTable,
    core: &'a DeviceCore,
    thread: u64,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        self.table.remove(self.core);
        self.core.remove_channel(self.thread);
    }
}

/// A handle of a thread's channel to a device (`struct spdk_io_channel *`); it
/// derefs to the channel's context.
///
/// It belongs to the SpdkThread that got it, and cannot leave its OS thread.
/// Cloning it adds a reference (`spdk_io_channel_ref`), dropping it gives one
/// back (`spdk_put_io_channel`). The last one dropped does not destroy the
/// channel there and then: a message to the thread does, unless the channel has
/// been got again before. While there is a channel, the thread does not exit,
/// and does not move to another OS thread; [`SendChannel`](super::SendChannel) is the
/// handle of one that moves.
///
/// # Examples
///
/// ```
/// use std::{cell::Cell, rc::Rc, sync::atomic::{AtomicUsize, Ordering}};
/// use corespun::{channel::IoDevice, thread::ThreadLib};
///
/// static OPEN: AtomicUsize = AtomicUsize::new(0);
///
/// struct Connection;
/// impl Drop for Connection {
///     fn drop(&mut self) {
///         OPEN.fetch_sub(1, Ordering::Relaxed);
///     }
/// }
///
/// let mut thread = ThreadLib::new().thread().build()?.attach();
/// thread.enter(|| {
///     let device = IoDevice::builder().register(|| {
///         OPEN.fetch_add(1, Ordering::Relaxed);
///         Ok::<_, std::io::Error>(Connection)
///     })?;
///     drop(device.channel()?);
///     drop(device.channel()?); // the same one again
///     Ok::<(), Box<dyn std::error::Error>>(())
/// })?;
/// assert_eq!(OPEN.load(Ordering::Relaxed), 1);
/// thread.poll(0, 0);
/// assert_eq!(OPEN.load(Ordering::Relaxed), 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct IoChannel<C: 'static> {
    cell: Rc<ChannelCell<C>>,
}

impl<C: 'static> IoChannel<C> {
    pub(super) fn cell(&self) -> &Rc<ChannelCell<C>> {
        &self.cell
    }

    #[inline]
    pub(super) fn new(cell: Rc<ChannelCell<C>>) -> Self {
        let others = &cell.head.others;
        others.set(others.get().wrapping_add(1));
        if others.get() == 0 {
            cell.head.hold_thread();
        }
        IoChannel { cell }
    }

    /// The device it is a channel of.
    pub fn device(&self) -> IoDevice<C> {
        IoDevice {
            device: self.cell.device.clone(),
        }
    }

    /// The thread it belongs to.
    pub fn thread(&self) -> SpdkThread {
        let kept = &self.cell.head.local;
        let local = kept.take().expect("there while there is a handle");
        let thread = SpdkThread::from_shared(local.shared.clone());
        kept.set(Some(local));
        thread
    }

    /// How many handles there are.
    pub fn ref_count(&self) -> usize {
        let head = &self.cell.head;
        head.refs() + head.send_refs.get()
    }

    /// Whether both are handles of one channel.
    pub fn same_channel(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.cell, &other.cell)
    }

    #[cold]
    fn put_last(&self) {
        if let Some(local) = self.cell.head.local.take() {
            self.cell.destroy_later(&local);
        }
    }
}

impl<C: 'static> Clone for IoChannel<C> {
    #[inline]
    fn clone(&self) -> Self {
        IoChannel::new(self.cell.clone())
    }
}

impl<C: 'static> Drop for IoChannel<C> {
    #[inline]
    fn drop(&mut self) {
        let others = &self.cell.head.others;
        others.set(others.get().wrapping_sub(1));
        if others.get() < 0 {
            self.put_last();
        }
    }
}

impl<C: 'static> Deref for IoChannel<C> {
    type Target = C;

    #[inline]
    fn deref(&self) -> &C {
        &self.cell.context
    }
}

impl<C: 'static> fmt::Debug for IoChannel<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoChannel")
            .field("device", &&*self.cell.device.core.name)
            .field("ref_count", &self.ref_count())
            .finish_non_exhaustive()
    }
}
