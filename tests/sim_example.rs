//! The simulator is worth its name: it finds what was planted in an example, and finds it
//! again.

#[allow(dead_code, reason = "its `main` is not run here")]
#[path = "../examples/lost_update.rs"]
mod lost_update;

use lost_update::{Cache, counts, explore, settings};

#[test]
fn the_planted_lost_update_is_found_and_comes_again_the_same_way() {
    let failure = explore(Cache::Forgetful).unwrap_err();
    assert!(failure.message().contains("updates are lost"), "{failure}");
    let again = || {
        let settings = settings().seed(failure.seed());
        settings
            .run(|sim| counts(sim, Cache::Forgetful))
            .unwrap_err()
    };
    assert_eq!(again().trace(), failure.trace());
    assert_eq!(again().trace().fingerprint(), failure.trace().fingerprint());
    println!("{failure}");
}

#[test]
fn the_example_without_its_mistake_loses_nothing() {
    assert_eq!(explore(Cache::Careful).unwrap(), 1000);
}
