//! What the commands do.

use std::collections::{HashMap, VecDeque};

use bytes::{Bytes, BytesMut};

use crate::resp::{Reply, parse_int};
use crate::server::Shared;
use crate::store::{Shard, Store, Value, now_ms};

/// What a command has done besides its reply.
pub(crate) enum Effect {
    None,
    /// The change of this number was logged.
    Changed(u64),
    Subscribe,
    Unsubscribe,
    HangUp,
    Stop,
}

const WRONG_TYPE: &str = "WRONGTYPE Operation against a key holding the wrong kind of value";
const NOT_INT: &str = "ERR value is not an integer or out of range";
const SYNTAX: &str = "ERR syntax error";

/// Why a command was refused.
enum Refused {
    /// How many arguments it has.
    Arity,
    Text(&'static str),
}

type Done<T> = Result<T, Refused>;

fn refuse<T>(text: &'static str) -> Done<T> {
    Err(Refused::Text(text))
}

fn int(text: &[u8]) -> Done<i64> {
    parse_int(text).ok_or(Refused::Text(NOT_INT))
}

/// A command's name is not longer than this.
const NAME: usize = 16;

/// The name of a command, in capitals.
fn name<'a>(request: &[Bytes], buffer: &'a mut [u8; NAME]) -> &'a [u8] {
    let given = request.first().map_or(&[][..], |name| name);
    let Some(place) = buffer.get_mut(..given.len()) else {
        return b"";
    };
    place.copy_from_slice(given);
    place.make_ascii_uppercase();
    place
}

/// Runs a command and writes its reply.
pub(crate) fn execute(shared: &Shared, request: &[Bytes], out: &mut BytesMut) -> Effect {
    let store = &shared.store;
    let mut buffer = [0; NAME];
    let given = name(request, &mut buffer);
    let args = request.get(1..).unwrap_or(&[]);
    let start = out.len();
    let done = match given {
        b"SUBSCRIBE" if args.is_empty() => Err(Refused::Arity),
        b"SUBSCRIBE" => return Effect::Subscribe,
        b"UNSUBSCRIBE" => return Effect::Unsubscribe,
        b"QUIT" => {
            out.simple("OK");
            return Effect::HangUp;
        }
        b"SHUTDOWN" => return Effect::Stop,
        b"PUBLISH" => match args {
            [channel, message] => {
                out.int(shared.hub.publish(channel, message) as i64);
                Ok(())
            }
            _ => Err(Refused::Arity),
        },
        _ => match look(store, given, args, out) {
            Some(done) => done,
            None => match change_with(store, given, request, out) {
                Some(Ok(logged)) => return logged.map_or(Effect::None, Effect::Changed),
                Some(Err(refused)) => Err(refused),
                None => {
                    let name = String::from_utf8_lossy(request.first().map_or(b"", |name| name));
                    out.error(&format!("ERR unknown command '{}'", name.escape_default()));
                    Ok(())
                }
            },
        },
    };
    if let Err(refused) = done {
        // Instead of what it may have written already.
        out.truncate(start);
        match refused {
            Refused::Text(text) => out.error(text),
            Refused::Arity => {
                let name = String::from_utf8_lossy(given).to_lowercase();
                out.error(&format!(
                    "ERR wrong number of arguments for '{name}' command"
                ));
            }
        }
    }
    Effect::None
}

/// Applies a command that changes the store; for the append-only file.
pub(crate) fn change(store: &Store, request: &[Bytes], out: &mut BytesMut) {
    let mut buffer = [0; NAME];
    // What is in the file was no error when it was written.
    let _ = change_with(store, name(request, &mut buffer), request, out);
}

/// The commands that change nothing. `None`: it is not one of them.
fn look(store: &Store, name: &[u8], args: &[Bytes], out: &mut BytesMut) -> Option<Done<()>> {
    Some(match (name, args) {
        (b"PING", []) => {
            out.simple("PONG");
            Ok(())
        }
        (b"PING" | b"ECHO", [text]) => {
            out.bulk(text);
            Ok(())
        }
        (b"SELECT", [index]) => match int(index) {
            Ok(0) => {
                out.simple("OK");
                Ok(())
            }
            Ok(_) => refuse("ERR DB index is out of range"),
            Err(error) => Err(error),
        },
        (b"COMMAND", _) | (b"CONFIG", [_, ..]) => {
            out.array(0);
            Ok(())
        }
        (b"CLIENT", _) => {
            out.simple("OK");
            Ok(())
        }
        (b"INFO", _) => {
            let keys = store.len();
            out.bulk(format!("# Keyspace\r\ndb0:keys={keys}\r\n").as_bytes());
            Ok(())
        }
        (b"DBSIZE", []) => {
            out.int(store.len() as i64);
            Ok(())
        }
        (b"KEYS", [pattern]) => {
            let keys = store.keys(|key| glob(pattern, key));
            out.array(keys.len());
            keys.iter().for_each(|key| out.bulk(key));
            Ok(())
        }
        (b"GET", [key]) => text(&mut store.shard(key), key).map(|value| match value {
            Some(value) => out.bulk(&value),
            None => out.nil(),
        }),
        (b"STRLEN", [key]) => text(&mut store.shard(key), key)
            .map(|value| out.int(value.map_or(0, |value| value.len() as i64))),
        (b"MGET", [_, ..]) => {
            out.array(args.len());
            for key in args {
                match text(&mut store.shard(key), key) {
                    Ok(Some(value)) => out.bulk(&value),
                    _ => out.nil(),
                }
            }
            Ok(())
        }
        (b"EXISTS", [_, ..]) => {
            let there = args
                .iter()
                .filter(|key| store.shard(key).get(key).is_some());
            out.int(there.count() as i64);
            Ok(())
        }
        (b"TYPE", [key]) => {
            let mut shard = store.shard(key);
            let entry = shard.get(key);
            out.simple(entry.map_or("none", |entry| entry.value.type_name()));
            Ok(())
        }
        (b"TTL" | b"PTTL", [key]) => {
            let left = match store.shard(key).get(key).map(|entry| entry.expires) {
                None => -2,
                Some(None) => -1,
                Some(Some(at)) => {
                    let left = at.saturating_sub(now_ms()) as i64;
                    if name == b"TTL" {
                        (left + 500) / 1000
                    } else {
                        left
                    }
                }
            };
            out.int(left);
            Ok(())
        }
        (b"HGET", [key, field]) => with_hash(store, key, |hash| match hash.get(field) {
            Some(value) => out.bulk(value),
            None => out.nil(),
        }),
        (b"HMGET", [key, fields @ ..]) if !fields.is_empty() => with_hash(store, key, |hash| {
            out.array(fields.len());
            for field in fields {
                match hash.get(field) {
                    Some(value) => out.bulk(value),
                    None => out.nil(),
                }
            }
        }),
        (b"HGETALL", [key]) => with_hash(store, key, |hash| {
            out.array(2 * hash.len());
            for (field, value) in hash {
                out.bulk(field);
                out.bulk(value);
            }
        }),
        (b"HKEYS", [key]) => with_hash(store, key, |hash| {
            out.array(hash.len());
            hash.keys().for_each(|field| out.bulk(field));
        }),
        (b"HVALS", [key]) => with_hash(store, key, |hash| {
            out.array(hash.len());
            hash.values().for_each(|value| out.bulk(value));
        }),
        (b"HLEN", [key]) => with_hash(store, key, |hash| out.int(hash.len() as i64)),
        (b"HEXISTS", [key, field]) => {
            with_hash(store, key, |hash| out.int(hash.contains_key(field).into()))
        }
        (b"LLEN", [key]) => with_list(store, key, |list| out.int(list.len() as i64)),
        (b"LINDEX", [key, index]) => int(index).and_then(|index| {
            with_list(store, key, |list| {
                let place = from_end(index, list.len());
                match place.and_then(|place| list.get(place)) {
                    Some(item) => out.bulk(item),
                    None => out.nil(),
                }
            })
        }),
        (b"LRANGE", [key, start, stop]) => int(start).and_then(|start| {
            let stop = int(stop)?;
            with_list(store, key, |list| {
                let (start, count) = range(start, stop, list.len());
                out.array(count);
                list.iter()
                    .skip(start)
                    .take(count)
                    .for_each(|item| out.bulk(item));
            })
        }),
        (
            b"PING" | b"ECHO" | b"SELECT" | b"CONFIG" | b"DBSIZE" | b"KEYS" | b"GET" | b"STRLEN"
            | b"MGET" | b"EXISTS" | b"TYPE" | b"TTL" | b"PTTL" | b"HGET" | b"HMGET" | b"HGETALL"
            | b"HKEYS" | b"HVALS" | b"HLEN" | b"HEXISTS" | b"LLEN" | b"LINDEX" | b"LRANGE",
            _,
        ) => Err(Refused::Arity),
        _ => return None,
    })
}

/// The commands that change the store. `None`: it is not one of them. Else the number
/// under which the change was logged, if there was one.
fn change_with(
    store: &Store,
    name: &[u8],
    request: &[Bytes],
    out: &mut BytesMut,
) -> Option<Done<Option<u64>>> {
    let args = request.get(1..).unwrap_or(&[]);
    Some(match (name, args) {
        (b"SET", [key, value, options @ ..]) => set(store, key, value, options, out),
        (b"SETNX", [key, value]) => {
            let mut shard = store.shard(key);
            let new = shard.get(key).is_none();
            let logged = new.then(|| put(store, &mut shard, key, value, None));
            out.int(new.into());
            Ok(logged.flatten())
        }
        (b"SETEX" | b"PSETEX", [key, time, value]) => int(time).and_then(|time| {
            let unit = if name == b"SETEX" { 1000 } else { 1 };
            let expires = after(time, unit)?;
            out.simple("OK");
            Ok(put(store, &mut store.shard(key), key, value, Some(expires)))
        }),
        (b"MSET", pairs) if !pairs.is_empty() && pairs.len() % 2 == 0 => {
            let mut logged = None;
            for pair in pairs.chunks_exact(2) {
                let mut shard = store.shard(&pair[0]);
                logged = put(store, &mut shard, &pair[0], &pair[1], None).or(logged);
            }
            out.simple("OK");
            Ok(logged)
        }
        (b"GETDEL", [key]) => {
            let mut shard = store.shard(key);
            text(&mut shard, key).map(|value| match value {
                Some(value) => {
                    shard.remove(key);
                    out.bulk(&value);
                    store.log(&[Bytes::from_static(b"DEL"), key.clone()])
                }
                None => {
                    out.nil();
                    None
                }
            })
        }
        (b"APPEND", [key, more]) => {
            let mut shard = store.shard(key);
            text(&mut shard, key).map(|value| {
                let value = value.unwrap_or_default();
                let whole = Bytes::from([&value[..], &more[..]].concat());
                out.int(whole.len() as i64);
                let expires = shard.get(key).and_then(|entry| entry.expires);
                shard.insert(owned(key), Value::Text(whole), expires);
                store.log(request)
            })
        }
        (b"INCR", [key]) => add(store, key, 1, request, out),
        (b"DECR", [key]) => add(store, key, -1, request, out),
        (b"INCRBY", [key, by]) => int(by).and_then(|by| add(store, key, by, request, out)),
        (b"DECRBY", [key, by]) => int(by).and_then(|by| {
            let by = by.checked_neg().ok_or(Refused::Text(NOT_INT))?;
            add(store, key, by, request, out)
        }),
        (b"DEL" | b"UNLINK", keys @ [_, ..]) => {
            let (mut count, mut logged) = (0, None);
            for key in keys {
                let mut shard = store.shard(key);
                if shard.get(key).is_some() {
                    shard.remove(key);
                    count += 1;
                    logged = store
                        .log(&[Bytes::from_static(b"DEL"), key.clone()])
                        .or(logged);
                }
            }
            out.int(count);
            Ok(logged)
        }
        (b"FLUSHALL" | b"FLUSHDB", _) => {
            store.clear();
            out.simple("OK");
            Ok(store.log(&[Bytes::from_static(b"FLUSHALL")]))
        }
        (b"EXPIRE" | b"PEXPIRE" | b"EXPIREAT" | b"PEXPIREAT", [key, time]) => {
            int(time).and_then(|time| {
                let at = match name {
                    b"EXPIRE" => from_now(time, 1000)?,
                    b"PEXPIRE" => from_now(time, 1)?,
                    b"EXPIREAT" => time.checked_mul(1000).ok_or(Refused::Text(NOT_INT))?,
                    _ => time,
                };
                let mut shard = store.shard(key);
                let there = shard.set_expiry(key, Some(u64::try_from(at).unwrap_or(0)));
                out.int(there.into());
                // Not how long, but until when: it is read later.
                let at = Bytes::from(at.to_string());
                let logged =
                    there.then(|| store.log(&[Bytes::from_static(b"PEXPIREAT"), key.clone(), at]));
                Ok(logged.flatten())
            })
        }
        (b"PERSIST", [key]) => {
            let mut shard = store.shard(key);
            let expires = shard.get(key).is_some_and(|entry| entry.expires.is_some());
            if expires {
                shard.set_expiry(key, None);
            }
            out.int(expires.into());
            Ok(expires.then(|| store.log(request)).flatten())
        }
        (b"HSET" | b"HMSET", [key, pairs @ ..]) if !pairs.is_empty() && pairs.len() % 2 == 0 => {
            let mut shard = store.shard(key);
            hash(&mut shard, key).map(|hash| {
                let mut new = 0;
                for pair in pairs.chunks_exact(2) {
                    new += i64::from(hash.insert(owned(&pair[0]), owned(&pair[1])).is_none());
                }
                match name {
                    b"HSET" => out.int(new),
                    _ => out.simple("OK"),
                }
                store.log(request)
            })
        }
        (b"HDEL", [key, fields @ ..]) if !fields.is_empty() => {
            let mut shard = store.shard(key);
            let gone = hash(&mut shard, key).map(|hash| {
                let gone = fields.iter().filter(|field| hash.remove(*field).is_some());
                gone.count() as i64
            });
            shard.drop_empty(key);
            gone.map(|gone| {
                out.int(gone);
                (gone > 0).then(|| store.log(request)).flatten()
            })
        }
        (b"HINCRBY", [key, field, by]) => int(by).and_then(|by| {
            let mut shard = store.shard(key);
            let sum = hash(&mut shard, key).and_then(|hash| {
                let value = match hash.get(field) {
                    Some(value) => {
                        parse_int(value).ok_or(Refused::Text("ERR hash value is not an integer"))?
                    }
                    None => 0,
                };
                let sum = value.checked_add(by);
                let sum = sum.ok_or(Refused::Text("ERR increment or decrement would overflow"))?;
                hash.insert(owned(field), Bytes::from(sum.to_string()));
                Ok(sum)
            });
            shard.drop_empty(key);
            out.int(sum?);
            Ok(store.log(request))
        }),
        (b"LPUSH" | b"RPUSH", [key, items @ ..]) if !items.is_empty() => {
            let mut shard = store.shard(key);
            list(&mut shard, key).map(|list| {
                for item in items {
                    match name {
                        b"LPUSH" => list.push_front(owned(item)),
                        _ => list.push_back(owned(item)),
                    }
                }
                out.int(list.len() as i64);
                store.log(request)
            })
        }
        (b"LPOP" | b"RPOP", [key]) => {
            let mut shard = store.shard(key);
            let item = list(&mut shard, key).map(|list| match name {
                b"LPOP" => list.pop_front(),
                _ => list.pop_back(),
            });
            shard.drop_empty(key);
            item.map(|item| match item {
                Some(item) => {
                    out.bulk(&item);
                    store.log(request)
                }
                None => {
                    out.nil();
                    None
                }
            })
        }
        (b"LTRIM", [key, start, stop]) => int(start).and_then(|start| {
            let stop = int(stop)?;
            let mut shard = store.shard(key);
            let trimmed = list(&mut shard, key).map(|list| {
                let (start, count) = range(start, stop, list.len());
                list.truncate(start + count);
                list.drain(..start);
            });
            shard.drop_empty(key);
            trimmed?;
            out.simple("OK");
            Ok(store.log(request))
        }),
        (
            b"SET" | b"SETNX" | b"SETEX" | b"PSETEX" | b"MSET" | b"GETDEL" | b"APPEND" | b"INCR"
            | b"DECR" | b"INCRBY" | b"DECRBY" | b"DEL" | b"UNLINK" | b"EXPIRE" | b"PEXPIRE"
            | b"EXPIREAT" | b"PEXPIREAT" | b"PERSIST" | b"HSET" | b"HMSET" | b"HDEL" | b"HINCRBY"
            | b"LPUSH" | b"RPUSH" | b"LPOP" | b"RPOP" | b"LTRIM",
            _,
        ) => Err(Refused::Arity),
        _ => return None,
    })
}

/// A copy of its own: a slice would keep the whole read buffer.
fn owned(bytes: &Bytes) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

/// Sets a key and logs that, with when it expires instead of how long that is off.
fn put(
    store: &Store,
    shard: &mut Shard,
    key: &Bytes,
    value: &Bytes,
    expires: Option<u64>,
) -> Option<u64> {
    shard.insert(owned(key), Value::Text(owned(value)), expires);
    let set = Bytes::from_static(b"SET");
    match expires {
        None => store.log(&[set, key.clone(), value.clone()]),
        Some(at) => {
            let at = Bytes::from(at.to_string());
            let until = Bytes::from_static(b"PXAT");
            store.log(&[set, key.clone(), value.clone(), until, at])
        }
    }
}

fn set(
    store: &Store,
    key: &Bytes,
    value: &Bytes,
    options: &[Bytes],
    out: &mut BytesMut,
) -> Done<Option<u64>> {
    let (mut only_new, mut only_old, mut get, mut keep) = (false, false, false, false);
    let mut expires = None;
    let mut options = options.iter();
    while let Some(option) = options.next() {
        let mut time = || match options.next() {
            Some(time) => int(time),
            None => refuse(SYNTAX),
        };
        match option.to_ascii_uppercase().as_slice() {
            b"NX" => only_new = true,
            b"XX" => only_old = true,
            b"GET" => get = true,
            b"KEEPTTL" => keep = true,
            b"EX" => expires = Some(after(time()?, 1000)?),
            b"PX" => expires = Some(after(time()?, 1)?),
            b"PXAT" => expires = Some(u64::try_from(time()?).unwrap_or(0)),
            _ => return refuse(SYNTAX),
        }
    }
    if (only_new && only_old) || (keep && expires.is_some()) {
        return refuse(SYNTAX);
    }
    let mut shard = store.shard(key);
    let before = match get {
        true => text(&mut shard, key)?,
        false => None,
    };
    let there = (only_new || only_old || keep)
        .then(|| shard.get(key).map(|entry| entry.expires))
        .flatten();
    let sets = !(only_new && there.is_some() || only_old && there.is_none());
    if keep {
        expires = there.flatten();
    }
    let logged = sets.then(|| put(store, &mut shard, key, value, expires));
    match (get, before) {
        (true, Some(before)) => out.bulk(&before),
        (true, None) => out.nil(),
        (false, _) if sets => out.simple("OK"),
        (false, _) => out.nil(),
    }
    Ok(logged.flatten())
}

fn add(
    store: &Store,
    key: &Bytes,
    by: i64,
    request: &[Bytes],
    out: &mut BytesMut,
) -> Done<Option<u64>> {
    let mut shard = store.shard(key);
    let value = match text(&mut shard, key)? {
        Some(value) => int(&value)?,
        None => 0,
    };
    let sum = value.checked_add(by);
    let sum = sum.ok_or(Refused::Text("ERR increment or decrement would overflow"))?;
    let expires = shard.get(key).and_then(|entry| entry.expires);
    let text = Value::Text(Bytes::from(sum.to_string()));
    shard.insert(owned(key), text, expires);
    out.int(sum);
    Ok(store.log(request))
}

/// The text that a key holds.
fn text(shard: &mut Shard, key: &[u8]) -> Done<Option<Bytes>> {
    match shard.get(key).map(|entry| &entry.value) {
        None => Ok(None),
        Some(Value::Text(text)) => Ok(Some(text.clone())),
        Some(_) => refuse(WRONG_TYPE),
    }
}

/// The hash that a key holds; a new one if it holds nothing.
fn hash<'a>(shard: &'a mut Shard, key: &Bytes) -> Done<&'a mut HashMap<Bytes, Bytes>> {
    if shard.get(key).is_none() {
        shard.insert(owned(key), Value::Hash(HashMap::new()), None);
    }
    match shard.get(key).map(|entry| &mut entry.value) {
        Some(Value::Hash(hash)) => Ok(hash),
        _ => refuse(WRONG_TYPE),
    }
}

/// The list that a key holds; a new one if it holds nothing.
fn list<'a>(shard: &'a mut Shard, key: &Bytes) -> Done<&'a mut VecDeque<Bytes>> {
    if shard.get(key).is_none() {
        shard.insert(owned(key), Value::List(VecDeque::new()), None);
    }
    match shard.get(key).map(|entry| &mut entry.value) {
        Some(Value::List(list)) => Ok(list),
        _ => refuse(WRONG_TYPE),
    }
}

fn with_hash(store: &Store, key: &Bytes, f: impl FnOnce(&HashMap<Bytes, Bytes>)) -> Done<()> {
    match store.shard(key).get(key).map(|entry| &entry.value) {
        None => f(&HashMap::new()),
        Some(Value::Hash(hash)) => f(hash),
        Some(_) => return refuse(WRONG_TYPE),
    }
    Ok(())
}

fn with_list(store: &Store, key: &Bytes, f: impl FnOnce(&VecDeque<Bytes>)) -> Done<()> {
    match store.shard(key).get(key).map(|entry| &entry.value) {
        None => f(&VecDeque::new()),
        Some(Value::List(list)) => f(list),
        Some(_) => return refuse(WRONG_TYPE),
    }
    Ok(())
}

/// `time` units of so many milliseconds from now.
fn from_now(time: i64, unit: i64) -> Done<i64> {
    let now = i64::try_from(now_ms()).unwrap_or(i64::MAX);
    let at = time.checked_mul(unit).and_then(|ms| now.checked_add(ms));
    at.ok_or(Refused::Text("ERR invalid expire time"))
}

/// As [`from_now`], for what has to be later than now.
fn after(time: i64, unit: i64) -> Done<u64> {
    if time <= 0 {
        return refuse("ERR invalid expire time");
    }
    from_now(time, unit).map(|at| at as u64)
}

/// A place counted from the end if it is negative.
fn from_end(index: i64, len: usize) -> Option<usize> {
    let index = if index < 0 { index + len as i64 } else { index };
    usize::try_from(index).ok()
}

/// Where a range begins, and how many it holds.
fn range(start: i64, stop: i64, len: usize) -> (usize, usize) {
    let start = from_end(start, len).unwrap_or(0).min(len);
    let end = from_end(stop, len).map_or(0, |stop| stop.saturating_add(1).min(len));
    (start, end.saturating_sub(start))
}

/// Redis's patterns: `*`, `?`, `[a-c]`, `[^x]`, and a backslash.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern, text) {
        ([], _) => text.is_empty(),
        ([b'*', rest @ ..], _) => (0..=text.len()).any(|skipped| glob(rest, &text[skipped..])),
        (_, []) => false,
        ([b'?', rest @ ..], [_, text @ ..]) => glob(rest, text),
        ([b'\\', byte, rest @ ..], [first, text @ ..]) => byte == first && glob(rest, text),
        ([b'[', rest @ ..], [first, text @ ..]) => {
            let Some(end) = rest.iter().position(|&byte| byte == b']') else {
                return false;
            };
            let (set, rest) = (&rest[..end], &rest[end + 1..]);
            let (set, negated) = match set {
                [b'^', set @ ..] => (set, true),
                set => (set, false),
            };
            in_set(set, *first) != negated && glob(rest, text)
        }
        ([byte, rest @ ..], [first, text @ ..]) => byte == first && glob(rest, text),
    }
}

fn in_set(set: &[u8], byte: u8) -> bool {
    match set {
        [] => false,
        [low, b'-', high, rest @ ..] => (*low..=*high).contains(&byte) || in_set(rest, byte),
        [one, rest @ ..] => *one == byte || in_set(rest, byte),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_redis() {
        for (pattern, text, matches) in [
            ("*", "", true),
            ("h?llo", "hello", true),
            ("h[a-c]llo", "hbllo", true),
            ("h[^e]llo", "hello", false),
            (r"a\*", "a*", true),
            (r"a\*", "ab", false),
            ("user:*:name", "user:1:name", true),
        ] {
            let found = glob(pattern.as_bytes(), text.as_bytes());
            assert_eq!(found, matches, "{pattern} {text}");
        }
    }

    #[test]
    fn ranges_may_be_counted_from_the_end() {
        assert_eq!(range(0, -1, 3), (0, 3));
        assert_eq!(range(-2, -1, 3), (1, 2));
        assert_eq!(range(5, 9, 3), (3, 0));
        assert_eq!(range(1, 0, 3), (1, 0));
    }
}
