//! What a simulated program is connected with: streams, datagrams and disks that fail in
//! the ways of the real ones, and only in those.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use corespun::cpu::CpuSet;
use corespun::fs::File;
use corespun::io::Block;
use corespun::sim::{self, DatagramFaults, DiskFaults, Sim, SimStream, StreamFaults};
use corespun::{task, time};
use futures::{AsyncReadExt, AsyncWriteExt};

fn us(us: u64) -> Duration {
    Duration::from_micros(us)
}

fn bytes(count: usize) -> Vec<u8> {
    (0..count)
        .map(|index| (index * 7 + index / 251) as u8)
        .collect()
}

/// Through a buffer that is smaller than what is sent, from core to core.
#[test]
fn a_stream_brings_every_byte_in_order_and_then_the_end() {
    let runs = sim::explore(0..50, |sim| {
        let faults = StreamFaults {
            buffer: 100,
            short: 2,
            ..StreamFaults::default()
        };
        let (mut near, mut far) = sim.handle().byte_stream(faults);
        let thread = sim.thread().cpumask(CpuSet::single(1)).create().unwrap();
        let reads = thread.spawn(async move {
            let mut got = Vec::new();
            far.read_to_end(&mut got).await.unwrap();
            far.write_all(&got[..10]).await.unwrap();
            got
        });
        let begin = sim.now();
        let answer = sim.block_on(async move {
            near.write_all(&bytes(2_000)).await.unwrap();
            near.close().await.unwrap();
            let mut answer = Vec::new();
            near.read_to_end(&mut answer).await.unwrap();
            answer
        });
        assert_eq!(answer, bytes(10));
        assert_eq!(sim.block_on(reads).unwrap(), bytes(2_000));
        assert!(sim.now() - begin >= us(20), "they took a while");
    });
    runs.unwrap();
}

#[test]
fn a_stream_breaks_for_both_and_wakes_who_waits() {
    let mut sim = Sim::builder().cores(2).build();
    let (mut near, mut far) = sim.handle().byte_stream(StreamFaults::default());
    let thread = sim.thread().create().unwrap();
    let reads = thread.spawn(async move {
        let mut byte = [0];
        let read = far.read(&mut byte).await.map_err(|error| error.kind());
        (read, far)
    });
    sim.run_until_idle().unwrap();
    near.break_connection();
    let (read, mut far) = sim.block_on(reads).unwrap();
    assert_eq!(read, Err(io::ErrorKind::ConnectionReset));
    let kinds = sim.block_on(async move {
        let write = near.write(b"x").await.unwrap_err().kind();
        let flush = far.flush().await.unwrap_err().kind();
        (write, flush)
    });
    assert_eq!(
        kinds,
        (io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset)
    );
}

#[test]
fn who_writes_to_an_end_that_is_gone_is_told() {
    let mut sim = Sim::builder().build();
    let faults = StreamFaults {
        buffer: 4,
        short: 0,
        ..StreamFaults::default()
    };
    let (mut near, far) = sim.handle().byte_stream(faults);
    let written = sim.enter_main(async move {
        assert_eq!(near.write(b"12345678").await.unwrap(), 4);
        near.write(b"5678").await.map_err(|error| error.kind())
    });
    sim.run_until_idle().unwrap();
    // It waits for room, until there will be none.
    drop(far);
    assert_eq!(
        sim.block_on(written).unwrap(),
        Err(io::ErrorKind::BrokenPipe)
    );
}

/// Spawns on the main thread.
trait EnterMain {
    fn enter_main<F>(&mut self, future: F) -> task::JoinHandle<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static;
}

impl EnterMain for Sim {
    fn enter_main<F>(&mut self, future: F) -> task::JoinHandle<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        // Spawned in there, awaited elsewhere.
        let spawned = self.block_on(async { Some(task::spawn_local(future)) });
        spawned.expect("it was spawned")
    }
}

/// One in so many writes breaks it, and whoever does not notice has lost bytes: the two
/// ends never disagree about a byte that was read.
#[test]
fn a_stream_that_breaks_by_chance_has_told_nothing_wrong() {
    let broken = Arc::new(AtomicU64::new(0));
    let runs = sim::explore(0..100, |sim| {
        let faults = StreamFaults {
            breaks: 20,
            ..StreamFaults::default()
        };
        let (mut near, mut far) = sim.handle().byte_stream(faults);
        let thread = sim.thread().create().unwrap();
        let read = |mut stream: SimStream| async move {
            let mut got = Vec::new();
            let result = stream.read_to_end(&mut got).await;
            (result, got)
        };
        let reads = thread.spawn(async move {
            let mut first = [0];
            match far.read_exact(&mut first).await {
                Ok(()) => read(far).await,
                Err(error) => (Err(error), Vec::new()),
            }
        });
        let written = sim.block_on(async move {
            near.write_all(&bytes(5_000)).await?;
            near.close().await
        });
        let (result, got) = sim.block_on(reads).unwrap();
        assert_eq!(got, bytes(5_000)[1..][..got.len()]);
        assert_eq!(result.is_ok(), written.is_ok());
        broken.fetch_add(u64::from(written.is_err()), Ordering::Relaxed);
    });
    runs.unwrap();
    assert!((1..100).contains(&broken.load(Ordering::Relaxed)));
}

fn address(host: u8) -> SocketAddr {
    ([10, 0, 0, host], 7).into()
}

/// Sends numbers; says which arrived, in their order.
fn send_numbers(sim: &mut Sim, faults: DatagramFaults, count: u8) -> Vec<u8> {
    let network = sim.handle().network(faults);
    let (one, other) = (network.bind(address(1)), network.bind(address(2)));
    let (one, other) = (one.unwrap(), other.unwrap());
    let thread = sim.thread().cpumask(CpuSet::single(1)).create().unwrap();
    let receives = thread.spawn(async move {
        let mut got = Vec::new();
        let mut buf = [0; 4];
        let patience = Duration::from_millis(50);
        while let Ok(received) = time::timeout(patience, other.recv_from(&mut buf)).await {
            assert_eq!(received.unwrap(), (1, address(1)));
            got.push(buf[0]);
        }
        got
    });
    sim.block_on(async move {
        for number in 0..count {
            one.send_to(&[number], address(2)).unwrap();
            time::sleep(us(20)).await;
        }
    });
    sim.block_on(receives).unwrap()
}

#[test]
fn a_network_without_faults_loses_nothing_and_keeps_the_order() {
    let runs = sim::explore(0..20, |sim| {
        let faults = DatagramFaults {
            loss: 0,
            duplicates: 0,
            reorders: false,
            ..DatagramFaults::default()
        };
        assert_eq!(send_numbers(sim, faults, 100), (0..100).collect::<Vec<_>>());
    });
    runs.unwrap();
}

#[test]
fn a_bad_network_loses_doubles_and_reorders_and_makes_nothing_up() {
    let (mut lost, mut doubled, mut reordered) = (0, 0, 0);
    let runs = sim::explore(0..50, |sim| {
        let got = send_numbers(sim, DatagramFaults::default(), 100);
        assert!(got.iter().all(|&number| number < 100));
        let count = |number| got.iter().filter(|&&one| one == number).count();
        lost += (0..100).filter(|&number| count(number) == 0).count();
        doubled += (0..100).filter(|&number| count(number) == 2).count();
        assert!((0..100).all(|number| count(number) <= 2));
        reordered += usize::from(!got.is_sorted());
    });
    assert_eq!(runs.unwrap(), 50);
    // Of 5,000: one in 20, one in 50.
    assert!((150..350).contains(&lost), "{lost} lost");
    assert!((50..150).contains(&doubled), "{doubled} doubled");
    assert!(reordered > 25, "{reordered} runs out of order");
}

#[test]
fn nothing_passes_a_partition_and_all_does_when_it_is_healed() {
    let mut sim = Sim::builder().cores(2).build();
    let faults = DatagramFaults {
        loss: 0,
        duplicates: 0,
        ..DatagramFaults::default()
    };
    let network = sim.handle().network(faults);
    let sockets = [1, 2, 3].map(|host| network.bind(address(host)).unwrap());
    assert!(network.bind(address(1)).is_err(), "the address is taken");
    let arrives = async move |from: usize, to: usize| {
        sockets[from]
            .send_to(b"x", sockets[to].local_addr())
            .unwrap();
        let mut buf = [0; 1];
        let wait = time::timeout(Duration::from_millis(5), sockets[to].recv_from(&mut buf));
        wait.await.is_ok()
    };
    sim.block_on(async move {
        network.partition([address(1)]);
        assert!(!arrives(0, 1).await && !arrives(2, 0).await);
        assert!(arrives(1, 2).await, "both on one side");
        network.heal();
        assert!(arrives(0, 1).await && arrives(2, 0).await);
    });
}

/// What was flushed is there, whatever happens; what was not may be there by sectors.
#[test]
fn a_crash_loses_only_what_was_not_flushed() {
    let (mut kept, mut lost, mut torn) = (0, 0, 0);
    let runs = sim::explore(0..100, |sim| {
        let disk = sim.handle().disk(16 << 10, DiskFaults::default());
        let found = sim.block_on(async move {
            disk.write_all_at(vec![1; 4096], 0).await.0.unwrap();
            disk.flush().await.unwrap();
            disk.write_all_at(vec![2; 4096], 4096).await.0.unwrap();
            assert_eq!(disk.unflushed(), 1);
            disk.crash();
            let dead = disk.read_at(vec![0; 1], 0).await.0;
            assert!(dead.is_err() && disk.write_at(vec![0], 0).await.0.is_err());
            let disk = disk.remount();
            let (read, found) = disk.read_exact_at(vec![9; 16 << 10], 0).await;
            read.unwrap();
            assert_eq!(disk.size().await.unwrap(), 16 << 10);
            found
        });
        assert!(found[..4096].iter().all(|&byte| byte == 1));
        assert!(found[8192..].iter().all(|&byte| byte == 0));
        let sectors: Vec<_> = found[4096..8192].chunks(512).collect();
        for sector in &sectors {
            assert!(sector.iter().all(|byte| *byte == sector[0]));
        }
        let written = sectors.iter().filter(|sector| sector[0] == 2).count();
        match written {
            0 => lost += 1,
            8 => kept += 1,
            _ => torn += 1,
        }
    });
    assert_eq!(runs.unwrap(), 100);
    assert!(kept > 10 && lost > 10 && torn > 10, "{kept} {lost} {torn}");
}

#[test]
fn a_disk_that_does_not_lose_keeps_what_was_written() {
    let runs = sim::explore(0..20, |sim| {
        let faults = DiskFaults {
            loses_unflushed: false,
            ..DiskFaults::default()
        };
        let disk = sim.handle().disk(8192, faults);
        let found = sim.block_on(async move {
            disk.write_all_at(vec![3; 700], 100).await.0.unwrap();
            disk.crash();
            disk.remount().read_exact_at(vec![0; 900], 0).await.1
        });
        let expected = [vec![0; 100], vec![3; 700], vec![0; 100]].concat();
        assert_eq!(found, expected);
    });
    runs.unwrap();
}

#[test]
fn a_flush_covers_what_had_completed_when_it_began() {
    let mut sim = Sim::builder().build();
    let disk = sim.handle().disk(4096, DiskFaults::default());
    sim.block_on(async move {
        disk.write_all_at(vec![1; 512], 0).await.0.unwrap();
        // Under way while the flush is: it may or may not be covered, and is not.
        let write = disk.write_all_at(vec![2; 512], 512);
        let ((written, _), flushed) = futures::join!(write, disk.flush());
        flushed.unwrap();
        written.unwrap();
        assert_eq!(disk.unflushed(), 1);
        disk.flush().await.unwrap();
        assert_eq!(disk.unflushed(), 0);
        disk.crash();
        let found = disk.remount().read_exact_at(vec![0; 1024], 0).await.1;
        assert_eq!(found, [vec![1; 512], vec![2; 512]].concat());
    });
}

/// A write takes effect although nobody waits for its end, and a short one is gone on
/// with.
#[test]
fn a_disk_fails_as_often_as_it_is_told_and_moves_less_than_asked() {
    let mut sim = Sim::builder().build();
    let faults = DiskFaults {
        read_errors: 4,
        write_errors: 4,
        flush_errors: 4,
        short: 2,
        ..DiskFaults::default()
    };
    let disk = sim.handle().disk(4096, faults);
    let (errors, shorts) = sim.block_on(async move {
        let (mut errors, mut shorts) = ([0; 3], 0);
        for _ in 0..400 {
            match disk.write_at(vec![1; 100], 0).await.0 {
                Ok(count) => shorts += usize::from(count < 100),
                Err(_) => errors[0] += 1,
            }
            errors[1] += usize::from(disk.read_at(vec![0; 100], 0).await.0.is_err());
            errors[2] += usize::from(disk.flush().await.is_err());
        }
        disk.set_faults(DiskFaults {
            short: 2,
            ..DiskFaults::default()
        });
        disk.write_all_at(bytes(3000), 500).await.0.unwrap();
        let (read, found) = disk.read_exact_at(vec![0; 3000], 500).await;
        read.unwrap();
        assert_eq!(found, bytes(3000));
        drop(Box::pin(disk.write_at(vec![8; 10], 0)));
        let mut begun = Box::pin(disk.write_at(vec![9; 1], 4095));
        assert!(futures::poll!(&mut begun).is_pending());
        drop(begun);
        assert_eq!(disk.read_at(vec![0; 1], 4095).await.1, [9]);
        // The end of it.
        assert_eq!(disk.read_at(vec![0; 8], 4096).await.0.unwrap(), 0);
        let beyond = disk.write_all_at(vec![0; 8], 4092).await.0.unwrap_err();
        assert_eq!(beyond.kind(), io::ErrorKind::WriteZero);
        (errors, shorts)
    });
    assert!(
        errors.iter().all(|count| (60..140).contains(count)),
        "{errors:?}"
    );
    assert!((100..200).contains(&shorts), "{shorts}");
}

/// A log that says a record is committed: before the flush, or after it.
async fn log(disk: impl Block, flushes: bool, committed: Arc<AtomicU64>) -> io::Result<()> {
    for record in 1u64.. {
        let at = (record - 1) * 512;
        disk.write_all_at(record.to_le_bytes().to_vec(), at)
            .await
            .0?;
        if flushes {
            disk.flush().await?;
        }
        committed.store(record, Ordering::Relaxed);
        if !flushes && record % 4 == 0 {
            disk.flush().await?;
        }
    }
    Ok(())
}

/// Pulls the plug at some moment, and looks whether all that was promised is there.
fn promise_is_kept(sim: &mut Sim, flushes: bool) {
    let disk = sim.handle().disk(1 << 20, DiskFaults::default());
    let committed = Arc::new(AtomicU64::new(0));
    let thread = sim.thread().cpumask(CpuSet::single(1)).create().unwrap();
    let (mounted, promised) = (disk.clone(), committed.clone());
    let logs = thread.spawn_with(async move || log(mounted, flushes, promised).await);
    let handle = sim.handle();
    let plug = us(handle.random(5_000));
    sim.run_for(plug).unwrap();
    let promised = committed.load(Ordering::Relaxed);
    disk.crash();
    assert!(sim.block_on(logs).unwrap().is_err(), "the disk has crashed");
    let found = sim.block_on(async move {
        let disk = disk.remount();
        let mut found = 0;
        while disk.read_exact_at(vec![0; 8], found * 512).await.1 == (found + 1).to_le_bytes() {
            found += 1;
        }
        found
    });
    assert!(found >= promised, "{promised} promised, {found} found");
}

#[test]
fn a_log_that_promises_before_it_flushes_is_found_out() {
    let failure = sim::explore(0..100, |sim| promise_is_kept(sim, false)).unwrap_err();
    assert!(failure.message().contains("promised"), "{failure}");
    let runs = sim::explore(0..100, |sim| promise_is_kept(sim, true));
    assert_eq!(runs.unwrap(), 100);
}

/// The same code on a file.
#[test]
fn a_file_is_a_block_device() {
    corespun::app::App::builder()
        .handle_signals(false)
        .block_on(async |_app| {
            let file = File::from_std(tempfile::tempfile().unwrap()).unwrap();
            file.set_len(4096).await.unwrap();
            exercise(&file).await;
        })
        .unwrap();
    let mut sim = Sim::builder().build();
    let disk = sim.handle().disk(4096, DiskFaults::default());
    sim.block_on(async move { exercise(&disk).await });
}

async fn exercise(device: &impl Block) {
    assert_eq!(device.size().await.unwrap(), 4096);
    device.write_all_at(bytes(600), 100).await.0.unwrap();
    device.flush().await.unwrap();
    let (read, found) = device.read_exact_at(vec![0; 600], 100).await;
    read.unwrap();
    assert_eq!(found, bytes(600));
    let (read, _) = device.read_exact_at(vec![0; 600], 4000).await;
    assert_eq!(read.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    let (written, _) = device.write_at(bytes(10), 0).await;
    assert_eq!(written.unwrap(), 10);
    let (read, found) = device.read_at(vec![0; 10], 0).await;
    assert_eq!((read.unwrap(), found), (10, bytes(10)));
}

/// The stand-ins outlive their simulation, and say so by not waiting.
#[test]
fn what_is_used_after_the_simulation_waits_for_nothing() {
    let mut sim = Sim::builder().build();
    let handle = sim.handle();
    let disk = handle.disk(1024, DiskFaults::default());
    let (mut near, mut far) = handle.byte_stream(StreamFaults::default());
    let socket = handle.network(DatagramFaults::default());
    let socket = socket.bind(address(1)).unwrap();
    let waits = Arc::new(AtomicBool::new(false));
    let (waiting, waker) = (waits.clone(), handle.clone());
    drop(sim.enter_main(async move {
        waker.delay(us(1_000_000)).await;
        waiting.store(true, Ordering::Relaxed);
    }));
    drop(sim);
    assert!(!waits.load(Ordering::Relaxed), "it was cancelled");
    futures::executor::block_on(async {
        handle.delay(us(5)).await;
        disk.write_all_at(bytes(512), 0).await.0.unwrap();
        near.write_all(b"late").await.unwrap();
        let mut late = [0; 4];
        far.read_exact(&mut late).await.unwrap();
        assert_eq!(&late, b"late");
        socket.send_to(b"x", address(1)).unwrap();
    });
}

/// G9: a loop over any of them gives way, though each round of it is ready at once.
#[test]
fn what_is_ready_without_end_leaves_others_their_turn() {
    const ROUNDS: usize = 1000;
    for what in ["write", "read", "receive", "delay"] {
        let mut sim = Sim::builder().seed(1).build();
        let faults = StreamFaults {
            buffer: usize::MAX,
            short: 0,
            ..StreamFaults::default()
        };
        let handle = sim.handle();
        let (mut near, mut far) = handle.byte_stream(faults);
        let network = handle.network(DatagramFaults {
            loss: 0,
            ..DatagramFaults::default()
        });
        let (from, to) = (network.bind(address(1)), network.bind(address(2)));
        let (from, to) = (from.unwrap(), to.unwrap());
        let rounds = sim.block_on(async move {
            near.write_all(&bytes(ROUNDS)).await.unwrap();
            for _ in 0..ROUNDS {
                from.send_to(&[1], address(2)).unwrap();
            }
            time::sleep(Duration::from_millis(10)).await;
            let done = Arc::new(AtomicU64::new(0));
            let count = done.clone();
            let looping = task::spawn_local(async move {
                for _ in 0..ROUNDS {
                    match what {
                        "write" => drop(near.write(b"x").await.unwrap()),
                        "read" => drop(far.read(&mut [0]).await.unwrap()),
                        "receive" => drop(to.recv_from(&mut [0]).await.unwrap()),
                        _ => handle.delay(Duration::ZERO).await,
                    }
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
            while done.load(Ordering::Relaxed) == 0 {
                task::yield_now().await;
            }
            let seen = done.load(Ordering::Relaxed);
            looping.await.unwrap();
            seen
        });
        assert!(rounds < ROUNDS as u64, "{what} does not give way");
    }
}
