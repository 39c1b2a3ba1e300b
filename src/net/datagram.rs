//! What datagram sockets share: one registered descriptor, and whole datagrams on it.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use super::bound::Bound;
use crate::io::{IoBuf, IoBufMut, PollFd};

pub(super) struct Datagram<T: AsFd + 'static> {
    _bound: Bound,
    pub(super) fd: PollFd<T>,
}

impl<T: AsFd + 'static> Datagram<T> {
    /// Registers a socket that is non-blocking already.
    pub(super) fn new(socket: T) -> io::Result<Self> {
        Ok(Datagram {
            _bound: Bound::default(),
            fd: PollFd::new(socket)?,
        })
    }

    pub(super) fn get(&self) -> &T {
        self.fd.get_ref()
    }

    /// `send` is given the buffer's initialised bytes, perhaps several times.
    pub(super) async fn send<B: IoBuf>(
        &self,
        buf: B,
        send: impl Fn(&T, &[u8]) -> io::Result<usize>,
    ) -> (io::Result<usize>, B) {
        // SAFETY: IoBuf promises so many readable bytes there; `buf` is owned by this future.
        let bytes = unsafe { std::slice::from_raw_parts(buf.stable_ptr(), buf.bytes_init()) };
        let sent = self.fd.write_with(|socket| send(socket, bytes)).await;
        (sent, buf)
    }

    /// `recv` fills the buffer's capacity from its beginning, and says how much that was, and more.
    pub(super) async fn recv<B: IoBufMut, R>(
        &self,
        mut buf: B,
        recv: impl Fn(&T, &mut [MaybeUninit<u8>]) -> io::Result<(usize, R)>,
    ) -> (io::Result<(usize, R)>, B) {
        let wanted = buf.bytes_total();
        let pointer = buf.stable_mut_ptr().cast::<MaybeUninit<u8>>();
        // SAFETY: IoBufMut promises so many writable bytes there; `buf` is owned by this future and
        // not used while the slice is.
        let space = unsafe { std::slice::from_raw_parts_mut(pointer, wanted) };
        let received = self.fd.read_with(|socket| recv(socket, space)).await;
        if let Ok((count, _)) = received {
            // SAFETY: the kernel has filled that many bytes.
            unsafe { buf.set_init(count) };
        }
        (received, buf)
    }
}
