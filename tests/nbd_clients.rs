//! The NBD server and clients nobody here wrote: libnbd's tools, qemu-img, and fio.
//!
//! Each test runs its clients on every I/O back-end, on memory and on a file, over a Unix
//! socket and TCP. A client that is not installed is said to be skipped; with
//! `CORESPUN_REQUIRE_CLIENTS=1` it fails the test.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use harness::io::io_uring_permitted;
use harness::nbd::{Server, until};

const MIB: usize = 1 << 20;

/// Whether `program` can be run, with arguments that make it say so.
fn has(program: &str, arguments: &[&str]) -> bool {
    let run = Command::new(program)
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if run.is_ok_and(|status| status.success()) {
        return true;
    }
    let required = std::env::var_os("CORESPUN_REQUIRE_CLIENTS").is_some_and(|set| set == "1");
    assert!(!required, "{program} is not installed, and required");
    println!("skipped: no {program}");
    false
}

/// Runs a client, which has to succeed, and returns what it says.
#[track_caller]
fn run<'a>(
    program: &str,
    arguments: impl IntoIterator<Item = &'a str>,
    directory: &Path,
) -> String {
    let arguments: Vec<_> = arguments.into_iter().collect();
    // A client that waits for ever fails instead.
    let output = Command::new("timeout")
        .args(["180", program])
        .args(&arguments)
        .current_dir(directory)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{said}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    said
}

/// Runs `client` on a server of each kind, with a disk of `size` bytes.
fn on_every_server(size: usize, client: impl Fn(&Server)) {
    let size = size.to_string();
    let permitted = io_uring_permitted();
    for backend in ["io-uring", "epoll"] {
        if backend == "io-uring" && !permitted {
            println!("skipped: io_uring is not permitted here");
            continue;
        }
        for disk in [&["--memory"][..], &["--file", "served.img", "--size"]] {
            for tcp in [false, true] {
                let mut arguments = disk.to_vec();
                arguments.extend([&size, "--backend", backend]);
                if tcp {
                    let directory = tempfile::tempdir().unwrap();
                    arguments.extend(["--listen", "0", "--export", "a disk"]);
                    let server = Server::start_in(directory, arguments);
                    client(&server);
                    server.stop();
                } else {
                    let server = Server::start(arguments);
                    client(&server);
                    server.stop();
                }
            }
        }
    }
}

/// Makes a file of `size` random bytes.
fn random_file(path: &Path, size: usize) {
    let mut random = File::open("/dev/urandom").unwrap();
    let mut file = File::create(path).unwrap();
    let mut piece = vec![0; MIB];
    for _ in 0..size / MIB {
        random.read_exact(&mut piece).unwrap();
        file.write_all(&piece).unwrap();
    }
}

/// Checks that two files hold the same bytes.
#[track_caller]
fn same(a: &Path, b: &Path) {
    assert_eq!(a.metadata().unwrap().len(), b.metadata().unwrap().len());
    let (mut a, mut b) = (File::open(a).unwrap(), File::open(b).unwrap());
    let (mut left, mut right) = (vec![0; MIB], vec![0; MIB]);
    loop {
        let count = a.read(&mut left).unwrap();
        if count == 0 {
            return;
        }
        b.read_exact(&mut right[..count]).unwrap();
        assert!(left[..count] == right[..count], "the bytes differ");
    }
}

#[test]
fn nbdinfo_finds_the_disk() {
    if !has("nbdinfo", &["--version"]) {
        return;
    }
    on_every_server(4 * MIB, |server| {
        let size = run("nbdinfo", ["--size", server.uri()], server.directory.path());
        assert_eq!(size.trim(), (4 * MIB).to_string());
        let all = run("nbdinfo", ["--list", server.uri()], server.directory.path());
        for fact in ["can_multi_conn: true", "can_fua: true", "can_df: true"] {
            assert!(all.contains(fact), "no {fact} in {all}");
        }
    });
}

fn nbdcopy_in_and_out(server: &Server, size: usize) {
    let directory = server.directory.path();
    let (source, copy) = (directory.join("in.img"), directory.join("out.img"));
    random_file(&source, size);
    run("nbdcopy", ["--flush", "in.img", server.uri()], directory);
    run("nbdcopy", [server.uri(), "out.img"], directory);
    same(&source, &copy);
}

#[test]
fn nbdcopy_brings_back_what_it_took_in() {
    if has("nbdcopy", &["--version"]) {
        on_every_server(16 * MIB, |server| nbdcopy_in_and_out(server, 16 * MIB));
    }
}

#[test]
fn nbdcopy_brings_back_256_mib_from_the_default_disk() {
    if has("nbdcopy", &["--version"]) {
        let server = Server::start(["--memory", "256M"]);
        nbdcopy_in_and_out(&server, 256 * MIB);
        server.stop();
    }
}

fn qemu_img_in_and_out(server: &Server, size: usize) {
    let directory = server.directory.path();
    let (source, copy) = (directory.join("in.img"), directory.join("out.img"));
    // With a hole, which is brought in by zeroing.
    random_file(&source, size / 2);
    let file = File::options().write(true).open(&source).unwrap();
    file.set_len(size as u64).unwrap();
    // What was there before has to go.
    let garbage = directory.join("garbage.img");
    random_file(&garbage, size);
    let raw = ["-f", "raw", "-O", "raw"];
    for from in ["garbage.img", "in.img"] {
        let arguments = ["convert", "-n"].into_iter().chain(raw);
        run("qemu-img", arguments.chain([from, server.uri()]), directory);
    }
    let arguments = ["convert"].into_iter().chain(raw);
    run(
        "qemu-img",
        arguments.chain([server.uri(), "out.img"]),
        directory,
    );
    same(&source, &copy);
    let compared = ["compare", "-f", "raw", "-F", "raw", "in.img", server.uri()];
    run("qemu-img", compared, directory);
}

#[test]
fn qemu_img_converts_both_ways() {
    if has("qemu-img", &["--version"]) {
        on_every_server(16 * MIB, |server| qemu_img_in_and_out(server, 16 * MIB));
    }
}

#[test]
fn qemu_img_converts_256_mib_both_ways() {
    if has("qemu-img", &["--version"]) {
        let server = Server::start(["--memory", "256M"]);
        qemu_img_in_and_out(&server, 256 * MIB);
        server.stop();
    }
}

/// Two jobs, each in its half of the disk, write every block and read it back.
fn fio_verifies(server: &Server, half: usize) {
    let (size, uri) = (format!("--size={half}"), format!("--uri={}", server.uri()));
    let increment = format!("--offset_increment={half}");
    let fixed = [
        "--name=verify",
        "--ioengine=nbd",
        "--rw=randwrite",
        "--bs=4k",
        "--iodepth=32",
        "--numjobs=2",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--end_fsync=1",
        "--thread",
        "--group_reporting",
    ];
    let arguments = fixed.into_iter().chain([&*size, &increment, &uri]);
    let said = run("fio", arguments, server.directory.path());
    assert!(said.contains("err= 0"), "{said}");
}

#[test]
fn fio_verifies_what_it_wrote_at_random() {
    if has("fio", &["--enghelp=nbd"]) {
        on_every_server(8 * MIB, |server| fio_verifies(server, 4 * MIB));
    }
}

#[test]
fn fio_verifies_the_default_disk() {
    if has("fio", &["--enghelp=nbd"]) {
        let server = Server::start(["--memory", "256M"]);
        fio_verifies(&server, 32 * MIB);
        server.stop();
    }
}

#[test]
fn a_killed_client_process_leaves_no_descriptor() {
    if !has("nbdcopy", &["--version"]) {
        return;
    }
    let server = Server::start(["--file", "served.img", "--size", "64M"]);
    // Helper threads and the like come with the first client.
    run("nbdinfo", [server.uri()], server.directory.path());
    random_file(&server.directory.path().join("in.img"), 64 * MIB);
    let idle = server.descriptors();
    for _ in 0..8 {
        let mut client = Command::new("nbdcopy")
            .args(["in.img", server.uri()])
            .current_dir(server.directory.path())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let busy = until("the client connects or ends", || {
            let ended = client.try_wait().unwrap().is_some();
            (ended || server.descriptors() > idle).then_some(!ended)
        });
        client.kill().unwrap();
        client.wait().unwrap();
        assert!(busy, "the client ended by itself");
    }
    until("all descriptors are closed", || {
        (server.descriptors() <= idle).then_some(())
    });
    run("nbdinfo", [server.uri()], server.directory.path());
    server.stop();
}
