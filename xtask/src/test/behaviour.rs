//! Keeps docs/design/behaviour.md true: every rule has a row, and every test named in it exists.

#![cfg(test)]

use std::fs;
use std::path::Path;

use crate::paths;

/// Rules are numbered from 1 to this.
const LAST: usize = 170;

/// Appends all Rust sources below a folder.
fn sources(folder: &Path, text: &mut String) {
    for entry in fs::read_dir(folder).expect("a folder of the tree").flatten() {
        let path = entry.path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            sources(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&fs::read_to_string(&path).expect("a source file"));
        }
    }
}

/// The rows as (number, text).
fn rows(text: &str) -> Vec<(usize, &str)> {
    text.lines()
        .filter_map(|line| {
            let (number, rest) = line.strip_prefix("| B")?.split_once(" | ")?;
            Some((number.parse().ok()?, rest.strip_suffix(" |")?))
        })
        .collect()
}

/// Tests that a row names: what stands in backticks and looks like a function.
fn tests(row: &str) -> Vec<&str> {
    let quoted = row.split('`').skip(1).step_by(2);
    quoted.filter(|name| name.contains('_') && !name.contains('/')).collect()
}

/// Cases of the kit that a row names.
fn cases(row: &str) -> Vec<&str> {
    let list = row.split("; ").find_map(|part| part.strip_prefix("kit ")).unwrap_or_default();
    list.split(" and ").next().unwrap_or_default().split(", ").filter(|id| !id.is_empty()).collect()
}

#[test]
fn every_rule_has_a_row_and_every_test_in_it_exists() {
    let root = paths::root();
    let table = fs::read_to_string(root.join("docs/design/behaviour.md")).expect("the table");
    let kit = fs::read_to_string(root.join("conformance/cases.yaml")).expect("the kit's cases");
    let mut code = String::new();
    for folder in ["lb-common", "lb-agent", "xtask"] {
        sources(&root.join(folder), &mut code);
    }
    let rows = rows(&table);
    let numbers: Vec<usize> = rows.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (1..=LAST).collect::<Vec<_>>());
    for (number, row) in rows {
        for name in tests(row) {
            // a function, or a case of the netns level
            let exists = code.contains(&format!("fn {name}(")) || code.contains(&format!("(\"{name}\","));
            assert!(exists, "B{number} names {name}, which does not exist");
        }
        for id in cases(row) {
            assert!(
                kit.contains(&format!("- id: {id}\n")),
                "B{number} names {id}, which the kit does not have"
            );
        }
        let reason = ["not applicable: ", "open: ", "deliberate difference: "]
            .iter()
            .any(|word| row.split_once(word).is_some_and(|(_, reason)| reason.len() > 10));
        let tested = !tests(row).is_empty() || !cases(row).is_empty();
        assert!(tested || reason, "B{number} has neither a test nor a reason");
    }
}
