//! Random operations on a handful of fd groups against a plain forest: what is
//! refused, who waits for what, and which handlers a wait calls.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use corespun::interrupt::{FdGroup, FdGroupError, FdHandlerState, FdKind, FdOptions, Readiness};
use nix::sys::eventfd::{EfdFlags, EventFd};
use proptest::collection::vec;
use proptest::prelude::*;

const GROUPS: usize = 5;
const FDS: usize = 12;

#[derive(Clone, Copy, Debug)]
enum Op {
    Add { group: usize, fd: usize },
    Remove { group: usize, fd: usize },
    Modify { group: usize, fd: usize, on: bool },
    Nest { parent: usize, child: usize },
    Unnest { parent: usize, child: usize },
    Write(usize),
    Wait(usize),
    Replace(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let (group, fd) = (|| 0..GROUPS, || 0..FDS);
    prop_oneof![
        6 => (group(), fd()).prop_map(|(group, fd)| Op::Add { group, fd }),
        3 => (group(), fd()).prop_map(|(group, fd)| Op::Remove { group, fd }),
        2 => (group(), fd(), any::<bool>())
            .prop_map(|(group, fd, on)| Op::Modify { group, fd, on }),
        4 => (group(), group()).prop_map(|(parent, child)| Op::Nest { parent, child }),
        3 => (group(), group()).prop_map(|(parent, child)| Op::Unnest { parent, child }),
        4 => fd().prop_map(Op::Write),
        4 => group().prop_map(Op::Wait),
        1 => group().prop_map(Op::Replace),
    ]
}

/// What an operation answered.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Done,
    Exists,
    Unknown,
    Nested,
    NotNested,
    Cycle,
    Os,
    Ready(usize),
}

fn answer<T>(result: Result<T, FdGroupError>, done: impl FnOnce(T) -> Answer) -> Answer {
    match result {
        Ok(value) => done(value),
        Err(FdGroupError::Exists(_)) => Answer::Exists,
        Err(FdGroupError::Unknown(_)) => Answer::Unknown,
        Err(FdGroupError::Nested) => Answer::Nested,
        Err(FdGroupError::NotNested) => Answer::NotNested,
        Err(FdGroupError::Cycle) => Answer::Cycle,
        Err(FdGroupError::Os(_)) => Answer::Os,
        Err(other) => panic!("{other}"),
    }
}

#[derive(Clone, Default)]
struct ModelGroup {
    parent: Option<usize>,
    /// Which descriptors, and whether each is watched for reading.
    fds: BTreeMap<usize, bool>,
}

struct Model {
    groups: Vec<ModelGroup>,
    readable: [bool; FDS],
    called: Vec<(usize, usize)>,
}

impl Model {
    fn root(&self, mut group: usize) -> usize {
        while let Some(parent) = self.groups[group].parent {
            group = parent;
        }
        group
    }

    /// The groups of the tree whose root is `root`.
    fn tree(&self, root: usize) -> Vec<usize> {
        (0..GROUPS).filter(|g| self.root(*g) == root).collect()
    }

    /// The groups below and including `group`.
    fn subtree(&self, group: usize) -> Vec<usize> {
        let below = |mut other: usize| {
            loop {
                if other == group {
                    return true;
                }
                match self.groups[other].parent {
                    Some(parent) => other = parent,
                    None => return false,
                }
            }
        };
        (0..GROUPS).filter(|other| below(*other)).collect()
    }

    /// Every descriptor of some groups, with its group.
    fn fds(&self, groups: &[usize]) -> Vec<(usize, usize)> {
        let fds = |group: &usize| {
            let group = *group;
            self.groups[group].fds.keys().map(move |fd| (group, *fd))
        };
        groups.iter().flat_map(fds).collect()
    }

    fn has(&self, groups: &[usize], fd: usize) -> bool {
        groups.iter().any(|g| self.groups[*g].fds.contains_key(&fd))
    }

    fn fd_count(&self, group: usize) -> usize {
        match self.groups[group].parent {
            Some(_) => 0,
            None => self.fds(&self.tree(group)).len(),
        }
    }

    fn apply(&mut self, op: Op) -> Answer {
        match op {
            Op::Add { group, fd } => {
                if self.groups[group].fds.contains_key(&fd) {
                    return Answer::Exists;
                }
                // An epoll instance takes a descriptor once.
                if self.has(&self.tree(self.root(group)), fd) {
                    return Answer::Os;
                }
                self.groups[group].fds.insert(fd, true);
                Answer::Done
            }
            Op::Remove { group, fd } => match self.groups[group].fds.remove(&fd) {
                Some(_) => Answer::Done,
                None => Answer::Unknown,
            },
            Op::Modify { group, fd, on } => match self.groups[group].fds.get_mut(&fd) {
                Some(watched) => {
                    *watched = on;
                    Answer::Done
                }
                None => Answer::Unknown,
            },
            Op::Nest { parent, child } => {
                if self.groups[child].parent.is_some() {
                    return Answer::Nested;
                }
                if self.root(parent) == child {
                    return Answer::Cycle;
                }
                let into = self.tree(self.root(parent));
                let moving = self.fds(&self.subtree(child));
                if moving.iter().any(|(_, fd)| self.has(&into, *fd)) {
                    return Answer::Os;
                }
                self.groups[child].parent = Some(parent);
                Answer::Done
            }
            Op::Unnest { parent, child } => {
                if self.groups[child].parent != Some(parent) {
                    return Answer::NotNested;
                }
                self.groups[child].parent = None;
                Answer::Done
            }
            Op::Write(fd) => {
                self.readable[fd] = true;
                Answer::Done
            }
            Op::Wait(group) => {
                if self.groups[group].parent.is_some() {
                    return Answer::Ready(0);
                }
                for (group, fd) in self.fds(&self.tree(group)) {
                    if self.groups[group].fds[&fd] && self.readable[fd] {
                        // Reading an eventfd empties it.
                        self.readable[fd] = false;
                        self.called.push((group, fd));
                    }
                }
                Answer::Ready(self.called.len())
            }
            Op::Replace(group) => {
                // Children keep the group they are nested in alive.
                if self.subtree(group).len() == 1 {
                    self.groups[group] = ModelGroup::default();
                }
                Answer::Done
            }
        }
    }
}

struct Real {
    groups: Vec<FdGroup>,
    fds: Vec<Rc<EventFd>>,
    called: Rc<RefCell<Vec<(usize, usize)>>>,
}

impl Real {
    fn apply(&mut self, op: Op, replaceable: bool) -> Answer {
        let done = |()| Answer::Done;
        match op {
            Op::Add { group, fd } => {
                let called = self.called.clone();
                let options = FdOptions {
                    kind: FdKind::EventFd,
                    ..FdOptions::default()
                };
                let added = self.groups[group].add(&self.fds[fd], options, move |event| {
                    assert!(event.contains(Readiness::READABLE));
                    called.borrow_mut().push((group, fd));
                });
                answer(added, done)
            }
            Op::Remove { group, fd } => answer(self.groups[group].remove(&self.fds[fd]), done),
            Op::Modify { group, fd, on } => {
                let events = if on {
                    Readiness::READABLE
                } else {
                    Readiness(0)
                };
                answer(self.groups[group].modify(&self.fds[fd], events), done)
            }
            Op::Nest { parent, child } => {
                answer(self.groups[parent].nest(&self.groups[child]), done)
            }
            Op::Unnest { parent, child } => {
                answer(self.groups[parent].unnest(&self.groups[child]), done)
            }
            Op::Write(fd) => {
                self.fds[fd].write(1).expect("far from overflowing");
                Answer::Done
            }
            Op::Wait(group) => {
                let waited = self.groups[group].wait(Some(Duration::ZERO));
                answer(waited, Answer::Ready)
            }
            Op::Replace(group) => {
                if replaceable {
                    self.groups[group] = FdGroup::new().expect("descriptors are left");
                }
                Answer::Done
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..Default::default() })]

    /// IN-020 … 025.
    #[test]
    fn groups_behave_like_a_plain_forest(ops in vec(op(), 1..150)) {
        let mut real = Real {
            groups: (0..GROUPS).map(|_| FdGroup::new().unwrap()).collect(),
            fds: (0..FDS)
                .map(|_| Rc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap()))
                .collect(),
            called: Rc::default(),
        };
        let mut model = Model {
            groups: vec![ModelGroup::default(); GROUPS],
            readable: [false; FDS],
            called: Vec::new(),
        };
        for op in ops {
            let replaceable = match op {
                Op::Replace(group) => model.subtree(group).len() == 1,
                _ => false,
            };
            let expected = model.apply(op);
            prop_assert_eq!(real.apply(op, replaceable), expected, "{:?}", op);
            let mut called = real.called.take();
            called.sort();
            prop_assert_eq!(called, std::mem::take(&mut model.called), "{:?}", op);
            for (at, group) in real.groups.iter().enumerate() {
                prop_assert_eq!(group.fd_count(), model.fd_count(at), "group {} after {:?}", at, op);
                for (fd, real_fd) in real.fds.iter().enumerate() {
                    let watched = model.groups[at].fds.get(&fd);
                    let expected = watched.map(|on| {
                        let events = if *on { Readiness::READABLE } else { Readiness(0) };
                        (events, FdHandlerState::Waiting, String::new())
                    });
                    prop_assert_eq!(group.handler(real_fd), expected);
                }
            }
        }
    }
}
