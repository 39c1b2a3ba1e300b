//! Redis's protocol, version 2: commands come as arrays of bulk strings, or as a line of
//! words.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// A command: its name and arguments.
pub(crate) type Request = Vec<Bytes>;

/// As Redis has them.
const MAX_BULK: usize = 512 << 20;
const MAX_ITEMS: usize = 1 << 20;
const MAX_LINE: usize = 64 << 10;

/// Takes the first request out of `input`; `None` when it is not complete yet.
///
/// # Errors
///
/// What is wrong with it; nothing can be understood after that.
pub(crate) fn take_request(input: &mut BytesMut) -> Result<Option<Request>, &'static str> {
    loop {
        match input.first() {
            None => return Ok(None),
            Some(b'*') => return take_array(input),
            Some(_) => {
                let Some(line) = take_line(input)? else {
                    return Ok(None);
                };
                let words = line.split(u8::is_ascii_whitespace);
                let words = words.filter(|word| !word.is_empty());
                let request: Request = words.map(|word| line.slice_ref(word)).collect();
                // An empty line is none.
                if !request.is_empty() {
                    return Ok(Some(request));
                }
            }
        }
    }
}

fn take_line(input: &mut BytesMut) -> Result<Option<Bytes>, &'static str> {
    let Some(end) = input.iter().position(|&byte| byte == b'\n') else {
        return match input.len() > MAX_LINE {
            true => Err("too big inline request"),
            false => Ok(None),
        };
    };
    let mut line = input.split_to(end + 1).freeze();
    line.truncate(end);
    if line.last() == Some(&b'\r') {
        line.truncate(end - 1);
    }
    Ok(Some(line))
}

/// Where a number that begins after the byte at `start` ends, and the number.
fn number(input: &[u8], start: usize) -> Result<Option<(usize, i64)>, &'static str> {
    let rest = &input[start + 1..];
    let Some(length) = rest.iter().take(32).position(|&byte| byte == b'\n') else {
        return match rest.len() >= 32 {
            true => Err("invalid length"),
            false => Ok(None),
        };
    };
    let digits = rest[..length]
        .strip_suffix(b"\r")
        .unwrap_or(&rest[..length]);
    let number = parse_int(digits).ok_or("invalid length")?;
    Ok(Some((start + 1 + length + 1, number)))
}

fn take_array(input: &mut BytesMut) -> Result<Option<Request>, &'static str> {
    let Some((mut at, count)) = number(input, 0)? else {
        return Ok(None);
    };
    let count = usize::try_from(count).unwrap_or(0);
    if count > MAX_ITEMS {
        return Err("invalid multibulk length");
    }
    // First whether it is all there: nothing is taken before.
    let mut ends = Vec::with_capacity(count.min(64));
    for _ in 0..count {
        match input.get(at) {
            None => return Ok(None),
            Some(b'$') => {}
            Some(_) => return Err("expected '$'"),
        }
        let Some((start, length)) = number(input, at)? else {
            return Ok(None);
        };
        let length = usize::try_from(length).map_err(|_| "invalid bulk length")?;
        if length > MAX_BULK {
            return Err("invalid bulk length");
        }
        at = start + length + 2;
        if input.len() < at {
            input.reserve(at - input.len());
            return Ok(None);
        }
        ends.push((start, length));
    }
    let whole = input.split_to(at).freeze();
    let item = |(start, length)| whole.slice(start..start + length);
    Ok(Some(ends.into_iter().map(item).collect()))
}

/// A decimal number as Redis takes it: nothing but digits, after a minus perhaps.
pub(crate) fn parse_int(text: &[u8]) -> Option<i64> {
    if text.first() == Some(&b'+') {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Replies are written in place.
pub(crate) trait Reply {
    fn simple(&mut self, text: &str);
    fn error(&mut self, text: &str);
    fn int(&mut self, number: i64);
    fn bulk(&mut self, bytes: &[u8]);
    fn nil(&mut self);
    fn array(&mut self, count: usize);
}

impl Reply for BytesMut {
    fn simple(&mut self, text: &str) {
        self.put_u8(b'+');
        self.put_slice(text.as_bytes());
        self.put_slice(b"\r\n");
    }

    fn error(&mut self, text: &str) {
        self.put_u8(b'-');
        self.put_slice(text.as_bytes());
        self.put_slice(b"\r\n");
    }

    fn int(&mut self, number: i64) {
        put_number(self, b':', number);
    }

    fn bulk(&mut self, bytes: &[u8]) {
        put_number(self, b'$', bytes.len() as i64);
        self.put_slice(bytes);
        self.put_slice(b"\r\n");
    }

    fn nil(&mut self) {
        self.put_slice(b"$-1\r\n");
    }

    fn array(&mut self, count: usize) {
        put_number(self, b'*', count as i64);
    }
}

fn put_number(out: &mut BytesMut, sigil: u8, number: i64) {
    use std::io::Write;
    out.put_u8(sigil);
    // A vector of bytes takes everything.
    let _ = write!(out.writer(), "{number}\r\n");
}

/// A request as it is written in the append-only file.
pub(crate) fn put_request(out: &mut BytesMut, request: &[Bytes]) {
    out.array(request.len());
    request.iter().for_each(|item| out.bulk(item));
}

/// Gives the memory back that a large request has taken.
pub(crate) fn trim(buffer: &mut BytesMut) {
    if !buffer.has_remaining() && buffer.capacity() > (1 << 20) {
        *buffer = BytesMut::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(input: &[u8]) -> (Vec<Vec<String>>, usize) {
        let mut input = BytesMut::from(input);
        let mut requests = Vec::new();
        while let Some(request) = take_request(&mut input).unwrap() {
            let text = |item: &Bytes| String::from_utf8(item.to_vec()).unwrap();
            requests.push(request.iter().map(text).collect());
        }
        (requests, input.len())
    }

    #[test]
    fn arrays_and_lines_come_one_after_the_other() {
        let (requests, left) = all(b"*2\r\n$3\r\nGET\r\n$1\r\na\r\nPING  hi\r\n\r\n*1\r\n$4\r\nQU");
        assert_eq!(requests, [vec!["GET", "a"], vec!["PING", "hi"]]);
        assert_eq!(left, 10);
    }

    #[test]
    fn what_comes_in_pieces_is_put_together() {
        let whole = b"*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n$5\r\nval\r\n\r\n";
        for cut in 0..whole.len() {
            let mut input = BytesMut::from(&whole[..cut]);
            assert_eq!(take_request(&mut input), Ok(None));
            input.extend_from_slice(&whole[cut..]);
            let request = take_request(&mut input).unwrap().unwrap();
            assert_eq!(request, [&b"SET"[..], b"key", b"val\r\n"]);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for wrong in [
            &b"*1\r\n#4\r\n"[..],
            b"*x\r\n",
            b"*1\r\n$-4\r\n",
            b"*9999999\r\n",
        ] {
            assert!(take_request(&mut BytesMut::from(wrong)).is_err());
        }
    }
}
