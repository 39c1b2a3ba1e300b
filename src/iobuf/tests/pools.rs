//! The pools themselves: their settings, statistics and memory.

use super::*;
use crate::iobuf::arena::{Arena, mask_of};
use crate::iobuf::builder::nodes_up_to;
use crate::iobuf::pool::pools_near;
use crate::thread::local::Local;

/// IO-036: statistics over threads, by module.
#[test]
fn statistics_are_summed_over_threads() {
    let mut bed = Bed::new(2, 4);
    let (a, b) = (bed.channel(0, "0", 1), bed.channel(1, "0", 1));
    let other = bed.channel(1, "1", 0);
    bed.on(0, || drop([take(&a, SMALL), take(&a, SMALL)]));
    bed.on(1, || {
        drop(take(&b, LARGE));
        let held = [(); 2].map(|()| take(&other, SMALL));
        wait(&other, SMALL);
        drop(held);
    });
    let stats = Rc::new(RefCell::new(Vec::new()));
    let place = stats.clone();
    bed.threads[0]
        .enter(|| bed.iobuf.stats(move |all| *place.borrow_mut() = all))
        .unwrap();
    bed.poll();
    let stats = stats.borrow();
    let figures = |cache, main, retry, cache_size| PoolStats {
        cache,
        main,
        retry,
        cache_size,
    };
    assert_eq!(stats[0].small, figures(1, 1, 0, 2));
    assert_eq!(stats[0].large, figures(1, 0, 0, 2));
    assert_eq!(stats[1].small, figures(0, 2, 1, 0));
    assert_eq!(stats[1].module, "1");
}

/// IO-030.
#[test]
fn settings_below_the_minimum_are_refused_and_sizes_rounded_up() {
    let mut runner = ThreadLib::new().thread().build().unwrap().attach();
    runner.enter(|| {
        let builder = Iobuf::builder;
        for refused in [
            builder().small(63, 4096),
            builder().small(64, 4095),
            builder().large(7, 8192),
            builder().large(8, 8191),
        ] {
            let error = refused.build().unwrap_err();
            assert!(matches!(error, IobufError::TooSmall { .. }), "{error}");
        }
        let iobuf = builder()
            .small(64, 4097)
            .large(8, 8193)
            .numa(true)
            .build()
            .unwrap();
        assert_eq!(iobuf.inner.sizes, [8192, 12288]);
        iobuf.register_module("m").unwrap();
        let channel = iobuf.channel("m", 0, 0).unwrap();
        let buffer = channel.try_get(1).unwrap().unwrap();
        assert_eq!(buffer.as_ptr().addr() % 4096, 0);
        assert!(buffer.iter().all(|&byte| byte == 0));
    });
    let off = Iobuf::builder().build().unwrap_err();
    assert!(matches!(off, IobufError::Register(_)));
}

/// No length wraps, and no count is cut to the width of an index.
#[test]
fn pools_that_no_memory_could_hold_are_refused() {
    let mut runner = ThreadLib::new().thread().build().unwrap().attach();
    let mut build = |small: (usize, usize), large: (usize, usize)| {
        let builder = Iobuf::builder();
        let builder = builder.small(small.0, small.1).large(large.0, large.1);
        runner.enter(|| builder.build()).map(drop).unwrap_err()
    };
    let (small, large) = ((64, 4096), (8, 8192));
    for error in [
        build((64, usize::MAX), large),
        build((64, usize::MAX - 4094), large),
        build(small, (8, usize::MAX - 1)),
        build((usize::MAX, 4096), large),
        build((usize::MAX / 4096, 4096), large),
        build(((1 << 32) + 64, 4096), large),
    ] {
        assert!(matches!(error, IobufError::NoMemory { .. }), "{error}");
    }
}

#[test]
fn a_channel_knows_its_module() {
    let mut bed = Bed::new(1, 1);
    assert_eq!(bed.channel(0, "1", 0).module(), "1");
}

#[test]
fn the_nodes_are_those_up_to_the_highest() {
    assert_eq!(nodes_up_to(""), [0]);
    assert_eq!(nodes_up_to("0\n"), [0]);
    assert_eq!(nodes_up_to("0-1,3\n"), [0, 1, 2, 3]);
    assert_eq!([0, 1, 2, 3].map(|node| pools_near(node, 2)), [0, 1, 0, 0]);
}

#[test]
fn a_node_is_a_bit_of_the_kernels_mask() {
    let word = |node: usize, at: usize| mask_of(node).map(|mask| mask[at]);
    assert_eq!(word(0, 0), Some(1));
    assert_eq!(word(3, 0), Some(8));
    assert_eq!((word(130, 2), word(130, 0)), (Some(4), Some(0)));
    assert_eq!(word(1023, 15), Some(1 << 63));
    assert_eq!(mask_of(1024), None);
}

/// What the kernel was told of the page at this address: the policy and the nodes. `None`
/// where that may not be asked.
fn policy_at(address: *const u8) -> Option<(libc::c_int, u64)> {
    const AT_ADDRESS: libc::c_ulong = 2;
    let (mut mode, mut nodes): (libc::c_int, [u64; 16]) = (0, [0; 16]);
    // SAFETY: the call writes one integer, and as many bits as said.
    let result = unsafe {
        libc::syscall(
            libc::SYS_get_mempolicy,
            &raw mut mode,
            nodes.as_mut_ptr(),
            1024,
            address,
            AT_ADDRESS,
        )
    };
    (result == 0).then_some((mode, nodes[0]))
}

#[test]
fn memory_is_asked_for_near_its_node() {
    const PREFERRED: libc::c_int = 1;
    let (log, _guard) = harness::log::Log::install();
    let near = Arena::new(4, 4096, Some(0)).unwrap();
    let anywhere = Arena::new(4, 4096, None).unwrap();
    let [first, last, other] = [near.buffer(0), near.buffer(3), anywhere.buffer(0)]
        .map(|buffer| policy_at(buffer.as_ptr()));
    if first.is_none() {
        return eprintln!("skipped: the kernel does not say where memory is to be");
    }
    assert_eq!([first, last], [Some((PREFERRED, 1)); 2]);
    assert_ne!(other, first);
    let library = ThreadLib::new();
    let mut runner = library.thread().build().unwrap().attach();
    let builder = Iobuf::builder().small(64, SMALL).large(8, LARGE).numa(true);
    let iobuf = runner.enter(|| builder.build()).unwrap();
    iobuf.register_module("0").unwrap();
    let channel = runner.enter(|| iobuf.channel("0", 0, 0)).unwrap();
    let buffer = runner.enter(|| take(&channel, LARGE));
    assert_eq!(log.take(), [""; 0]);
    assert_eq!(
        policy_at(buffer.as_ptr()).map(|(mode, _)| mode),
        Some(PREFERRED)
    );
}

/// Their address space, too.
#[test]
fn pools_that_have_ended_give_their_memory_back() {
    fn pages() -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').next().unwrap().parse().unwrap()
    }
    const GIB: usize = 1 << 30;
    let before = pages();
    for _ in 0..16 {
        drop(Arena::new(1024, GIB / 1024, None).unwrap());
    }
    // Other tests map some meanwhile.
    let grown = pages().saturating_sub(before) * 4096;
    assert!(grown < 4 * GIB, "{grown}");
}

/// One that is on the list, but exits before its buffer is on its way.
#[test]
fn a_buffer_that_a_thread_does_not_take_any_more_goes_back() {
    let mut bed = Bed::new(2, 3);
    let channel = bed.channel(0, "0", 0);
    let gone = bed.on(1, || Local::with_current(|local| local.shared.clone()));
    let gone = gone.unwrap();
    drop(bed.threads[1].exit());
    bed.poll();
    assert!(bed.threads[1].is_exited());
    let out = bed.on(0, || take(&channel, SMALL));
    bed.iobuf.inner.list_waiting(0, Class::Small, &gone);
    assert_eq!(bed.iobuf.free_counts(), [2, 3]);
    let taken = bed.on(0, || [(); 2].map(|()| take(&channel, SMALL)));
    let addresses = [out.as_ptr(), taken[0].as_ptr(), taken[1].as_ptr()];
    let addresses = std::collections::BTreeSet::from(addresses);
    assert_eq!(addresses.len(), 3, "one buffer is there twice");
    drop((out, taken));
    assert_eq!(bed.iobuf.free_counts(), [3, 3]);
}
