//! The server, by `redis-cli`: each command, and what outlives the server.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

/// The server of the package that builds this: on corespun or on tokio.
const PROGRAM: &str = match option_env!("CARGO_BIN_EXE_ported_kv") {
    Some(path) => path,
    None => match option_env!("CARGO_BIN_EXE_ported_kv_on_tokio") {
        Some(path) => path,
        None => panic!("no server is built for this test"),
    },
};

/// Whether `redis-cli` is there. Where it has to be, its absence fails the test.
fn has_client() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let found = Command::new("redis-cli").arg("--version").output().is_ok();
        if !found {
            let required = std::env::var_os("CORESPUN_REQUIRE_CLIENTS").is_some();
            assert!(!required, "redis-cli is not installed");
            eprintln!("skipped: redis-cli is not installed");
        }
        found
    })
}

struct Server {
    child: Child,
    output: BufReader<ChildStdout>,
    port: String,
}

impl Server {
    fn start(args: &[&str]) -> Server {
        let mut child = Command::new(PROGRAM)
            .args(["--port", "0"])
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let port = line.trim().rsplit(':').next().unwrap().to_owned();
        Server {
            child,
            output,
            port,
        }
    }

    fn client(&self) -> Command {
        let mut client = Command::new("redis-cli");
        client.args(["-p", &self.port]);
        client
    }

    /// What `redis-cli` prints for a command, as it is written in a shell.
    fn say(&self, command: &str) -> String {
        let words = command.split(' ');
        let output = self.client().arg("--no-raw").args(words).output().unwrap();
        text(output)
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status();
        assert!(sent.unwrap().success());
    }

    /// Stops it as an administrator does; says what it printed.
    fn stop(mut self) -> String {
        self.signal("TERM");
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut self.output, &mut rest).unwrap();
        assert!(self.child.wait().unwrap().success());
        rest
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(output: Output) -> String {
    String::from_utf8(output.stdout)
        .unwrap()
        .trim_end()
        .to_owned()
}

/// Commands, and what `redis-cli` prints for them.
const DIALOGUE: &[(&str, &str)] = &[
    ("PING", "PONG"),
    ("ECHO hello", "\"hello\""),
    ("SET a 1", "OK"),
    ("GET a", "\"1\""),
    ("GET none", "(nil)"),
    ("SET a 2 NX", "(nil)"),
    ("SET a 2 XX GET", "\"1\""),
    ("SETNX a 3", "(integer) 0"),
    ("INCR a", "(integer) 3"),
    ("DECRBY a 10", "(integer) -7"),
    ("INCRBY a 100", "(integer) 93"),
    ("APPEND a 0", "(integer) 3"),
    ("STRLEN a", "(integer) 3"),
    ("MSET b x c y", "OK"),
    (
        "MGET a b none c",
        "1) \"930\"\n2) \"x\"\n3) (nil)\n4) \"y\"",
    ),
    ("EXISTS a b none", "(integer) 2"),
    ("TYPE a", "string"),
    (
        "INCR b",
        "(error) ERR value is not an integer or out of range",
    ),
    ("GETDEL c", "\"y\""),
    ("DEL a b c", "(integer) 2"),
    ("HSET h f 1 g 2", "(integer) 2"),
    ("HSET h f 3", "(integer) 0"),
    ("HGET h f", "\"3\""),
    ("HMGET h f none", "1) \"3\"\n2) (nil)"),
    ("HLEN h", "(integer) 2"),
    ("HEXISTS h g", "(integer) 1"),
    ("HINCRBY h f 4", "(integer) 7"),
    ("HDEL h g", "(integer) 1"),
    ("HGETALL h", "1) \"f\"\n2) \"7\""),
    ("HKEYS h", "1) \"f\""),
    ("HVALS h", "1) \"7\""),
    (
        "GET h",
        "(error) WRONGTYPE Operation against a key holding the wrong kind of value",
    ),
    ("HDEL h f", "(integer) 1"),
    ("TYPE h", "none"),
    ("RPUSH l b c", "(integer) 2"),
    ("LPUSH l a", "(integer) 3"),
    ("LRANGE l 0 -1", "1) \"a\"\n2) \"b\"\n3) \"c\""),
    ("LINDEX l -1", "\"c\""),
    ("LPOP l", "\"a\""),
    ("RPOP l", "\"c\""),
    ("LLEN l", "(integer) 1"),
    ("RPUSH l x y z", "(integer) 4"),
    ("LTRIM l 1 2", "OK"),
    ("LRANGE l 0 -1", "1) \"x\"\n2) \"y\""),
    ("SETEX e 100 v", "OK"),
    ("TTL e", "(integer) 100"),
    ("PERSIST e", "(integer) 1"),
    ("TTL e", "(integer) -1"),
    ("EXPIRE e 50", "(integer) 1"),
    ("TTL e", "(integer) 50"),
    ("EXPIRE e 0", "(integer) 1"),
    ("TTL e", "(integer) -2"),
    ("KEYS *", "1) \"l\""),
    ("DBSIZE", "(integer) 1"),
    ("PUBLISH nobody hears", "(integer) 0"),
    ("SELECT 0", "OK"),
    ("NONSENSE", "(error) ERR unknown command 'NONSENSE'"),
    (
        "GET",
        "(error) ERR wrong number of arguments for 'get' command",
    ),
    ("FLUSHALL", "OK"),
    ("DBSIZE", "(integer) 0"),
];

#[test]
fn each_command_answers_as_redis_does() {
    if !has_client() {
        return;
    }
    for threads in ["1", "2"] {
        let server = Server::start(&["--threads", threads]);
        for (command, answer) in DIALOGUE {
            assert_eq!(server.say(command), *answer, "{command}");
        }
        assert_eq!(server.stop().trim(), "stopped");
    }
}

#[test]
fn a_key_is_gone_after_its_time() {
    if !has_client() {
        return;
    }
    let server = Server::start(&[]);
    assert_eq!(server.say("SET a 1 PX 30"), "OK");
    while server.say("EXISTS a") != "(integer) 0" {}
    assert_eq!(server.say("GET a"), "(nil)");
}

#[test]
fn many_commands_at_once_are_answered_in_order() {
    if !has_client() {
        return;
    }
    let server = Server::start(&["--threads", "2"]);
    let mut client = server.client();
    let client = client
        .arg("--pipe")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut client = client.spawn().unwrap();
    let mut commands = String::new();
    for number in 0..10_000 {
        let key = format!("key:{number}");
        let set = format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n$1\r\nv\r\n", key.len());
        commands.push_str(&set);
    }
    client
        .stdin
        .take()
        .unwrap()
        .write_all(commands.as_bytes())
        .unwrap();
    let said = text(client.wait_with_output().unwrap());
    assert!(said.ends_with("errors: 0, replies: 10000"), "{said}");
    assert_eq!(server.say("DBSIZE"), "(integer) 10000");
}

#[test]
fn a_subscriber_hears_what_is_published() {
    if !has_client() {
        return;
    }
    for threads in ["1", "2"] {
        let server = Server::start(&["--threads", threads]);
        let mut client = server.client();
        let client = client.args(["SUBSCRIBE", "news"]).stdout(Stdio::piped());
        let mut client = client.spawn().unwrap();
        let mut heard = BufReader::new(client.stdout.take().unwrap()).lines();
        let mut next = |count: usize| -> Vec<String> {
            heard.by_ref().take(count).map(Result::unwrap).collect()
        };
        assert_eq!(next(3), ["subscribe", "news", "1"]);
        assert_eq!(server.say("PUBLISH news hello"), "(integer) 1");
        assert_eq!(next(3), ["message", "news", "hello"]);
        client.kill().unwrap();
        client.wait().unwrap();
        while server.say("PUBLISH news again") != "(integer) 0" {}
    }
}

fn file(directory: &Path) -> PathBuf {
    directory.join("appended")
}

#[test]
fn what_was_written_is_there_after_a_restart() {
    if !has_client() {
        return;
    }
    for fsync in ["always", "everysec", "no"] {
        let directory = tempfile::tempdir().unwrap();
        let path = file(directory.path());
        let args = ["--aof", path.to_str().unwrap(), "--fsync", fsync];
        let server = Server::start(&args);
        for command in [
            "SET text 1",
            "INCR text",
            "HSET hash f v",
            "RPUSH list a b c",
            "LPOP list",
            "SETEX lasting 1000 v",
            "SET short v PX 1",
            "SET gone v",
            "DEL gone",
        ] {
            assert!(!server.say(command).contains("error"), "{command}");
        }
        server.stop();
        let server = Server::start(&args);
        assert_eq!(server.say("GET text"), "\"2\"");
        assert_eq!(server.say("HGET hash f"), "\"v\"");
        assert_eq!(server.say("LRANGE list 0 -1"), "1) \"b\"\n2) \"c\"");
        assert_ne!(server.say("TTL lasting"), "(integer) -1");
        assert_ne!(server.say("TTL lasting"), "(integer) -2");
        assert_eq!(server.say("EXISTS short gone"), "(integer) 0");
    }
}

/// With `--fsync always`, a reply says that the change is on the disk.
#[test]
fn what_was_acknowledged_outlives_a_crash() {
    if !has_client() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = file(directory.path());
    let args = [
        "--threads",
        "2",
        "--aof",
        path.to_str().unwrap(),
        "--fsync",
        "always",
    ];
    let mut server = Server::start(&args);
    for number in 0..20 {
        assert_eq!(server.say("INCR n"), format!("(integer) {}", number + 1));
    }
    server.signal("KILL");
    assert_eq!(server.child.wait().unwrap().signal(), Some(9));
    // A change that was cut short in the middle.
    let mut cut = std::fs::OpenOptions::new()
        .append(true)
        .open(&path)
        .unwrap();
    cut.write_all(b"*2\r\n$4\r\nINCR\r\n$1").unwrap();
    let server = Server::start(&args);
    assert_eq!(server.say("INCR n"), "(integer) 21");
}

#[test]
fn the_server_stops_though_clients_stay() {
    if !has_client() {
        return;
    }
    let server = Server::start(&["--threads", "2"]);
    let mut idle =
        std::net::TcpStream::connect(("127.0.0.1", server.port.parse().unwrap())).unwrap();
    idle.set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    assert_eq!(server.say("PING"), "PONG");
    assert_eq!(server.stop().trim(), "stopped");
    assert_eq!(std::io::Read::read(&mut idle, &mut [0]).unwrap(), 0);
}
