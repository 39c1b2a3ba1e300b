//! Each misuse that tokio panics on panics here with the same words: every case runs on both,
//! from one source, and what they say is compared.
#![allow(missing_docs, unused_must_use, reason = "cases that panic")]
#![allow(dropping_copy_types, reason = "cases that panic")]
#![allow(
    clippy::async_yields_async,
    clippy::let_underscore_future,
    reason = "cases that panic"
)]
#![allow(clippy::unit_arg, clippy::drop_non_drop, reason = "cases that panic")]

use std::panic::{AssertUnwindSafe, catch_unwind};

mod ours {
    pub(crate) use corespun_compat as tokio;
    pub(crate) mod cases {
        include!("cases.rs");
    }
}

mod theirs {
    pub(crate) use ::tokio;
    pub(crate) mod cases {
        include!("cases.rs");
    }
}

/// What is refused as clearly in other words: those with the number of a task, those of std, and
/// those that tokio has none of its own for.
const OTHER_WORDS: [&str; 4] = [
    "into_panic_of_a_cancelled_one",
    "join_handle_polled_again",
    "a_null_in_a_name",
    "metrics_of_no_worker",
];

fn said(case: fn()) -> String {
    // A fresh OS thread each: what one leaves behind is not the next one's.
    let said = std::thread::spawn(move || match catch_unwind(AssertUnwindSafe(case)) {
        Ok(()) => "nothing".to_owned(),
        Err(payload) => match payload.downcast::<String>() {
            Ok(text) => *text,
            Err(payload) => (*payload.downcast_ref::<&str>().expect("a text")).to_owned(),
        },
    });
    said.join().expect("it was caught")
}

#[test]
fn each_misuse_is_refused_in_tokios_words() {
    std::panic::set_hook(Box::new(|_| ()));
    let mut wrong = Vec::new();
    for ((name, ours), (_, theirs)) in ours::cases::all().into_iter().zip(theirs::cases::all()) {
        let (ours, theirs) = (said(ours), said(theirs));
        if theirs == "nothing" {
            wrong.push(format!("{name}: tokio does not mind"));
        } else if ours == "nothing" || ours != theirs && !OTHER_WORDS.contains(&name) {
            wrong.push(format!("{name}:\n   here: {ours}\n  tokio: {theirs}"));
        }
    }
    let _ = std::panic::take_hook();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
