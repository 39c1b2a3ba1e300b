//! The NBD wire format: constants, parsing, encoding, and the rules that decide
//! whether a request may be served.
//!
//! Everything here is a pure function of bytes and values; no I/O, no state. The names
//! follow the protocol document (`doc/proto.md` of the NBD project) without the `NBD_`
//! prefix. All integers on the wire are big-endian.

use std::io;

/// `NBDMAGIC`, the first eight bytes a server sends.
pub(crate) const INIT_PASSWD: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`, second word of the greeting and first word of every option.
pub(crate) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// First word of every reply to an option.
pub(crate) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// First word of every request.
pub(crate) const REQUEST_MAGIC: u32 = 0x2560_9513;
/// First word of a simple reply.
pub(crate) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// First word of a structured reply chunk.
pub(crate) const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// A string on the wire is never longer than this.
pub(crate) const MAX_STRING: usize = 4096;

/// Handshake flags, sent by the server in its greeting.
pub(crate) mod handshake_flag {
    pub(crate) const FIXED_NEWSTYLE: u16 = 1 << 0;
    pub(crate) const NO_ZEROES: u16 = 1 << 1;
}

/// Client flags, the answer to the greeting.
pub(crate) mod client_flag {
    pub(crate) const FIXED_NEWSTYLE: u32 = 1 << 0;
    pub(crate) const NO_ZEROES: u32 = 1 << 1;
}

/// Transmission flags: what the export can do.
pub(crate) mod transmission_flag {
    pub(crate) const HAS_FLAGS: u16 = 1 << 0;
    pub(crate) const READ_ONLY: u16 = 1 << 1;
    pub(crate) const SEND_FLUSH: u16 = 1 << 2;
    pub(crate) const SEND_FUA: u16 = 1 << 3;
    pub(crate) const SEND_TRIM: u16 = 1 << 5;
    pub(crate) const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub(crate) const SEND_DF: u16 = 1 << 7;
    pub(crate) const CAN_MULTI_CONN: u16 = 1 << 8;
    pub(crate) const SEND_CACHE: u16 = 1 << 10;
    pub(crate) const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Options a client may send during the handshake.
pub(crate) mod option {
    pub(crate) const EXPORT_NAME: u32 = 1;
    pub(crate) const ABORT: u32 = 2;
    pub(crate) const LIST: u32 = 3;
    pub(crate) const INFO: u32 = 6;
    pub(crate) const GO: u32 = 7;
    pub(crate) const STRUCTURED_REPLY: u32 = 8;
}

/// Types of a reply to an option; the ones with bit 31 set are errors.
pub(crate) mod reply {
    pub(crate) const ACK: u32 = 1;
    pub(crate) const SERVER: u32 = 2;
    pub(crate) const INFO: u32 = 3;
    pub(crate) const ERR_UNSUP: u32 = (1 << 31) + 1;
    pub(crate) const ERR_INVALID: u32 = (1 << 31) + 3;
    pub(crate) const ERR_UNKNOWN: u32 = (1 << 31) + 6;
    pub(crate) const ERR_TOO_BIG: u32 = (1 << 31) + 9;
}

/// Pieces of information about an export, for `option::INFO` and `option::GO`.
pub(crate) mod info {
    pub(crate) const EXPORT: u16 = 0;
    pub(crate) const NAME: u16 = 1;
    pub(crate) const DESCRIPTION: u16 = 2;
    pub(crate) const BLOCK_SIZE: u16 = 3;
}

/// Types of a request.
pub(crate) mod command {
    pub(crate) const READ: u16 = 0;
    pub(crate) const WRITE: u16 = 1;
    pub(crate) const DISC: u16 = 2;
    pub(crate) const FLUSH: u16 = 3;
    pub(crate) const TRIM: u16 = 4;
    pub(crate) const CACHE: u16 = 5;
    pub(crate) const WRITE_ZEROES: u16 = 6;
}

/// Flags of a request.
pub(crate) mod command_flag {
    pub(crate) const FUA: u16 = 1 << 0;
    pub(crate) const NO_HOLE: u16 = 1 << 1;
    pub(crate) const DF: u16 = 1 << 2;
    pub(crate) const FAST_ZERO: u16 = 1 << 4;
}

/// Types and flags of a structured reply chunk.
pub(crate) mod chunk {
    pub(crate) const FLAG_DONE: u16 = 1 << 0;
    pub(crate) const NONE: u16 = 0;
    pub(crate) const OFFSET_DATA: u16 = 1;
    pub(crate) const ERROR: u16 = (1 << 15) + 1;
}

/// Takes the next `N` bytes off the front of `data`; `None` when fewer are left.
pub(crate) fn take<const N: usize>(data: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = data.split_first_chunk()?;
    *data = rest;
    Some(*head)
}

/// The error values the protocol allows in a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum ErrorCode {
    Perm = 1,
    Io = 5,
    NoMem = 12,
    Inval = 22,
    NoSpc = 28,
    Overflow = 75,
    NotSup = 95,
}

impl ErrorCode {
    /// The protocol's word for a failure of the disk.
    ///
    /// [`io::ErrorKind::Unsupported`] becomes `ENOTSUP`, which clients understand only
    /// as the answer to a fast write-zeroes: a disk must not use it for anything else.
    pub(crate) fn of(error: &io::Error) -> ErrorCode {
        use io::ErrorKind::*;
        match error.kind() {
            PermissionDenied | ReadOnlyFilesystem => ErrorCode::Perm,
            StorageFull | QuotaExceeded | FileTooLarge => ErrorCode::NoSpc,
            InvalidInput => ErrorCode::Inval,
            OutOfMemory => ErrorCode::NoMem,
            Unsupported => ErrorCode::NotSup,
            _ => ErrorCode::Io,
        }
    }
}

/// Why a request is answered with an error instead of being served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: ErrorCode,
    /// Sent to the client where the reply has room for it: at most
    /// [`MAX_MESSAGE`] bytes.
    pub(crate) message: &'static str,
}

impl Refusal {
    const fn new(code: ErrorCode, message: &'static str) -> Refusal {
        assert!(message.len() <= MAX_MESSAGE);
        Refusal { code, message }
    }
}

impl From<&io::Error> for Refusal {
    fn from(error: &io::Error) -> Refusal {
        Refusal::new(ErrorCode::of(error), "the disk reported an error")
    }
}

/// A request header as it came, not yet checked against the export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) flags: u16,
    /// One of [`command`], or a number this server does not know.
    pub(crate) command: u16,
    /// Chosen by the client, returned in the reply, never looked into.
    pub(crate) cookie: u64,
    /// In bytes from the start of the export.
    pub(crate) offset: u64,
    /// In bytes.
    pub(crate) length: u32,
}

impl Request {
    /// Bytes of a header on the wire; the payload of a write follows it.
    pub(crate) const LEN: usize = 28;

    /// Reads a header. `Err` holds the word found where the magic should be: nothing
    /// after it can be made sense of, so the connection has to be closed.
    pub(crate) fn parse(header: &[u8; Request::LEN]) -> Result<Request, u32> {
        let mut rest = &header[..];
        let mut word = || take::<4>(&mut rest).map_or(0, u32::from_be_bytes);
        let magic = word();
        if magic != REQUEST_MAGIC {
            return Err(magic);
        }
        let flags_and_command = word();
        let mut long = || u64::from(word()) << 32 | u64::from(word());
        Ok(Request {
            flags: (flags_and_command >> 16) as u16,
            command: flags_and_command as u16,
            cookie: long(),
            offset: long(),
            length: word(),
        })
    }

    /// Bytes of payload that follow the header on the wire.
    pub(crate) fn payload(&self) -> u32 {
        if self.command == command::WRITE {
            self.length
        } else {
            0
        }
    }

    pub(crate) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// A request that passed [`Export::check`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Read,
    Write,
    Disconnect,
    Flush,
    Trim,
    Cache,
    WriteZeroes,
}

/// The size constraints an export announces, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockSizes {
    /// Offsets and lengths are multiples of this; a power of two, at most 65,536.
    pub(crate) minimum: u32,
    /// The smallest size that is served well.
    pub(crate) preferred: u32,
    /// The largest payload of a read or a write.
    pub(crate) maximum: u32,
}

impl Default for BlockSizes {
    /// The protocol's defaults: any byte, 4 KiB, 32 MiB.
    fn default() -> BlockSizes {
        BlockSizes {
            minimum: 1,
            preferred: 4096,
            maximum: 32 << 20,
        }
    }
}

/// What is served: its name and what clients may do with it.
#[derive(Clone, Debug)]
pub(crate) struct Export {
    /// Clients ask for this name, or for the empty one.
    pub(crate) name: String,
    /// For humans.
    pub(crate) description: String,
    /// In bytes.
    pub(crate) size: u64,
    pub(crate) read_only: bool,
    pub(crate) blocks: BlockSizes,
}

impl Export {
    /// Whether `name` means this export: its own name, or the empty one, which the
    /// protocol reserves for the default export.
    pub(crate) fn is_called(&self, name: &[u8]) -> bool {
        name.is_empty() || name == self.name.as_bytes()
    }

    /// The transmission flags of the export, for a client that has negotiated
    /// structured replies or not.
    pub(crate) fn transmission_flags(&self, structured: bool) -> u16 {
        use transmission_flag::*;
        let mut flags = HAS_FLAGS | SEND_FLUSH | SEND_FUA | CAN_MULTI_CONN | SEND_CACHE;
        if self.read_only {
            flags |= READ_ONLY;
        } else {
            flags |= SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO;
        }
        if structured {
            flags |= SEND_DF;
        }
        flags
    }

    /// Decides whether `request` may be served.
    ///
    /// # Errors
    ///
    /// The error the protocol prescribes. The connection stays usable, once the payload
    /// of a refused write has been skipped.
    pub(crate) fn check(&self, request: &Request, structured: bool) -> Result<Command, Refusal> {
        use ErrorCode::*;
        let (command, allowed) = match request.command {
            // Nothing can be replied to this one, whatever its other fields say.
            command::DISC => return Ok(Command::Disconnect),
            command::READ if structured => (Command::Read, command_flag::DF),
            command::READ => (Command::Read, 0),
            command::WRITE => (Command::Write, 0),
            command::FLUSH => (Command::Flush, 0),
            command::TRIM => (Command::Trim, 0),
            command::CACHE => (Command::Cache, 0),
            command::WRITE_ZEROES => (
                Command::WriteZeroes,
                command_flag::NO_HOLE | command_flag::FAST_ZERO,
            ),
            _ => return Err(Refusal::new(Inval, "unknown command")),
        };
        // FUA is valid for every command, even where it has no effect.
        if request.flags & !(allowed | command_flag::FUA) != 0 {
            return Err(Refusal::new(Inval, "flag not valid for this command"));
        }
        if command == Command::Flush {
            return match (request.offset, request.length) {
                (0, 0) => Ok(command),
                _ => Err(Refusal::new(Inval, "flush with an offset or a length")),
            };
        }
        let writes = matches!(
            command,
            Command::Write | Command::Trim | Command::WriteZeroes
        );
        if writes && self.read_only {
            return Err(Refusal::new(Perm, "the export is read-only"));
        }
        if matches!(command, Command::Read | Command::Write) && request.length > self.blocks.maximum
        {
            // EOVERFLOW is a word only clients with structured replies know.
            let code = if structured && command == Command::Read {
                Overflow
            } else {
                Inval
            };
            return Err(Refusal::new(code, "longer than the maximum payload"));
        }
        let end = request.offset.checked_add(u64::from(request.length));
        if end.is_none_or(|end| end > self.size) {
            return Err(match command {
                Command::Write | Command::WriteZeroes => {
                    Refusal::new(NoSpc, "past the end of the export")
                }
                _ => Refusal::new(Inval, "past the end of the export"),
            });
        }
        let minimum = self.blocks.minimum;
        let aligned = request.offset.is_multiple_of(u64::from(minimum))
            && request.length.is_multiple_of(minimum);
        if !aligned {
            return Err(Refusal::new(Inval, "not aligned to the minimum block size"));
        }
        Ok(command)
    }
}

/// Longest message that goes with an error; [`Frame`] has room for it.
pub(crate) const MAX_MESSAGE: usize = 64;

/// A whole reply without data.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    bytes: [u8; 26 + MAX_MESSAGE],
    len: usize,
}

impl Frame {
    const fn empty() -> Frame {
        Frame {
            bytes: [0; 26 + MAX_MESSAGE],
            len: 0,
        }
    }

    fn put(mut self, bytes: &[u8]) -> Frame {
        self.bytes[self.len..][..bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
        self
    }

    fn chunk(flags: u16, kind: u16, cookie: u64, payload: u32) -> Frame {
        Frame::empty()
            .put(&STRUCTURED_REPLY_MAGIC.to_be_bytes())
            .put(&flags.to_be_bytes())
            .put(&kind.to_be_bytes())
            .put(&cookie.to_be_bytes())
            .put(&payload.to_be_bytes())
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// The form of the replies of one connection, as negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReplyStyle {
    Simple,
    Structured,
}

impl ReplyStyle {
    /// What goes before the data of a successful read. Header and data are one frame:
    /// nothing may come between them on the wire.
    pub(crate) fn read_header(self, request: &Request) -> Frame {
        match self {
            ReplyStyle::Simple => simple_reply(0, request.cookie),
            // A content chunk holds at least one byte.
            ReplyStyle::Structured if request.length == 0 => {
                Frame::chunk(chunk::FLAG_DONE, chunk::NONE, request.cookie, 0)
            }
            // One chunk is enough, and may be the final one, because the data is
            // complete before its header is sent.
            ReplyStyle::Structured => Frame::chunk(
                chunk::FLAG_DONE,
                chunk::OFFSET_DATA,
                request.cookie,
                8 + request.length,
            )
            .put(&request.offset.to_be_bytes()),
        }
    }

    /// The reply to a request other than a successful read.
    pub(crate) fn status(self, request: &Request, status: Result<(), Refusal>) -> Frame {
        match (self, status) {
            // Also with structured replies: nothing to add, and four bytes shorter.
            (_, Ok(())) => simple_reply(0, request.cookie),
            (ReplyStyle::Simple, Err(refusal)) => simple_reply(refusal.code as u32, request.cookie),
            (ReplyStyle::Structured, Err(refusal)) => {
                let message = refusal.message.as_bytes();
                Frame::chunk(
                    chunk::FLAG_DONE,
                    chunk::ERROR,
                    request.cookie,
                    6 + message.len() as u32,
                )
                .put(&(refusal.code as u32).to_be_bytes())
                .put(&(message.len() as u16).to_be_bytes())
                .put(message)
            }
        }
    }
}

fn simple_reply(error: u32, cookie: u64) -> Frame {
    Frame::empty()
        .put(&SIMPLE_REPLY_MAGIC.to_be_bytes())
        .put(&error.to_be_bytes())
        .put(&cookie.to_be_bytes())
}

/// Appends one reply to an option.
pub(crate) fn put_option_reply(out: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    out.extend(OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend(option.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
}

/// The data of `option::INFO` and `option::GO`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct InfoRequest<'a> {
    pub(crate) name: &'a [u8],
    /// Pairs of bytes, each a number of [`info`] or one this server does not know.
    wanted: &'a [[u8; 2]],
}

impl<'a> InfoRequest<'a> {
    /// Reads the data; `None` when its lengths do not add up or the name is not a
    /// string as the protocol wants it.
    pub(crate) fn parse(mut data: &'a [u8]) -> Option<InfoRequest<'a>> {
        let length = u32::from_be_bytes(take(&mut data)?) as usize;
        let (name, mut rest) = data.split_at_checked(length)?;
        let count = u16::from_be_bytes(take(&mut rest)?) as usize;
        let (wanted, odd) = rest.as_chunks::<2>();
        let whole = odd.is_empty() && wanted.len() == count;
        (whole && is_string(name)).then_some(InfoRequest { name, wanted })
    }

    /// Whether the client asked for this piece of information.
    pub(crate) fn wants(&self, info: u16) -> bool {
        self.wanted.contains(&info.to_be_bytes())
    }
}

/// Whether `name` is a string as the protocol wants it: UTF-8, no NUL, not too long.
pub(crate) fn is_string(name: &[u8]) -> bool {
    name.len() <= MAX_STRING && !name.contains(&0) && std::str::from_utf8(name).is_ok()
}
