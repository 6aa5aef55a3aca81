//! The licence texts of all components, each text once.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::components::Component;
use crate::paths;

/// How files with a licence's text are called.
const NAMES: &[&str] = &["licen", "copying", "copyright", "notice", "unlicense"];

/// All texts as one, with the packages that each is for.
///
/// # Errors
/// A package says nothing of its licence, or has no text and no licence whose text is known here.
pub(crate) fn text(components: &[Component]) -> Result<String> {
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for component in components {
        let name = format!("{} {}", component.name, component.version);
        ensure!(!component.licence.is_empty(), "{name} does not say under what licence it is");
        for text in of(component).with_context(|| name.clone())? {
            let users = texts.entry(text).or_default();
            if !users.contains(&name) {
                users.push(name.clone());
            }
        }
    }
    let mut out = String::from("What lb-agent contains, and under what licences.\n\n");
    for component in components {
        writeln!(out, "{} {}: {}", component.name, component.version, component.licence)?;
    }
    out.push_str(
        "\nlb-ebpf, and with it the kernel programs inside lb-agent, may be used under either licence: the kernel\n\
         lends some helper functions to GPL-compatible programs only, so their object declares one.\n",
    );
    let mut ordered: Vec<_> = texts.into_iter().collect();
    ordered.sort_by(|a, b| a.1.cmp(&b.1).then_with(|| a.0.cmp(&b.0)));
    for (text, users) in ordered {
        write!(out, "\n{}\n{}\n\n{}\n", "-".repeat(80), users.join(", "), text)?;
    }
    Ok(out)
}

/// The texts that come with a package; Apache-2.0's own where none does and that is one of its licences.
fn of(component: &Component) -> Result<Vec<String>> {
    if component.texts.is_empty() {
        ensure!(
            component.licence.contains("Apache-2.0"),
            "it comes without a licence text, and no text of {} is at hand here",
            component.licence
        );
        return Ok(vec![read(&paths::root().join("LICENSE"))?]);
    }
    component.texts.iter().map(|file| read(file)).collect()
}

/// Files with licence texts in a package's folder, and in folders there that are named so; sorted.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let list = |folder: &Path| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let named = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        NAMES.iter().any(|start| name.starts_with(start)) && !name.ends_with(".rs")
    };
    let mut found = Vec::new();
    for path in list(folder).into_iter().filter(|path| named(path)) {
        if path.is_dir() { found.extend(list(&path)) } else { found.push(path) }
    }
    found.retain(|path| path.is_file());
    found.sort();
    found
}

/// A text without the differences that mean nothing.
fn read(file: &Path) -> Result<String> {
    let bytes = fs::read(file).with_context(|| file.display().to_string())?;
    let text = String::from_utf8_lossy(&bytes).replace('\r', "");
    Ok(text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n").trim_matches('\n').to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn component(name: &str, licence: &str, texts: Vec<PathBuf>) -> Component {
        Component {
            name: name.into(),
            version: "1.0.0".into(),
            licence: licence.into(),
            texts,
            registry: Some("cargo"),
            uses: BTreeSet::new(),
        }
    }

    #[test]
    fn equal_texts_are_printed_once_and_a_missing_one_is_an_error() {
        let found = files(&paths::root());
        assert_eq!(found, [paths::root().join("LICENSE")]);
        let both = [component("a", "Apache-2.0", found.clone()), component("b", "Apache-2.0", found)];
        let both = text(&both).unwrap();
        assert_eq!(both.matches("TERMS AND CONDITIONS FOR USE").count(), 1);
        assert!(both.contains("a 1.0.0, b 1.0.0"));

        assert!(text(&[component("c", "MIT OR Apache-2.0", Vec::new())]).is_ok());
        let error = format!("{:#}", text(&[component("d", "MIT", Vec::new())]).unwrap_err());
        assert!(error.contains("d 1.0.0") && error.contains("without a licence text"), "{error}");
        assert!(text(&[component("e", "", Vec::new())]).is_err());
    }
}
