//! File descriptor groups against the scenarios of the reference suite.

use std::cell::{Cell, RefCell};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::time::Duration;

use corespun::interrupt::{FdGroup, FdGroupError, FdHandlerState, FdKind, FdOptions, Readiness};
use nix::sys::eventfd::{EfdFlags, EventFd};

const NOW: Option<Duration> = Some(Duration::ZERO);

fn eventfd() -> Rc<EventFd> {
    Rc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap())
}

fn counts(groups: &[&FdGroup]) -> Vec<usize> {
    groups.iter().map(|group| group.fd_count()).collect()
}

fn fill(group: &FdGroup, count: usize) -> Vec<Rc<EventFd>> {
    let fds: Vec<_> = (0..count).map(|_| eventfd()).collect();
    for fd in &fds {
        group.add(fd, FdOptions::default(), |_| ()).unwrap();
    }
    fds
}

/// T-FD-01 (IN-020…023).
#[test]
fn a_descriptor_is_added_modified_and_removed() {
    let group = FdGroup::new().unwrap();
    let fd = eventfd();
    let options = FdOptions {
        name: "wake".to_owned(),
        ..FdOptions::default()
    };
    group.add(&fd, options, |_| ()).unwrap();
    assert_eq!(group.fd_count(), 1);
    let waiting = (
        Readiness::READABLE,
        FdHandlerState::Waiting,
        "wake".to_owned(),
    );
    assert_eq!(group.handler(&fd), Some(waiting));
    let twice = group.add(&fd, FdOptions::default(), |_| ()).unwrap_err();
    assert!(matches!(twice, FdGroupError::Exists(_)));
    let both = Readiness::READABLE | Readiness::ERROR;
    group.modify(&fd, both).unwrap();
    assert_eq!(group.handler(&fd).unwrap().0, both);
    group.remove(&fd).unwrap();
    assert_eq!(group.fd_count(), 0);
    assert!(matches!(group.remove(&fd), Err(FdGroupError::Unknown(_))));
    assert!(matches!(
        group.modify(&fd, both),
        Err(FdGroupError::Unknown(_))
    ));
    let file = std::env::current_exe()
        .and_then(std::fs::File::open)
        .unwrap();
    let refused = group.add(&file, FdOptions::default(), |_| ()).unwrap_err();
    assert!(matches!(refused, FdGroupError::Os(_)), "{refused}");
    assert_eq!(group.fd_count(), 0);
}

/// T-FD-02 (IN-025).
#[test]
fn a_nested_group_is_waited_for_by_its_parent() {
    let [parent, child, stranger] = [(); 3].map(|()| FdGroup::new().unwrap());
    let mut in_parent = fill(&parent, 1);
    let mut in_child = fill(&child, 1);
    parent.nest(&child).unwrap();
    assert_eq!(counts(&[&parent, &child]), [2, 0]);
    in_child.extend(fill(&child, 1));
    assert_eq!(counts(&[&parent, &child]), [3, 0]);
    assert!(matches!(
        stranger.unnest(&child),
        Err(FdGroupError::NotNested)
    ));
    assert!(matches!(stranger.nest(&child), Err(FdGroupError::Nested)));
    assert!(matches!(child.nest(&parent), Err(FdGroupError::Cycle)));
    parent.unnest(&child).unwrap();
    assert_eq!(counts(&[&parent, &child]), [1, 2]);
    child.remove(&in_child.pop().unwrap()).unwrap();
    assert_eq!(counts(&[&parent, &child]), [1, 1]);
    child.remove(&in_child.pop().unwrap()).unwrap();
    parent.remove(&in_parent.pop().unwrap()).unwrap();
    assert_eq!(counts(&[&parent, &child]), [0, 0]);
}

/// T-FD-03.
#[test]
fn a_tree_of_groups_is_waited_for_by_its_root() {
    let groups = [(); 4].map(|()| FdGroup::new().unwrap());
    let [g0, g1, g2, g3] = &groups;
    let all = [g0, g1, g2, g3];
    let mut fds: Vec<_> = [1, 2, 2, 3]
        .iter()
        .zip(all)
        .map(|(n, g)| fill(g, *n))
        .collect();
    assert_eq!(counts(&all), [1, 2, 2, 3]);
    g0.nest(g1).unwrap();
    g0.nest(g2).unwrap();
    g1.nest(g3).unwrap();
    assert_eq!(counts(&all), [8, 0, 0, 0]);
    g0.unnest(g1).unwrap();
    assert_eq!(counts(&all), [3, 5, 0, 0]);
    g0.nest(g1).unwrap();
    assert_eq!(counts(&all), [8, 0, 0, 0]);
    fds[3].extend(fill(g3, 1));
    assert_eq!(counts(&all), [9, 0, 0, 0]);
    g2.remove(&fds[2].pop().unwrap()).unwrap();
    assert_eq!(counts(&all), [8, 0, 0, 0]);
    g1.unnest(g3).unwrap();
    assert_eq!(counts(&all), [4, 0, 0, 4]);
    g0.unnest(g2).unwrap();
    assert_eq!(counts(&all), [3, 0, 1, 4]);
    g0.unnest(g1).unwrap();
    assert_eq!(counts(&all), [1, 2, 1, 4]);
}

/// T-X-12 (IN-022, IN-024, A.3 row 14).
#[test]
fn a_handler_removed_in_its_own_batch_is_not_called() {
    let group = Rc::new(FdGroup::new().unwrap());
    let fds = [eventfd(), eventfd()];
    let runs = Rc::new(Cell::new(0));
    for (mine, other) in [(0, 1), (1, 0)] {
        let (inside, runs) = (group.clone(), runs.clone());
        let (mine, other) = (fds[mine].clone(), fds[other].clone());
        group
            .add(&mine.clone(), FdOptions::default(), move |_| {
                runs.set(runs.get() + 1);
                // Whichever comes first removes both.
                inside.remove(&other).unwrap();
                inside.remove(&mine).unwrap();
                assert_eq!(inside.fd_count(), 0);
            })
            .unwrap();
    }
    fds.iter().for_each(|fd| _ = fd.write(1).unwrap());
    assert_eq!(group.wait(NOW).unwrap(), 2, "skipped ones count");
    assert_eq!(runs.get(), 1);
    assert_eq!(group.wait(NOW).unwrap(), 0);

    // A nested group finds nothing itself.
    let child = FdGroup::new().unwrap();
    group.nest(&child).unwrap();
    let fd = &fill(&child, 1)[0];
    fd.write(1).unwrap();
    assert_eq!(child.wait(NOW).unwrap(), 0);
    assert!(matches!(child.wait(None), Err(FdGroupError::Nested)));
    assert_eq!(group.wait(None).unwrap(), 1);
}

/// IN-014, IN-024: an eventfd is read first; a failing one does not keep the
/// others from being served.
#[test]
fn an_eventfd_is_read_before_its_handler_is_called() {
    let group = FdGroup::new().unwrap();
    let (good, also_good) = (eventfd(), eventfd());
    let order = Rc::new(RefCell::new(Vec::new()));
    let options = || FdOptions {
        kind: FdKind::EventFd,
        ..FdOptions::default()
    };
    for (name, fd) in [("good", &good), ("also good", &also_good)] {
        let order = order.clone();
        group
            .add(fd, options(), move |_| order.borrow_mut().push(name))
            .unwrap();
    }
    good.write(3).unwrap();
    assert_eq!(group.wait(None).unwrap(), 1);
    assert_eq!(group.wait(NOW).unwrap(), 0, "its counter was read");
    assert_eq!(order.take(), ["good"]);
    // A peer that goes away with something unread makes reading an error.
    let (peer, mut bad) = UnixStream::pair().unwrap();
    bad.write_all(b"x").unwrap();
    drop(peer);
    group.add(&bad, options(), |_| ()).unwrap();
    also_good.write(1).unwrap();
    assert!(matches!(group.wait(NOW), Err(FdGroupError::Os(_))));
    assert_eq!(order.take(), ["also good"]);
}

/// IN-026, IN-027.
#[test]
fn a_wrapper_is_called_around_the_handlers_of_its_own_group() {
    let [parent, child] = [(); 2].map(|()| Rc::new(FdGroup::new().unwrap()));
    let depth = Rc::new(Cell::new(0));
    let around = depth.clone();
    child
        .set_wrapper(move |call| {
            around.set(around.get() + 1);
            call();
            around.set(around.get() - 1);
        })
        .unwrap();
    assert!(matches!(
        child.set_wrapper(|_| ()),
        Err(FdGroupError::HasWrapper)
    ));
    assert!(matches!(child.nest(&parent), Err(FdGroupError::HasWrapper)));
    parent.nest(&child).unwrap();
    assert!(matches!(
        parent.set_wrapper(|_| ()),
        Err(FdGroupError::HasChildren)
    ));
    let (mut here, there) = UnixStream::pair().unwrap();
    let seen = Rc::new(RefCell::new(Vec::new()));
    for group in [&parent, &child] {
        let (inside, depth, seen) = (Rc::downgrade(group), depth.clone(), seen.clone());
        let fd = Rc::new(there.try_clone().unwrap());
        let open = fd.clone();
        group
            .add(&fd.as_fd(), FdOptions::default(), move |event| {
                let inside = inside.upgrade().unwrap();
                assert_eq!(inside.current_event(), Some(event));
                seen.borrow_mut().push(depth.get());
                let _ = open.peer_addr();
            })
            .unwrap();
    }
    here.write_all(b"x").unwrap();
    assert_eq!(parent.wait(NOW).unwrap(), 2);
    seen.borrow_mut().sort();
    assert_eq!(*seen.borrow(), [0, 1]);
    assert_eq!(parent.current_event(), None);
    child.clear_wrapper();
    child.set_wrapper(|call| call()).unwrap();
}

/// A handler that panics, or whose destructor does, costs nobody else of the
/// batch its turn; the wait then panics with the first of them.
#[test]
fn a_handler_that_panics_is_removed_and_the_others_are_called() {
    struct Grenade;
    impl Drop for Grenade {
        fn drop(&mut self) {
            resume_unwind(Box::new("destructor"));
        }
    }
    let group = Rc::new(FdGroup::new().unwrap());
    let fds: Vec<_> = (0..5).map(|_| eventfd()).collect();
    let runs = Rc::new(Cell::new(0));
    for (place, fd) in fds.iter().enumerate() {
        let grenade = (place == 1).then(|| Grenade);
        let (runs, inside, own) = (runs.clone(), Rc::downgrade(&group), fd.clone());
        let handler = move |_| {
            runs.set(runs.get() + 1);
            match (place, &grenade) {
                (1, Some(_)) => inside.upgrade().unwrap().remove(&own).unwrap(),
                (3, _) => resume_unwind(Box::new("handler")),
                _ => {}
            }
        };
        group.add(fd, FdOptions::default(), handler).unwrap();
        fd.write(1).unwrap();
    }
    let panicked = catch_unwind(AssertUnwindSafe(|| group.wait(NOW))).unwrap_err();
    let text = *panicked.downcast::<&str>().unwrap();
    assert!(["handler", "destructor"].contains(&text), "{text}");
    assert_eq!((runs.take(), group.current_event()), (5, None));
    assert_eq!(group.wait(NOW).unwrap(), 3);
    assert_eq!((runs.take(), group.fd_count()), (3, 3));
    for (place, fd) in fds.iter().enumerate() {
        let waiting = group.handler(fd).map(|handler| handler.1);
        let stays = ![1, 3].contains(&place);
        assert_eq!(waiting, stays.then_some(FdHandlerState::Waiting));
    }
}

/// A duplicate of `fd` at the first free number from `least` on: those are given
/// to no other test of this process meanwhile.
fn duplicate(fd: &impl AsFd, least: RawFd) -> OwnedFd {
    // SAFETY: the new descriptor is owned by the result alone.
    unsafe {
        let fd = fd.as_fd().as_raw_fd();
        OwnedFd::from_raw_fd(libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, least))
    }
}

/// Eight bytes of somebody's, to be read at `number`, which is free.
fn stranger_at(number: RawFd) -> (UnixStream, OwnedFd) {
    let (mut peer, socket) = UnixStream::pair().unwrap();
    peer.write_all(b"precious").unwrap();
    socket.set_nonblocking(true).unwrap();
    let stranger = duplicate(&socket, number);
    assert_eq!(stranger.as_raw_fd(), number);
    (peer, stranger)
}

fn unread(stranger: &OwnedFd) -> usize {
    let mut bytes = [0; 16];
    nix::unistd::read(stranger, &mut bytes).unwrap_or(0)
}

/// In the middle of a batch a nested group goes, and its eventfd with it: what
/// has its number from then on is not read.
#[test]
fn a_stranger_with_the_number_of_a_dropped_member_is_not_read() {
    for ended in [true, false] {
        let parent = FdGroup::new().unwrap();
        let child = Rc::new(RefCell::new(Some(FdGroup::new().unwrap())));
        parent.nest(child.borrow().as_ref().unwrap()).unwrap();
        let options = || FdOptions {
            kind: FdKind::EventFd,
            ..FdOptions::default()
        };
        let first = eventfd();
        let high = duplicate(&eventfd(), 700);
        let number = high.as_raw_fd();
        nix::unistd::write(&high, &1u64.to_ne_bytes()).unwrap();
        let strangers = Rc::new(RefCell::new(None));
        let (gone, place) = (child.clone(), strangers.clone());
        let held = Rc::new(Cell::new(Some(high)));
        let closes = held.clone();
        let ends = move |_| {
            if ended {
                drop(gone.take());
            }
            drop(closes.take());
            place.replace(Some(stranger_at(number)));
        };
        parent.add(&first, options(), ends).unwrap();
        first.write(1).unwrap();
        let high = held.take().unwrap();
        let called = |_| panic!("the handler of what is gone");
        let nested = child
            .borrow()
            .as_ref()
            .unwrap()
            .add(&high, options(), called);
        nested.unwrap();
        held.set(Some(high));
        assert_eq!(parent.wait(NOW).unwrap(), 2);
        let (_peer, stranger) = strangers.take().unwrap();
        assert_eq!(unread(&stranger), 8, "group dropped: {ended}");
        // It refers to the parent, whose handler refers to it.
        drop(child.take());
    }
}

/// A descriptor that was closed without being removed leaves its number to the
/// next that has it.
#[test]
fn a_closed_member_gives_way_to_a_new_one_with_its_number() {
    let group = FdGroup::new().unwrap();
    let (mut peer, socket) = UnixStream::pair().unwrap();
    let old = duplicate(&eventfd(), 800);
    let number = old.as_raw_fd();
    let witness = Rc::new(());
    let mine = witness.clone();
    group
        .add(&old, FdOptions::default(), move |_| drop(mine.clone()))
        .unwrap();
    drop(old);
    let new = duplicate(&socket, 800);
    assert_eq!(new.as_raw_fd(), number);
    let runs = Rc::new(Cell::new(0));
    let count = runs.clone();
    group
        .add(&new, FdOptions::default(), move |_| {
            count.set(count.get() + 1)
        })
        .unwrap();
    assert_eq!(Rc::strong_count(&witness), 1);
    peer.write_all(b"x").unwrap();
    assert_eq!((group.wait(NOW).unwrap(), runs.get()), (1, 1));
    group.remove(&new).unwrap();
    assert_eq!(group.fd_count(), 0);
}

/// The kernel forgets a closed member only when no duplicate of it is left.
#[test]
fn a_closed_member_with_a_duplicate_is_not_taken_for_the_next_one() {
    let group = FdGroup::new().unwrap();
    let stays = eventfd();
    let old = duplicate(&stays, 850);
    let number = old.as_raw_fd();
    group.add(&old, FdOptions::default(), |_| ()).unwrap();
    drop(old);
    let (mut peer, socket) = UnixStream::pair().unwrap();
    let new = duplicate(&socket, 850);
    assert_eq!(new.as_raw_fd(), number);
    let runs = Rc::new(Cell::new(0));
    let count = runs.clone();
    let called = move |_| count.set(count.get() + 1);
    group.add(&new, FdOptions::default(), called).unwrap();
    stays.write(1).unwrap();
    group.wait(NOW).unwrap();
    assert_eq!(runs.get(), 0, "an event of the old one");
    peer.write_all(b"x").unwrap();
    // They take turns: a wait asks for as many events as there are members.
    group.wait(NOW).unwrap();
    group.wait(NOW).unwrap();
    assert_eq!(runs.get(), 1);
}

/// Events that were fetched together: who has got a removed one's number meanwhile is
/// not told of that one's.
#[test]
fn an_event_of_a_removed_member_is_not_its_successors() {
    let group = Rc::new(FdGroup::new().unwrap());
    let fds = [(); 2].map(|()| duplicate(&eventfd(), 750));
    for fd in &fds {
        nix::unistd::write(fd, &1u64.to_ne_bytes()).unwrap();
    }
    let held = Rc::new(RefCell::new(fds.map(Some)));
    let (runs, successors) = (Rc::new(Cell::new(0)), Rc::new(RefCell::new(Vec::new())));
    for n in 0..2 {
        let (inside, fds) = (Rc::downgrade(&group), held.clone());
        let (runs, successors) = (runs.clone(), successors.clone());
        let called = move |_| {
            runs.set(runs.get() + 1);
            let group = inside.upgrade().unwrap();
            // The other one, unless that did the same.
            let other = fds.borrow_mut()[1 - n].take();
            if let Some(fd) = other.filter(|_| runs.get() == 1) {
                let number = fd.as_raw_fd();
                group.remove(&fd).unwrap();
                drop(fd);
                let quiet = duplicate(&eventfd(), number);
                assert_eq!(quiet.as_raw_fd(), number);
                let wrong = |_| panic!("the event of another one");
                group.add(&quiet, FdOptions::default(), wrong).unwrap();
                successors.borrow_mut().push(quiet);
            }
        };
        let held = held.borrow();
        let fd = held[n].as_ref().unwrap();
        group.add(fd, FdOptions::default(), called).unwrap();
    }
    group.wait(NOW).unwrap();
    assert_eq!((runs.get(), group.fd_count()), (1, 2));
}
