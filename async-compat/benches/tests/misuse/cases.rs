// One misuse each. Where tokio's documentation says "# Panics" and a runtime, its clock or an OS
// thread of it is concerned, there is a case here; what is re-exported has one for each kind.

use std::future::{Future, pending, poll_fn};
use std::os::fd::AsRawFd;
use std::pin::{Pin, pin};
use std::task::{Context, Waker};
use std::time::Duration;

use super::tokio;
use tokio::runtime::{Builder, Handle, LocalOptions, LocalRuntime, Runtime};
use tokio::task::{self, JoinSet, LocalSet};
use tokio::{fs, net, signal, sync, time};

fn one() -> Runtime {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

fn many() -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime")
}

fn bare() -> Runtime {
    Builder::new_current_thread().build().expect("a runtime")
}

/// Polls a future once, outside of everything.
fn poll_once<T>(future: impl Future<Output = T>) {
    let _ = pin!(future).poll(&mut Context::from_waker(Waker::noop()));
}

/// Runs `f` in a task, and goes on with its panic.
fn in_task(runtime: &Runtime, f: impl FnOnce() + Send + 'static) {
    let ended = runtime.block_on(runtime.spawn(async move { f() }));
    if let Err(error) = ended {
        std::panic::resume_unwind(error.into_panic());
    }
}

fn std_listener() -> std::net::TcpListener {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("it is a socket");
    listener
}

fn std_udp() -> std::net::UdpSocket {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
    socket.set_nonblocking(true).expect("it is a socket");
    socket
}

macro_rules! cases {
    ($($name:ident $body:block)*) => {
        pub(crate) fn all() -> Vec<(&'static str, fn())> {
            vec![$((stringify!($name), || $body)),*]
        }
    };
}

cases! {
    spawn_outside { tokio::spawn(async {}); }
    handle_current_outside { let _ = Handle::current(); }
    spawn_blocking_outside { task::spawn_blocking(|| ()); }
    spawn_local_outside { task::spawn_local(async {}); }
    spawn_local_in_a_runtime { one().block_on(async { task::spawn_local(async {}) }); }
    join_set_spawn_outside { JoinSet::new().spawn(async {}); }
    join_set_spawn_local_outside { JoinSet::new().spawn_local(async {}); }
    join_set_spawn_blocking_outside { JoinSet::new().spawn_blocking(|| ()); }
    id_outside { task::id(); }
    id_in_block_on { one().block_on(async { task::id() }); }
    into_panic_of_a_cancelled_one {
        let runtime = one();
        let task = runtime.spawn(pending::<()>());
        task.abort();
        let _ = runtime.block_on(task).expect_err("cancelled").into_panic();
    }
    join_handle_polled_again {
        let runtime = one();
        let mut task = runtime.spawn(async {});
        runtime.block_on(&mut task).expect("ended");
        runtime.block_on(async { let _ = (&mut task).await; });
    }
    join_of_a_helper_polled_again {
        let runtime = one();
        let mut task = runtime.spawn_blocking(|| ());
        runtime.block_on(&mut task).expect("ended");
        runtime.block_on(async { let _ = (&mut task).await; });
    }
    join_all_of_one_that_panics {
        one().block_on(async {
            let mut tasks = JoinSet::new();
            tasks.spawn(async { panic!("its own words") });
            tasks.join_all().await;
        });
    }

    block_on_in_block_on { one().block_on(async { one().block_on(async {}) }); }
    block_on_in_a_task { in_task(&many(), || one().block_on(async {})); }
    handle_block_on_in_block_on { one().block_on(async { Handle::current().block_on(async {}) }); }
    local_set_block_on_in_block_on {
        let other = one();
        one().block_on(async { LocalSet::new().block_on(&other, async {}) });
    }
    local_runtime_block_on_in_block_on {
        let local = LocalRuntime::new().expect("a runtime");
        one().block_on(async { local.block_on(async {}) });
    }
    block_in_place_on_one_thread { one().block_on(async { task::block_in_place(|| ()) }); }
    block_in_place_in_a_local_set {
        many().block_on(LocalSet::new().run_until(async { task::block_in_place(|| ()) }));
    }
    runtime_dropped_in_block_on { let other = one(); one().block_on(async { drop(other) }); }
    runtime_dropped_in_a_task { let other = many(); in_task(&many(), || drop(other)); }
    runtime_shut_down_in_block_on {
        let other = one();
        one().block_on(async { other.shutdown_timeout(Duration::from_secs(1)) });
    }
    guards_in_the_wrong_order {
        let (first, other) = (one(), one());
        let outer = first.enter();
        let inner = other.enter();
        drop(outer);
        drop(inner);
    }

    no_workers { Builder::new_multi_thread().worker_threads(0); }
    no_blocking_threads { Builder::new_multi_thread().max_blocking_threads(0); }
    no_events { Builder::new_multi_thread().event_interval(0); }
    no_global_queue { Builder::new_multi_thread().global_queue_interval(0); }
    no_io_events { Builder::new_multi_thread().max_io_events_per_tick(0); }
    a_null_in_a_name { Builder::new_multi_thread().thread_name("a\0b").build().expect("built"); }
    workers_for_a_local_runtime {
        let _ = Builder::new_multi_thread().build_local(LocalOptions::default());
    }
    metrics_of_no_worker { one().metrics().worker_park_count(7); }
    busy_time_of_no_worker { many().metrics().worker_total_busy_duration(7); }

    sleep_outside { let _ = time::sleep(Duration::from_millis(1)); }
    sleep_until_outside { let _ = time::sleep_until(time::Instant::now()); }
    timeout_outside { let _ = time::timeout(Duration::from_millis(1), async {}); }
    timeout_at_outside { let _ = time::timeout_at(time::Instant::now(), async {}); }
    interval_outside { let _ = time::interval(Duration::from_millis(1)); }
    interval_of_nothing { one().block_on(async { time::interval(Duration::ZERO) }); }
    interval_at_of_nothing {
        one().block_on(async { time::interval_at(time::Instant::now(), Duration::ZERO) });
    }
    sleep_without_timers { bare().block_on(async { time::sleep(Duration::from_millis(1)).await }); }
    timeout_without_timers {
        bare().block_on(async {
            let _ = time::timeout(Duration::from_millis(1), pending::<()>()).await;
        });
    }
    interval_without_timers {
        bare().block_on(async { time::interval(Duration::from_millis(1)).tick().await });
    }
    sleep_after_the_end {
        let runtime = one();
        let handle = runtime.handle().clone();
        let _entered = handle.enter();
        let mut nap = Box::pin(time::sleep(Duration::from_millis(1)));
        drop(runtime);
        poll_once(poll_fn(|cx| Pin::as_mut(&mut nap).poll(cx)));
    }
    pause_outside { time::pause(); }
    pause_with_workers { many().block_on(async { time::pause() }); }
    pause_twice { one().block_on(async { time::pause(); time::pause() }); }
    resume_outside { time::resume(); }
    resume_what_goes { one().block_on(async { time::resume() }); }
    advance_outside { poll_once(time::advance(Duration::from_millis(1))); }
    advance_what_goes { one().block_on(async { time::advance(Duration::from_millis(1)).await }); }

    tcp_listener_outside { let _ = net::TcpListener::from_std(std_listener()); }
    tcp_stream_outside {
        let listener = std_listener();
        let stream = std::net::TcpStream::connect(listener.local_addr().expect("bound"));
        let stream = stream.expect("connected");
        stream.set_nonblocking(true).expect("it is a socket");
        let _ = net::TcpStream::from_std(stream);
    }
    tcp_bind_outside { poll_once(net::TcpListener::bind("127.0.0.1:0")); }
    tcp_listen_outside {
        let socket = net::TcpSocket::new_v4().expect("a socket");
        socket.bind("127.0.0.1:0".parse().expect("an address")).expect("bound");
        let _ = socket.listen(1);
    }
    udp_outside { let _ = net::UdpSocket::from_std(std_udp()); }
    unix_listener_outside {
        let dir = tempfile::tempdir().expect("a directory");
        let _ = net::UnixListener::bind(dir.path().join("socket"));
    }
    unix_pair_outside { let _ = net::UnixStream::pair(); }
    unix_datagram_outside { let _ = net::UnixDatagram::unbound(); }
    unix_datagram_pair_outside { let _ = net::UnixDatagram::pair(); }
    pipe_outside { let _ = net::unix::pipe::pipe(); }
    lookup_outside { poll_once(net::lookup_host("localhost:80")); }
    tcp_listener_without_io { bare().block_on(async { net::TcpListener::from_std(std_listener()) }).ok(); }
    udp_without_io { bare().block_on(async { net::UdpSocket::from_std(std_udp()) }).ok(); }
    unix_pair_without_io { bare().block_on(async { net::UnixStream::pair() }).ok(); }
    async_fd_outside {
        struct Borrowed(i32);
        impl AsRawFd for Borrowed {
            fn as_raw_fd(&self) -> i32 {
                self.0
            }
        }
        #[allow(deprecated)]
        let _ = tokio::io::unix::AsyncFd::new(Borrowed(std_udp().as_raw_fd())).is_ok();
    }
    async_fd_without_io {
        let socket = std_udp();
        #[allow(deprecated)]
        let _ = bare().block_on(async { tokio::io::unix::AsyncFd::new(socket) }).is_ok();
    }

    file_outside { poll_once(fs::File::open("/dev/null")); }
    read_outside { poll_once(fs::read("/dev/null")); }
    no_buffer {
        let file = std::fs::File::open("/dev/null").expect("it is there");
        fs::File::from_std(file).set_max_buf_size(0);
    }
    ctrl_c_outside { poll_once(signal::ctrl_c()); }
    signal_outside { let _ = signal::unix::signal(signal::unix::SignalKind::user_defined1()); }
    command_outside { let _ = tokio::process::Command::new("true").spawn(); }

    channel_without_places { drop(sync::mpsc::channel::<()>(0)); }
    broadcast_without_places { drop(sync::broadcast::channel::<()>(0)); }
    blocking_send_in_block_on {
        let (sender, _receiver) = sync::mpsc::channel(1);
        one().block_on(async { sender.blocking_send(1).expect("open") });
    }
    blocking_recv_in_a_task {
        let (_sender, mut receiver) = sync::mpsc::channel::<()>(1);
        in_task(&many(), move || drop(receiver.blocking_recv()));
    }
    unbounded_blocking_recv_in_block_on {
        let (_sender, mut receiver) = sync::mpsc::unbounded_channel::<()>();
        one().block_on(async { receiver.blocking_recv() });
    }
    oneshot_blocking_recv_in_block_on {
        let (_sender, receiver) = sync::oneshot::channel::<()>();
        one().block_on(async { receiver.blocking_recv() }).ok();
    }
    blocking_lock_in_block_on { one().block_on(async { drop(sync::Mutex::new(()).blocking_lock()) }); }
    blocking_read_in_a_task { in_task(&many(), || drop(sync::RwLock::new(()).blocking_read())); }
    blocking_write_in_block_on { one().block_on(async { drop(sync::RwLock::new(()).blocking_write()) }); }
    send_timeout_outside {
        let (sender, _receiver) = sync::mpsc::channel(1);
        poll_once(sender.send_timeout(1, Duration::from_millis(1)));
    }
    select_of_nothing {
        one().block_on(async {
            tokio::select! {
                _ = pending::<()>(), if false => {}
            }
        });
    }
}
