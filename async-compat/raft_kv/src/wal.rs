//! A file that grows by one frame at a time: length, checksum, body.
//!
//! An append is done when the frame is on the disk. So a process or a machine that ends in the
//! middle leaves at most the last frame in pieces, and nobody was told that it was there:
//! [`Wal::open`] cuts it off. A broken frame with others behind it is not a crash's work, and an
//! error.

use std::io;
use std::path::{Path, PathBuf};

use corespun::fs::{self, File, OpenOptions};

/// The length of the body, and the checksum of that length and the body; both little-endian.
const HEADER: usize = 8;

pub(crate) struct Wal {
    file: File,
    path: PathBuf,
    end: u64,
}

impl Wal {
    /// Opens the file, made if it is missing; gives the bodies of its frames.
    pub(crate) async fn open(path: &Path) -> io::Result<(Wal, Vec<Vec<u8>>)> {
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .create(true)
            .open(path)
            .await?;
        let bytes = fs::read(path).await?;
        let (frames, end) = frames(&bytes).map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        })?;
        let bodies = frames.into_iter().map(<[u8]>::to_vec).collect();
        let end = end as u64;
        if end < bytes.len() as u64 {
            eprintln!(
                "{}: cutting off what is torn, from byte {end}",
                path.display()
            );
            file.set_len(end).await?;
        }
        file.sync_all().await?;
        // The name too.
        fs::sync_dir(directory(path)).await?;
        let path = path.to_owned();
        Ok((Wal { file, path, end }, bodies))
    }

    /// Adds a frame. When this returns it is on the disk. After an error the file is not to be
    /// written any more: openraft stops its node then.
    pub(crate) async fn append(&mut self, body: &[u8]) -> io::Result<()> {
        let mut frame = Vec::new();
        push_frame(&mut frame, body)?;
        let len = frame.len() as u64;
        self.file.write_all_at(frame, self.end).await.0?;
        self.file.sync_data().await?;
        self.end += len;
        Ok(())
    }

    /// Puts these frames in place of all that there are. When this returns they are on the disk;
    /// a crash leaves either the old ones or these.
    pub(crate) async fn replace(&mut self, bodies: &[Vec<u8>]) -> io::Result<()> {
        let mut bytes = Vec::new();
        for body in bodies {
            push_frame(&mut bytes, body)?;
        }
        let end = bytes.len() as u64;
        replace_file(&self.path, bytes).await?;
        let mut options = OpenOptions::new();
        self.file = options.read(true).write(true).open(&self.path).await?;
        self.end = end;
        Ok(())
    }
}

/// Writes a file whole or not at all: when this returns it is on the disk.
pub(crate) async fn replace_file(path: &Path, bytes: Vec<u8>) -> io::Result<()> {
    let next = path.with_extension("next");
    let file = File::create(&next).await?;
    file.write_all_at(bytes, 0).await.0?;
    file.sync_all().await?;
    fs::rename(&next, path).await?;
    fs::sync_dir(directory(path)).await
}

fn directory(path: &Path) -> &Path {
    path.parent().expect("a file is in a directory")
}

fn push_frame(bytes: &mut Vec<u8>, body: &[u8]) -> io::Result<()> {
    let Ok(len) = u32::try_from(body.len()) else {
        return Err(io::ErrorKind::FileTooLarge.into());
    };
    bytes.extend(len.to_le_bytes());
    bytes.extend(checksum(len, body).to_le_bytes());
    bytes.extend(body);
    Ok(())
}

fn checksum(len: u32, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&len.to_le_bytes());
    hasher.update(body);
    hasher.finalize()
}

/// The bodies of the frames, and where the last whole one ends.
fn frames(bytes: &[u8]) -> io::Result<(Vec<&[u8]>, usize)> {
    let mut bodies = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        match body(rest) {
            Some(body) => {
                bodies.push(body);
                at += HEADER + body.len();
            }
            None if is_torn(rest) => break,
            None => {
                let text = format!("the frame at byte {at} is damaged, and is not the last");
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
        }
    }
    Ok((bodies, at))
}

fn header(bytes: &[u8]) -> Option<(u32, u32)> {
    let (len, rest) = bytes.split_first_chunk()?;
    let sum = rest.first_chunk()?;
    Some((u32::from_le_bytes(*len), u32::from_le_bytes(*sum)))
}

fn body(bytes: &[u8]) -> Option<&[u8]> {
    let (len, sum) = header(bytes)?;
    let body = bytes[HEADER..].get(..len as usize)?;
    (checksum(len, body) == sum).then_some(body)
}

/// Whether a frame that cannot be read may be the last: it reaches to the end of the file or
/// would go on behind it, or its header has not come to the disk.
fn is_torn(rest: &[u8]) -> bool {
    match header(rest) {
        None | Some((0, 0)) => true,
        Some((len, _)) => rest.len() - HEADER <= len as usize,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three_frames() -> (Vec<u8>, [usize; 4]) {
        let mut bytes = Vec::new();
        let mut ends = [0; 4];
        for (number, body) in [&b"one"[..], b"the second", b"3"].into_iter().enumerate() {
            push_frame(&mut bytes, body).unwrap();
            ends[number + 1] = bytes.len();
        }
        (bytes, ends)
    }

    /// Wherever the file is cut off: what was whole is there, and nothing else.
    #[test]
    fn a_torn_tail_is_cut_off_at_any_byte() {
        let (bytes, ends) = three_frames();
        for cut in 0..=bytes.len() {
            let whole = ends.iter().rposition(|&end| end <= cut).unwrap();
            let (bodies, end) = frames(&bytes[..cut]).unwrap();
            assert_eq!((bodies.len(), end), (whole, ends[whole]), "cut at {cut}");
        }
    }

    /// The length of the file has come to the disk, and its last bytes have not.
    #[test]
    fn a_tail_of_zeros_is_cut_off() {
        let (bytes, ends) = three_frames();
        for from in ends[2]..bytes.len() {
            let mut torn = bytes.clone();
            torn[from..].fill(0);
            let (bodies, end) = frames(&torn).unwrap();
            assert_eq!((bodies.len(), end), (2, ends[2]), "zeros from {from}");
        }
    }

    #[test]
    fn a_damaged_frame_before_the_last_is_an_error() {
        let (bytes, ends) = three_frames();
        for at in ends[0] + HEADER..ends[1] {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            let error = frames(&damaged).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "flipped at {at}");
        }
    }
}
