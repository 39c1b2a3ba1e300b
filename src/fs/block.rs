//! A file as a block device.

use std::io;

use super::File;
use crate::io::{Block, IoBuf, IoBufMut};

/// With [`File::sync_data`] as its flush.
impl Block for File {
    async fn size(&self) -> io::Result<u64> {
        self.len().await
    }

    async fn read_at<B: IoBufMut>(&self, buf: B, offset: u64) -> (io::Result<usize>, B) {
        File::read_at(self, buf, offset).await
    }

    async fn write_at<B: IoBuf>(&self, buf: B, offset: u64) -> (io::Result<usize>, B) {
        File::write_at(self, buf, offset).await
    }

    async fn flush(&self) -> io::Result<()> {
        self.sync_data().await
    }

    async fn read_exact_at<B: IoBufMut>(&self, buf: B, offset: u64) -> (io::Result<()>, B) {
        File::read_exact_at(self, buf, offset).await
    }

    async fn write_all_at<B: IoBuf>(&self, buf: B, offset: u64) -> (io::Result<()>, B) {
        File::write_all_at(self, buf, offset).await
    }
}
