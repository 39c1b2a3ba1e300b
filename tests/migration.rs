//! MIGRATION.md has a row for every public function of the C headers it speaks of. The lists were
//! taken from SPDK's `include/spdk` in August 2026.

const MIGRATION: &str = include_str!("../MIGRATION.md");

/// The names in the first column of the tables under a heading.
fn rows(heading: &str) -> Vec<&'static str> {
    let section = MIGRATION
        .split(heading)
        .nth(1)
        .expect("the heading is there");
    let table = section
        .split("\n#")
        .next()
        .expect("a section has a first part");
    let first_column = table
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    first_column
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .collect()
}

fn lacks(heading: &str, names: &str) -> Vec<String> {
    let rows = rows(heading);
    let missing = names.lines().filter(|name| !rows.contains(name));
    missing.map(str::to_owned).collect()
}

#[test]
fn every_function_of_spdk_thread_h_has_a_row() {
    let missing = lacks(
        "### `spdk/thread.h`",
        include_str!("migration/spdk_thread_h.txt"),
    );
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn every_function_of_spdk_event_h_has_a_row() {
    let missing = lacks(
        "### `spdk/event.h`",
        include_str!("migration/spdk_event_h.txt"),
    );
    assert!(missing.is_empty(), "{missing:?}");
}

/// A name in the table stands for what is beneath it. The list is made by `async-compat/tokio-items`.
#[test]
fn every_public_item_of_tokio_has_a_row() {
    let rows = rows("### Every public item of tokio");
    let items = include_str!("../async-compat/tests/tokio_items.txt");
    assert!(items.lines().count() > 1000, "the list is whole");
    let is_beneath = |item: &str, row: &str| {
        let rest = item.strip_prefix(row);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    let missing: Vec<&str> = items
        .lines()
        .filter(|item| !rows.iter().any(|row| is_beneath(item, row)))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
    // And no row of the first table names what tokio has not.
    let table = MIGRATION
        .split("### Every public item of tokio")
        .nth(1)
        .expect("it is there");
    let table = table
        .split("Behind tokio's unstable")
        .next()
        .expect("it has a first part");
    let first_column = table
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    for row in first_column.flat_map(|cell| cell.trim_end_matches('`').split("`, `")) {
        assert!(
            items.lines().any(|item| is_beneath(item, row)),
            "{row} is not tokio's"
        );
    }
}
