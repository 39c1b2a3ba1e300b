//! The word of a lock that knows its owner: by a number that is not zero, which
//! no two have at a time. Who may do what with it is the business of its user;
//! here is the order: what an owner did before it released the word, the next
//! owner sees.

use super::atomic::{AtomicUsize, Ordering};

/// The number of no owner.
pub(crate) const FREE: usize = 0;

pub(crate) struct OwnerWord(AtomicUsize);

impl OwnerWord {
    pub(crate) fn new() -> Self {
        OwnerWord(AtomicUsize::new(FREE))
    }

    /// The owner, or `FREE`: exact where it is the caller or is not, else stale.
    #[inline]
    pub(crate) fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Makes `me` the owner as soon as there is none, calling `wait` while there
    /// is one. `me` is not the owner.
    #[inline]
    pub(crate) fn acquire(&self, me: usize, mut wait: impl FnMut()) {
        // Pairs with `release`.
        while self
            .0
            .compare_exchange_weak(FREE, me, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            while self.get() != FREE {
                wait();
            }
        }
    }

    /// Frees it. The caller is the owner.
    #[inline]
    pub(crate) fn release(&self) {
        self.0.store(FREE, Ordering::Release);
    }

    /// Leaves it to `heir`, which never releases it. The caller is the owner.
    pub(crate) fn leave_to(&self, heir: usize) {
        self.0.store(heir, Ordering::Relaxed);
    }
}

#[cfg(all(test, corespun_loom))]
mod tests {
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    struct Guarded {
        word: OwnerWord,
        value: UnsafeCell<usize>,
    }

    impl Guarded {
        fn add(&self, me: usize) {
            self.word.acquire(me, thread::yield_now);
            assert_eq!(self.word.get(), me);
            // SAFETY: loom checks that no other thread touches it.
            self.value.with_mut(|value| unsafe { *value += 1 });
            self.word.release();
        }
    }

    /// Each owner sees what the one before did, and is alone.
    #[test]
    fn loom_owners_follow_one_another() {
        loom::model(|| {
            let guarded = Arc::new(Guarded {
                word: OwnerWord::new(),
                value: UnsafeCell::new(0),
            });
            let other = guarded.clone();
            let other = thread::spawn(move || other.add(2));
            guarded.add(1);
            guarded.add(1);
            other.join().unwrap();
            assert_eq!(guarded.word.get(), FREE);
            // SAFETY: the other has ended.
            assert_eq!(guarded.value.with(|value| unsafe { *value }), 3);
        });
    }
}
