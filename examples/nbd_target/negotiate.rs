//! The fixed newstyle handshake: from the greeting to the transmission phase.
//!
//! Generic over the byte stream, so that tests run it on an in-memory pipe. It reads
//! exactly the bytes of each message and never one more: the first request is still in
//! the stream when it returns. Memory is bounded by the longest option it accepts.

use std::io;

use futures::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::protocol::{
    self, Export, InfoRequest, client_flag, handshake_flag, info, option, reply,
};

/// Longest data of an option that is read at all: room for the longest name and a
/// long list of wanted information. A client that announces more is cut off.
const MAX_OPTION: u32 = 64 << 10;

/// Options one client may send. Real ones send fewer than ten; without a limit a
/// client could keep the handshake going for ever.
const MAX_OPTIONS: u32 = 256;

/// How a handshake ended that did not fail.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The transmission phase begins.
    Transmit {
        /// Whether reads are answered with structured replies.
        structured: bool,
    },
    /// The client left: it only wanted to know something.
    Left,
}

/// Why a handshake failed; the connection has to be closed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum NegotiateError {
    /// Also an end of the stream inside a message.
    #[error("handshake cut off: {0}")]
    Io(#[from] io::Error),
    /// The protocol wants the connection dropped then.
    #[error("unknown client flags {0:#x}")]
    ClientFlags(u32),
    /// What follows cannot be made sense of.
    #[error("bad option magic {0:#018x}")]
    OptionMagic(u64),
    /// More than this server is willing to read.
    #[error("option {option} announces {length} bytes of data, more than {MAX_OPTION}")]
    OptionTooLong { option: u32, length: u32 },
    /// More than [`MAX_OPTIONS`].
    #[error("more than {MAX_OPTIONS} options")]
    TooManyOptions,
    /// Without fixed newstyle there is no way to refuse an option.
    #[error("option {0} from a client without fixed newstyle")]
    NotFixed(u32),
    /// `OPT_EXPORT_NAME` knows no error reply.
    #[error("no export is called {0:?}")]
    UnknownExport(String),
}

/// Leads the handshake as the server of `export`.
///
/// # Errors
///
/// When the client breaks the protocol in a way that has no error reply, or the stream
/// fails. The caller closes the stream.
///
/// # Cancel safety
///
/// Not cancel safe: dropped half-way, the stream is in the middle of a message. Drop the
/// stream with it.
pub(crate) async fn negotiate<S>(stream: &mut S, export: &Export) -> Result<Outcome, NegotiateError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let offered = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
    let mut greeting = Vec::with_capacity(18);
    greeting.extend(protocol::INIT_PASSWD.to_be_bytes());
    greeting.extend(protocol::OPTION_MAGIC.to_be_bytes());
    greeting.extend(offered.to_be_bytes());
    send(stream, &greeting).await?;

    let Some(flags) = read_or_end::<4, _>(stream).await? else {
        return Ok(Outcome::Left);
    };
    let flags = u32::from_be_bytes(flags);
    if flags & !(client_flag::FIXED_NEWSTYLE | client_flag::NO_ZEROES) != 0 {
        return Err(NegotiateError::ClientFlags(flags));
    }

    let mut haggle = Haggle {
        export,
        fixed: flags & client_flag::FIXED_NEWSTYLE != 0,
        no_zeroes: flags & client_flag::NO_ZEROES != 0,
        structured: false,
    };
    let mut out = Vec::new();
    for _ in 0..MAX_OPTIONS {
        let Some(header) = read_or_end::<16, _>(stream).await? else {
            return Ok(Outcome::Left);
        };
        let (option, length) = parse_option_header(&header)?;
        let mut data = vec![0; length as usize];
        stream.read_exact(&mut data).await?;

        out.clear();
        let next = haggle.answer(option, &data, &mut out)?;
        let sent = send(stream, &out).await;
        match next {
            Next::Continue => sent?,
            Next::Transmit => {
                sent?;
                let structured = haggle.structured;
                return Ok(Outcome::Transmit { structured });
            }
            // A client that aborts need not wait for the answer.
            Next::Leave => return Ok(Outcome::Left),
        }
    }
    Err(NegotiateError::TooManyOptions)
}

/// What follows an option.
enum Next {
    Continue,
    Transmit,
    Leave,
}

/// Answers options one by one; knows what has been agreed so far.
struct Haggle<'a> {
    export: &'a Export,
    fixed: bool,
    no_zeroes: bool,
    structured: bool,
}

impl Haggle<'_> {
    /// Writes the replies to one option into `out`.
    fn answer(
        &mut self,
        option: u32,
        data: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Next, NegotiateError> {
        if !self.fixed && option != option::EXPORT_NAME {
            return Err(NegotiateError::NotFixed(option));
        }
        let mut put = |kind, data: &[u8]| {
            protocol::put_option_reply(out, option, kind, data);
        };
        match option {
            option::EXPORT_NAME => {
                self.put_export(data, out)?;
                return Ok(Next::Transmit);
            }
            option::ABORT => {
                put(reply::ACK, &[]);
                return Ok(Next::Leave);
            }
            option::LIST | option::STRUCTURED_REPLY if !data.is_empty() => {
                put(reply::ERR_INVALID, b"this option takes no data");
            }
            option::LIST => {
                let name = self.export.name.as_bytes();
                let mut server = (name.len() as u32).to_be_bytes().to_vec();
                server.extend(name);
                server.extend(self.export.description.as_bytes());
                put(reply::SERVER, &server);
                put(reply::ACK, &[]);
            }
            option::STRUCTURED_REPLY => {
                self.structured = true;
                put(reply::ACK, &[]);
            }
            option::INFO | option::GO => match InfoRequest::parse(data) {
                None if data.len() > 2 * protocol::MAX_STRING => {
                    put(reply::ERR_TOO_BIG, b"the request is too long");
                }
                None => put(reply::ERR_INVALID, b"the request is malformed"),
                Some(request) if !self.export.is_called(request.name) => {
                    put(reply::ERR_UNKNOWN, b"no export has this name");
                }
                Some(request) => {
                    for item in self.information(&request) {
                        put(reply::INFO, &item);
                    }
                    put(reply::ACK, &[]);
                    if option == option::GO {
                        return Ok(Next::Transmit);
                    }
                }
            },
            _ => put(reply::ERR_UNSUP, b"this server does not know the option"),
        }
        Ok(Next::Continue)
    }

    /// The old way into transmission: no reply header, no way to refuse.
    fn put_export(&self, name: &[u8], out: &mut Vec<u8>) -> Result<(), NegotiateError> {
        if !self.export.is_called(name) {
            let name = String::from_utf8_lossy(name).into_owned();
            return Err(NegotiateError::UnknownExport(name));
        }
        out.extend(self.export.size.to_be_bytes());
        out.extend(self.flags().to_be_bytes());
        if !self.no_zeroes {
            out.extend([0; 124]);
        }
        Ok(())
    }

    /// What is told about the export: always its size and flags, the rest when asked.
    fn information(&self, request: &InfoRequest<'_>) -> Vec<Vec<u8>> {
        let Export {
            name,
            description,
            size,
            blocks,
            ..
        } = self.export;
        let item = |kind: u16, data: &[&[u8]]| [&kind.to_be_bytes(), &*data.concat()].concat();
        let mut items = vec![item(
            info::EXPORT,
            &[&size.to_be_bytes(), &self.flags().to_be_bytes()],
        )];
        if request.wants(info::NAME) {
            items.push(item(info::NAME, &[name.as_bytes()]));
        }
        if request.wants(info::DESCRIPTION) {
            items.push(item(info::DESCRIPTION, &[description.as_bytes()]));
        }
        if request.wants(info::BLOCK_SIZE) {
            items.push(item(
                info::BLOCK_SIZE,
                &[
                    &blocks.minimum.to_be_bytes(),
                    &blocks.preferred.to_be_bytes(),
                    &blocks.maximum.to_be_bytes(),
                ],
            ));
        }
        items
    }

    fn flags(&self) -> u16 {
        self.export.transmission_flags(self.structured)
    }
}

/// Checks the magic and the limit, and returns the option and the length of its data.
fn parse_option_header(header: &[u8; 16]) -> Result<(u32, u32), NegotiateError> {
    let word = |at: usize| {
        u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let magic = u64::from(word(0)) << 32 | u64::from(word(4));
    if magic != protocol::OPTION_MAGIC {
        return Err(NegotiateError::OptionMagic(magic));
    }
    let (option, length) = (word(8), word(12));
    if length > MAX_OPTION {
        return Err(NegotiateError::OptionTooLong { option, length });
    }
    Ok((option, length))
}

/// Reads `N` bytes; `None` when the stream ends before the first of them, which is how
/// clients leave that have seen enough.
async fn read_or_end<const N: usize, S>(stream: &mut S) -> io::Result<Option<[u8; N]>>
where
    S: AsyncRead + Unpin,
{
    let mut bytes = [0; N];
    let first = stream.read(&mut bytes).await?;
    if first == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut bytes[first..]).await?;
    Ok(Some(bytes))
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}
