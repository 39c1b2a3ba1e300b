//! What storage logic asks of a block device, so that one program runs on a file, on a
//! device, and on a simulated disk.

use std::future::Future;
use std::io;

use super::buf::{IoBuf, IoBufMut};

/// A block device, or something like it: reads and writes at offsets, with owned buffers,
/// and a flush. [`fs::File`](crate::fs::File) is one, and
/// [`SimDisk`](crate::sim::SimDisk).
///
/// A write that has completed is seen by every read after it; it survives the loss of
/// power only if a flush that began after it has completed. Which part of a write that was
/// not flushed survives is open. An operation that has begun takes effect although its
/// future is dropped.
///
/// # Examples
///
/// ```
/// use std::io;
/// use corespun::io::Block;
///
/// /// Written, and there also after the loss of power.
/// async fn commit(device: &impl Block, record: Vec<u8>, at: u64) -> io::Result<()> {
///     device.write_all_at(record, at).await.0?;
///     device.flush().await
/// }
/// # let mut sim = corespun::sim::Sim::builder().build();
/// # let disk = sim.handle().disk(4096, Default::default());
/// # sim.block_on(async move { commit(&disk, vec![1; 512], 0).await }).unwrap();
/// ```
pub trait Block {
    /// How many bytes it has.
    fn size(&self) -> impl Future<Output = io::Result<u64>>;

    /// Reads into the whole of `buf` from `offset` on; says how many bytes that were, fewer
    /// at the end.
    fn read_at<B: IoBufMut>(
        &self,
        buf: B,
        offset: u64,
    ) -> impl Future<Output = (io::Result<usize>, B)>;

    /// Writes the initialised bytes of `buf` from `offset` on; says how many.
    fn write_at<B: IoBuf>(
        &self,
        buf: B,
        offset: u64,
    ) -> impl Future<Output = (io::Result<usize>, B)>;

    /// Makes all writes durable that have completed before.
    fn flush(&self) -> impl Future<Output = io::Result<()>>;

    /// Reads into the whole of `buf`; `UnexpectedEof` if the device ends before.
    fn read_exact_at<B: IoBufMut>(
        &self,
        mut buf: B,
        offset: u64,
    ) -> impl Future<Output = (io::Result<()>, B)> {
        async move {
            let (total, mut done) = (buf.bytes_total(), 0);
            while done < total {
                let (read, part) = self.read_at(buf.slice(done..), offset + done as u64).await;
                buf = part.into_inner();
                match read {
                    Ok(0) => return (Err(io::ErrorKind::UnexpectedEof.into()), buf),
                    Ok(count) => done += count,
                    Err(error) => return (Err(error), buf),
                }
            }
            (Ok(()), buf)
        }
    }

    /// Writes all the initialised bytes of `buf`; `WriteZero` if the device ends before.
    fn write_all_at<B: IoBuf>(
        &self,
        mut buf: B,
        offset: u64,
    ) -> impl Future<Output = (io::Result<()>, B)> {
        async move {
            let (total, mut done) = (buf.bytes_init(), 0);
            while done < total {
                let (written, part) = self.write_at(buf.slice(done..), offset + done as u64).await;
                buf = part.into_inner();
                match written {
                    Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), buf),
                    Ok(count) => done += count,
                    Err(error) => return (Err(error), buf),
                }
            }
            (Ok(()), buf)
        }
    }
}
