//! File descriptor groups against the scenarios of the reference suite.

use std::cell::{Cell, RefCell};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::Duration;

use corespun::interrupt::{Event, FdGroup, FdGroupError, FdHandlerState, FdKind, FdOptions};
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
    let waiting = (Event::READABLE, FdHandlerState::Waiting, "wake".to_owned());
    assert_eq!(group.handler(&fd), Some(waiting));
    let twice = group.add(&fd, FdOptions::default(), |_| ()).unwrap_err();
    assert!(matches!(twice, FdGroupError::Exists(_)));
    let both = Event::READABLE | Event::ERROR;
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
