//! Lines that are put into files that exist.

use anyhow::{Context, Result, ensure};

/// From the text of a file, the family's name and that of its type to the new text.
pub type Edit = fn(&str, &str, &str) -> Result<String>;

/// Where the crate is, in the workspace's table of dependencies.
pub fn workspace(text: &str, name: &str, _: &str) -> Result<String> {
    let line = format!("lowrank-{name} = {{ path = \"crates/families/{name}\" }}");
    insert_sorted(text, "[workspace.dependencies]", &line)
}

/// The registry's dependency.
pub fn registry_manifest(text: &str, name: &str, _: &str) -> Result<String> {
    insert_sorted(
        text,
        "[dependencies]",
        &format!("lowrank-{name}.workspace = true"),
    )
}

/// The registry's list of families, sorted. What is built is no longer planned.
pub fn registry_list(text: &str, name: &str, type_name: &str) -> Result<String> {
    let entry = format!("&lowrank_{name}::{type_name}");
    let text = edit_list(
        text,
        "pub static FAMILIES: &[&dyn AnyFamily] = &[",
        |list| {
            list.push(entry);
            list.sort();
        },
    )?;
    let planned = format!("\"{name}\"");
    if !text.contains(&planned) {
        return Ok(text);
    }
    edit_list(&text, "const PLANNED: &[&str] = &[", |list| {
        list.retain(|entry| *entry != planned);
    })
}

/// Adds a line to our own crates of a table.
fn insert_sorted(text: &str, table: &str, line: &str) -> Result<String> {
    let mut lines: Vec<&str> = text.lines().collect();
    let first = lines.iter().position(|found| *found == table);
    let first = first.with_context(|| format!("there is no table {table}"))? + 1;
    let ours = |line: &str| line.starts_with("lowrank");
    let skipped = lines[first..]
        .iter()
        .take_while(|line| !ours(line) && !line.starts_with('['));
    let start = first + skipped.count();
    let count = lines[start..].iter().take_while(|line| ours(line)).count();
    ensure!(count > 0, "{table} has no line that begins with `lowrank`");
    let key = |line: &str| line.split([' ', '.']).next().unwrap_or_default().to_owned();
    let place = lines[start..start + count]
        .iter()
        .position(|found| key(found) > key(line));
    lines.insert(start + place.unwrap_or(count), line);
    Ok(lines.join("\n") + "\n")
}

/// Edits the entries between `start` and the next bracket.
fn edit_list(text: &str, start: &str, edit: impl FnOnce(&mut Vec<String>)) -> Result<String> {
    let found = text.split_once(start).and_then(|(before, rest)| {
        let (list, after) = rest.split_once("];")?;
        Some((before, list, after))
    });
    let (before, list, after) = found.with_context(|| format!("there is no `{start}`"))?;
    let entries = list.split(',').map(str::trim);
    let mut entries: Vec<String> = entries
        .filter(|entry| !entry.is_empty())
        .map(str::to_owned)
        .collect();
    edit(&mut entries);
    let one_line = format!("{start}{}];", entries.join(", "));
    // As rustfmt breaks it.
    let edited = if one_line.len() <= 100 {
        one_line
    } else {
        format!("{start}\n    {},\n];", entries.join(",\n    "))
    };
    Ok(format!("{before}{edited}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_go_where_they_belong() -> Result<()> {
        let text = "[a]\nx = 1\n[dependencies]\ncandle.workspace = true\nlowrank-b.workspace = true\n\
                    lowrank-d.workspace = true\nserde.workspace = true\n";
        for (name, before) in [("a", "lowrank-b"), ("c", "lowrank-d"), ("e", "serde")] {
            let line = format!("lowrank-{name}.workspace = true\n");
            let expected = text.replacen(before, &format!("{line}{before}"), 1);
            assert_eq!(registry_manifest(text, name, "")?, expected);
        }
        assert!(registry_manifest("[dependencies]\nserde = 1\n", "a", "").is_err());
        assert!(registry_manifest("[lints]\n", "a", "").is_err());
        Ok(())
    }

    #[test]
    fn long_lists_break() -> Result<()> {
        let short = "pub static FAMILIES: &[&dyn AnyFamily] = &[&lowrank_b::B];\nconst PLANNED: &[&str] = &[];\n";
        let two = registry_list(short, "a", "A")?;
        assert!(two.starts_with(
            "pub static FAMILIES: &[&dyn AnyFamily] = &[&lowrank_a::A, &lowrank_b::B];\n"
        ));
        let three = registry_list(&two, "anotherone", "Anotherone")?;
        let expected = "pub static FAMILIES: &[&dyn AnyFamily] = &[\n    &lowrank_a::A,\n    \
                        &lowrank_anotherone::Anotherone,\n    &lowrank_b::B,\n];\n";
        assert!(three.starts_with(expected), "{three}");
        Ok(())
    }
}
