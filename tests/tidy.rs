//! Checks on the text of the repository itself: who names whom, that files say what they are, and that documents name what exists.
//!
//! It reads sources as text, well enough for how this project writes them; it is no parser of Rust.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// What everyone may name, and what names nothing of ours.
const BASE: [&str; 4] = ["limits", "clock", "error", "metrics"];

/// Which modules each may name beside [`BASE`] and itself. A new arrow is a decision: make it here, with its reason in the commit.
const ARROWS: &[(&str, &[&str])] = &[
    ("limits", &[]),
    ("clock", &[]),
    ("error", &[]),
    ("metrics", &[]),
    ("kv", &[]),
    ("wire", &["kv"]),
    ("store", &["kv"]),
    ("purge", &["kv", "wire"]),
    ("origin", &["kv", "purge", "store"]),
    ("cache", &["kv", "purge", "wire"]),
    ("api", &["kv", "wire"]),
    ("config", &[]),
    ("roles", &["kv", "wire", "store", "purge", "origin", "cache", "api", "config"]),
    ("cli", &["kv", "wire", "store", "origin", "cache", "api", "config", "roles"]),
];

/// Without the tests at its end.
const FILE_LINES_MAX: usize = 700;

/// How the tests at the end of a source begin.
const TESTS_START: &str = "#[cfg(test)]\nmod tests {";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file under a folder of the repository with one of these endings, leaving out what tools put there.
fn files(folder: &str, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("reading {}: {e}", folder.display()));
        for entry in entries {
            let path = entry.expect("a folder's entry is read").path();
            let name = path.file_name().and_then(|name| name.to_str()).expect("names are UTF-8");
            if path.is_dir() {
                if !["target", "node_modules"].contains(&name) && !name.starts_with('.') {
                    folders.push(path);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("reading {}: {e}", path.display()))
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// Tests that outgrew the file they test: `foo/tests.rs`, and what lies in `foo/tests/`.
fn is_test(path: &Path) -> bool {
    let parts = || path.strip_prefix(root()).unwrap_or(path).iter();
    parts().any(|part| part == "tests")
        || parts().next_back().is_some_and(|name| name == "tests.rs" || name == "contract.rs")
}

/// The module under `src` that a source belongs to: `cache` for `src/cache/tier.rs`.
fn module(path: &Path) -> String {
    let inside = path.strip_prefix(root().join("src")).expect("it is a source");
    let first = inside.iter().next().and_then(|part| part.to_str()).expect("a source has a name");
    first.trim_end_matches(".rs").to_owned()
}

/// The source without comments, and without the tests at its end.
fn product(source: &str) -> String {
    let code = source.split(TESTS_START).next().unwrap_or_default();
    code.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// The first parts of all `crate::` paths: `crate::kv::Key`, and each of `crate::{clock::Clock, kv}`.
fn named(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, matched) in code.match_indices("crate::") {
        let rest = &code[at + matched.len()..];
        match rest.strip_prefix('{') {
            None => _ = found.insert(identifier(rest)),
            Some(group) => {
                let mut depth = 0;
                let mut start = true;
                for (offset, c) in group.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => start = true,
                        c if start && (c.is_alphanumeric() || c == '_') => {
                            found.insert(identifier(&group[offset..]));
                            start = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    found
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

#[test]
fn grouped_and_plain_paths_are_both_found() {
    let code = "use crate::{\n    clock::{self, Clock},\n    kv::{Key, reserved},\n    error,\n};\nlet _ = crate::wire::NAMESPACE;";
    assert_eq!(named(code).into_iter().collect::<Vec<_>>(), ["clock", "error", "kv", "wire"]);
    assert_eq!(named(&product("// crate::store\n#[cfg(test)]\nmod tests {\n crate::store")).len(), 0);
}

#[test]
fn modules_name_only_whom_they_may() {
    let mut wrong = Vec::new();
    for path in files("src", &[".rs"]) {
        let module = module(&path);
        if ["lib", "main"].contains(&module.as_str()) || is_test(&path) {
            continue;
        }
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == module) else {
            wrong.push(format!("{} belongs to no module that tests/tidy.rs knows", shown(&path)));
            continue;
        };
        for name in named(&product(&read(&path))) {
            let known = ARROWS.iter().any(|(known, _)| *known == name);
            let base = BASE.contains(&name.as_str()) && !BASE.contains(&module.as_str());
            if known && name != module && !base && !allowed.contains(&name.as_str()) {
                wrong.push(format!("{} names {name}, which {module} may not", shown(&path)));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_source_says_at_its_head_what_it_is() {
    let mut wrong = Vec::new();
    for path in files("src", &[".rs"]).into_iter().chain(files("tests", &[".rs"])) {
        let text = read(&path);
        if !text.starts_with("//! ") || text.starts_with("//! (") {
            wrong.push(format!("{} does not open with `//!` and a sentence", shown(&path)));
        }
        let lines = text.split(TESTS_START).next().unwrap_or_default().lines().count();
        if lines > FILE_LINES_MAX {
            wrong.push(format!(
                "{} has {lines} lines, more than {FILE_LINES_MAX}: is there a second noun in it?",
                shown(&path)
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn nothing_unfinished_or_foreign_is_left_in_the_text() {
    // Written in two parts, so that this file may be read, too.
    let unwanted = [
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("X", "XX"),
        concat!("/wo", "rk/"),
        concat!("../sha", "red"),
        concat!("not ", "wired yet"),
    ];
    let mut wrong = Vec::new();
    for path in files("", &[".rs", ".md", ".toml", ".js", ".mjs", ".py", ".go", ".sh"]) {
        let text = read(&path);
        for (index, line) in text.lines().enumerate() {
            for word in unwanted {
                if line.contains(word) {
                    wrong.push(format!("{}:{}: '{word}'", shown(&path), index + 1));
                }
            }
            if path.extension().is_some_and(|ending| ending == "rs") && !line.is_ascii() {
                wrong.push(format!("{}:{}: not ASCII", shown(&path), index + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Every `path/like.this` between backticks in a document.
fn paths_named(text: &str) -> Vec<&str> {
    let looks_like_a_path = |code: &&str| {
        let ending = [".rs", ".md", ".toml", "/"].iter().any(|ending| code.ends_with(ending));
        ending && !code.starts_with(['/', '-', '.', '[']) && !code.contains([' ', '*', ':', '<', '('])
    };
    text.split('`').skip(1).step_by(2).filter(looks_like_a_path).collect()
}

#[test]
fn documents_name_only_files_that_exist() {
    let mut wrong = Vec::new();
    let documents =
        ["README.md", "ARCHITECTURE.md"].map(|name| root().join(name)).into_iter().chain(files("docs", &[".md"]));
    for document in documents {
        // Blocks of code are not prose, and their fences would shift the pairing of backticks.
        let text: String = read(&document).split("```").step_by(2).collect();
        for path in paths_named(&text) {
            let somewhere =
                [root().join(path), root().join("src").join(path)].iter().any(|candidate| candidate.exists());
            if !somewhere {
                wrong.push(format!("{} names {path}, which does not exist", shown(&document)));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_metric_is_documented_and_no_other() {
    let metrics = kvasar::metrics::Metrics::default();
    metrics.door(kvasar::metrics::Door::Rest, "test");
    metrics.tier("test");
    metrics.feed("test");
    metrics.fleet("test").member("test");
    let counted: BTreeSet<String> = metrics
        .render()
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .map(|line| match line.split_once(' ') {
            Some((name, "counter")) => format!("{name}_total"),
            Some((name, _)) => name.to_owned(),
            None => panic!("'{line}' names a type"),
        })
        .collect();
    let text = read(&root().join("docs/operations.md"));
    let documented: BTreeSet<String> =
        text.split('`').skip(1).step_by(2).filter(|code| code.starts_with("kvasar_")).map(str::to_owned).collect();
    assert_eq!(documented, counted);
}

#[test]
fn the_map_names_every_module() {
    let map = read(&root().join("ARCHITECTURE.md"));
    let missing: Vec<String> = files("src", &[".rs"])
        .into_iter()
        .filter(|path| !is_test(path) && !path.ends_with("mod.rs"))
        .map(|path| shown(&path).trim_start_matches("src/").to_owned())
        .filter(|path| {
            let name = path.rsplit('/').next().expect("a path has a last part");
            !map.contains(name)
        })
        .collect();
    assert!(missing.is_empty(), "ARCHITECTURE.md's map leaves out: {}", missing.join(", "));
}
