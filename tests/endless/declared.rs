//! What the library's sources declare that can be awaited or polled.

use std::collections::BTreeSet;
use std::path::Path;

/// What is not in the table, and why.
pub(crate) const EXEMPT: &[(&str, &str)] = &[
    (
        "io/delay.rs Future for Delay",
        "internal: its time has passed once",
    ),
    (
        "io/detached.rs Future for FileOp",
        "each needs a turn of the driver",
    ),
    (
        "io/op.rs Future for Op",
        "internal: fs/file.rs, each needs a turn of the driver",
    ),
    (
        "net/socket.rs Stream for stream",
        "the halves' trait: nothing to poll",
    ),
    ("sim/builder.rs fn poll_time", "a setting"),
    ("sim/handle.rs fn delay", "`sim_stand_ins.rs` loops on it"),
    (
        "sim/network.rs fn poll_recv_from",
        "`sim_stand_ins.rs` loops on it",
    ),
    (
        "sim/network.rs fn recv_from",
        "`sim_stand_ins.rs` loops on it",
    ),
    (
        "sim/stream.rs AsyncRead for SimStream",
        "`sim_stand_ins.rs` loops on it",
    ),
    (
        "sim/stream.rs AsyncWrite for SimStream",
        "`sim_stand_ins.rs` loops on it",
    ),
    (
        "sync/async_task.rs Future for FallibleTask",
        "stands in for a crate in models",
    ),
    (
        "sync/event.rs Future for Listener",
        "stands in for a crate in models",
    ),
    (
        "task/budget.rs Future for Unconstrained",
        "its contract is to have no budget",
    ),
    (
        "task/raw/future.rs Future for TaskFuture",
        "the task itself",
    ),
    (
        "task/reply.rs Future for Reply",
        "internal: calls, moves, modes and others wait by it",
    ),
    (
        "task/yield_now.rs Future for YieldNow",
        "gives way by contract",
    ),
];

/// The traits that make a type a source.
const TRAITS: [&str; 5] = ["Future", "Stream", "AsyncRead", "AsyncWrite", "Sink"];

/// Each as file and item: `net/tcp.rs fn connect`, `time/sleep.rs Future for Sleep`.
pub(crate) fn sources() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    visit(&root, &root, &mut found);
    assert!(found.len() > 50, "{found:?}");
    found
}

fn visit(root: &Path, directory: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.strip_prefix(root).unwrap().to_str().unwrap();
        if path.is_dir() {
            visit(root, &path, found);
        } else if name.ends_with(".rs") && !name.ends_with("tests.rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            found.extend(items(&text).map(|item| format!("{name} {item}")));
        }
    }
}

fn items(text: &str) -> impl Iterator<Item = String> {
    let code = text.split("#[cfg(test)]\nmod tests {").next();
    let lines = code.unwrap_or_default().lines().map(str::trim);
    let mut function = "";
    lines
        .filter(|line| !line.starts_with("//"))
        .filter_map(move |line| {
            let asynchronous = line.strip_prefix("pub async fn ");
            if let Some(rest) = asynchronous.or(line.strip_prefix("pub fn ")) {
                function = identifier(rest);
                if asynchronous.is_some() || function.starts_with("poll_") {
                    return Some(format!("fn {function}"));
                }
            }
            // Those of a trait are found where it is implemented.
            let inherent = !function.is_empty();
            if inherent && (line.contains("-> impl Future<") || line.contains("-> impl Stream<")) {
                return Some(format!("fn {function}"));
            }
            let (name, implementor) = line.strip_prefix("impl")?.split_once(" for ")?;
            // The trait's own name, after its path and the generics of the block.
            let name = identifier(name.rsplit([' ', ':']).next()?);
            let implementor = identifier(implementor.trim_start_matches('$'));
            TRAITS
                .contains(&name)
                .then(|| format!("{name} for {implementor}"))
        })
}

/// The identifier that `text` begins with.
fn identifier(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_');
    &text[..end.unwrap_or(text.len())]
}
