//! The table of rooms in the crate's documentation tells the truth: from the top down,
//! each module uses only what stands in a row below its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Modules by the row of the table they stand in, counted from the top.
fn rows() -> BTreeMap<String, usize> {
    let table = include_str!("../src/lib.rs")
        .lines()
        .filter_map(|line| line.strip_prefix("//! | "))
        .filter(|line| line.starts_with(['[', '`']));
    let mut rows = BTreeMap::new();
    for (row, line) in table.enumerate() {
        let modules = line.split(" | ").next().unwrap_or_default();
        let names = modules.split('`').skip(1).step_by(2);
        rows.extend(names.map(|name| (name.to_owned(), row)));
    }
    rows
}

/// The source files below `directory` that are not tests.
fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|it| it == "rs")
            && !name.ends_with("tests")
            && !name.starts_with("loom_")
        {
            found.push(path);
        }
    }
}

/// The code of a file: without comments, and up to a module of tests at its end.
fn code(source: &str) -> String {
    let code = source.split("#[cfg(test)]\nmod").next().unwrap_or_default();
    let lines = code.lines().map(|line| line.split("//").next());
    lines.flatten().collect::<Vec<_>>().join("\n")
}

/// The modules of this crate that `code` names: `crate::io::…`, `crate::{io::…, task}`.
fn uses(code: &str) -> Vec<&str> {
    let mut named = Vec::new();
    for path in code.split("crate::").skip(1) {
        match path.strip_prefix('{') {
            None => named.push(word(path)),
            Some(list) => named.extend(first_words(list)),
        }
    }
    named
}

fn word(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_');
    &text[..end.unwrap_or(text.len())]
}

/// The first word of each path of a `use` list, up to the brace that ends it.
fn first_words(list: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let (mut depth, mut start) = (0, 0);
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            ',' | '}' if depth == 0 => {
                words.push(word(list[start..at].trim_start()));
                start = at + 1;
                if c == '}' {
                    return words;
                }
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    words
}

#[test]
fn no_module_uses_one_that_stands_above_it() {
    let rows = rows();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&source, &mut files);
    let mut wrong = Vec::new();
    for file in files {
        let below_source = file.strip_prefix(&source).unwrap();
        let first = below_source.iter().next().unwrap().to_string_lossy();
        let module = first.trim_end_matches(".rs");
        if module == "lib" {
            continue;
        }
        let Some(row) = rows.get(module) else {
            wrong.push(format!("{module} is not in the table of src/lib.rs"));
            continue;
        };
        for used in uses(&code(&fs::read_to_string(&file).unwrap())) {
            // What is no module is a macro, which names its own.
            let above = rows.get(used).is_some_and(|other| other <= row);
            if above && used != module {
                wrong.push(format!("{} uses {used}", below_source.display()));
            }
        }
    }
    wrong.sort();
    wrong.dedup();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn what_a_file_uses_is_found() {
    let file =
        "use crate::io::{Driver, self};\n// crate::app\nuse crate::{task::{a, b}, net,\n time};";
    assert_eq!(uses(&code(file)), ["io", "task", "net", "time"]);
}
