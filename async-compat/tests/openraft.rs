//! The suite that `openraft` has for a runtime, whole.
#![cfg(feature = "openraft")]

use corespun_compat::openraft::CorespunRuntime;
use openraft_rt::testing::Suite;

/// `Send` and multi-threaded, or neither with the feature `openraft-single-threaded`.
#[test]
fn the_runtime_is_all_that_openraft_asks_for() {
    Suite::<CorespunRuntime>::test_all();
}
