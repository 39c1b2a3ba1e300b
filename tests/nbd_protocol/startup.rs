//! What cannot be served: one clear line, an exit code that says so, and nothing made.

use std::os::unix::fs::PermissionsExt;

use harness::nbd::{Server, listing, refused};

/// Each is refused in a directory that holds `taken`, a file of five bytes, and is left
/// as it was; the line has to hold the text.
#[test]
fn what_cannot_be_served_is_one_line_and_makes_nothing() {
    let cases: &[(&[&str], &str)] = &[
        (&["--socket", "taken"], "taken exists"),
        (
            &["--socket", "taken", "--file", "new.img", "--size", "1M"],
            "taken exists",
        ),
        (&["--socket", "none/nbd.sock"], "none/nbd.sock"),
        (&["--file", "missing"], "--size"),
        (&["--file", "none/new.img", "--size", "1M"], "none/new.img"),
        (&["--file", "taken", "--size", "6"], "5 bytes"),
        (&["--file", "."], "cannot serve ."),
        (&["--file", "."], "directory"),
        (&["--file", "new.img", "--size", "0"], "--size"),
        (
            &["--file", "new.img", "--size", "1M", "--read-only"],
            "--read-only",
        ),
        (&["--memory", "0"], "--memory"),
        (&["--memory", "0M", "--socket", "new.sock"], "--memory"),
        (&["--memory", "12Q"], "12Q"),
        (&["--memory", "99999999T"], "--memory"),
        (
            &["--memory", "99999999999999999999"],
            "larger than a file can be",
        ),
        (&["--listen", "70000"], "a port is at most 65535"),
        (&["--memory", "1000000T"], "RAM disk of"),
        (&["--memory", "1M", "--file", "taken"], "--file"),
        (&["--size", "1M"], "--file"),
        (&["--cores", "xyz", "--socket", "new.sock"], "--cores"),
        (&["--cores", "0", "--socket", "new.sock"], "core"),
        (
            &["--cores", "[1000]", "--file", "new.img", "--size", "1M"],
            "core 1000",
        ),
        (&["--mode", "fast"], "--mode"),
        (&["--listen", "nonsense"], "--listen"),
        (&["--listen", "192.0.2.1:9"], "192.0.2.1:9"),
        (&["--frobnicate"], "--frobnicate"),
        (
            &["--file", "/sys/corespun.img", "--size", "1M"],
            "/sys/corespun.img",
        ),
        (&["--socket", "/sys/corespun.sock"], "/sys/corespun.sock"),
    ];
    for (arguments, text) in cases {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("taken"), b"taken").unwrap();
        let line = refused(directory.path(), *arguments);
        assert!(line.contains(text), "{arguments:?}: {line}");
        assert_eq!(listing(directory.path()), ["taken"], "{arguments:?}");
        let taken = std::fs::read(directory.path().join("taken")).unwrap();
        assert_eq!(taken, b"taken", "{arguments:?}");
    }
}

/// Whatever was given, the line says what is wrong and fits on a screen.
#[test]
fn a_long_argument_is_not_echoed_whole() {
    let directory = tempfile::tempdir().unwrap();
    let long = [("7", "--memory"), ("x", "--memory"), ("x", "--cores")];
    let others = [
        ("f", "--file"),
        ("x", "--mode"),
        ("x", "--listen"),
        ("9", "--cores"),
    ];
    for (text, option) in long.into_iter().chain(others) {
        let line = refused(directory.path(), [option, &text.repeat(5_000)]);
        assert!(line.chars().count() < 500, "{option}: {line}");
        assert!(option == "--file" || line.contains(option), "{line}");
    }
}

#[test]
fn an_empty_file_is_no_disk() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("empty"), b"").unwrap();
    let line = refused(directory.path(), ["--file", "empty"]);
    assert!(line.contains("empty"), "{line}");
}

#[test]
fn a_second_server_leaves_the_socket_and_port_of_the_first_alone() {
    let directory = tempfile::tempdir().unwrap();
    let first = Server::start(["--memory", "1M", "--listen", "0"]);
    let socket = first.socket();
    let line = refused(directory.path(), ["--socket".as_ref(), socket.as_os_str()]);
    assert!(line.contains("another server"), "{line}");
    let (_, port) = first.uris[1].rsplit_once(':').unwrap();
    let line = refused(
        directory.path(),
        [
            "--socket",
            "new.sock",
            "--listen",
            port.trim_end_matches('/'),
        ],
    );
    assert!(line.contains("127.0.0.1"), "{line}");
    assert!(listing(directory.path()).is_empty());
    crate::client::Client::transmitting(&first).expect_well();
    first.stop();
}

#[test]
fn without_options_it_serves_256_mib_in_a_directory_of_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start_in::<&str>(directory, []);
    assert!(server.banner.contains("256 MiB"), "{}", server.banner);
    assert!(server.banner.contains("cores ["), "{}", server.banner);
    let made = listing(server.directory.path());
    assert_eq!(made.len(), 1);
    let private = server.directory.path().join(&made[0]);
    let mode = private.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    assert!(server.uri().contains(&made[0]));
    server.signal(nix::sys::signal::Signal::SIGTERM);
    let directory = server.ended();
    assert!(listing(directory.path()).is_empty());
}
