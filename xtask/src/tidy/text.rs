//! Rules about the text of one file.

/// Longer Rust files are a hard failure.
const MOST_LINES: usize = 800;

/// What may not occur in Rust, and what to do instead. Written in halves, since this file is checked too.
const FORBIDDEN: [(&str, &str); 5] = [
    (
        concat!("#[al", "low("),
        "use #[expect(lint, reason = \"..\")]",
    ),
    (
        concat!("#![al", "low("),
        "use #![expect(lint, reason = \"..\")]",
    ),
    (
        concat!("to", "do!"),
        "finish it, or return an error that says `not yet supported`",
    ),
    (concat!("db", "g!("), "remove it"),
    (
        concat!("#[ig", "nore"),
        "fix or delete the test; slow ones run under RUN_SLOW_TESTS=1",
    ),
];

/// Beginnings of paths that exist on one machine only.
const MACHINE_PATHS: [&str; 3] = [
    concat!("/wo", "rk/"),
    concat!("/ho", "me/"),
    concat!("/ro", "ot/"),
];

/// The breaches of one file, each as `path:line: what`.
pub fn check(path: &str, text: &str) -> Vec<String> {
    let mut breaches = Vec::new();
    let rust = path.ends_with(".rs");
    let lines = text.lines().count();
    if rust && lines > MOST_LINES {
        breaches.push(format!(
            "{path}: {lines} lines, at most {MOST_LINES}: split it"
        ));
    }
    for (number, line) in (1..).zip(text.lines()) {
        for (word, advice) in FORBIDDEN {
            if rust && line.contains(word) {
                breaches.push(format!("{path}:{number}: `{word}`: {advice}"));
            }
        }
        for start in MACHINE_PATHS {
            if is_absolute(line, start) {
                breaches.push(format!(
                    "{path}:{number}: `{start}` is a path of one machine"
                ));
            }
        }
    }
    breaches
}

/// True if `start` begins a path in the line, and is not the middle of one.
fn is_absolute(line: &str, start: &str) -> bool {
    line.match_indices(start).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        before.is_none_or(|c| !c.is_alphanumeric() && !"_-.*~}".contains(c))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_files_fail() {
        assert_eq!(check("a.rs", &"x\n".repeat(800)), [""; 0]);
        assert_eq!(
            check("a.rs", &"x\n".repeat(801)),
            ["a.rs: 801 lines, at most 800: split it"]
        );
        assert_eq!(check("a.json", &"x\n".repeat(801)), [""; 0]);
    }

    #[test]
    fn forbidden_words_fail_in_rust() {
        for (word, advice) in FORBIDDEN {
            let text = format!("fn main() {{\n    {word}\n}}\n");
            assert_eq!(
                check("src/a.rs", &text),
                [format!("src/a.rs:2: `{word}`: {advice}")]
            );
            assert_eq!(check("a.md", &text), [""; 0]);
        }
    }

    #[test]
    fn machine_paths_fail_everywhere() {
        for start in MACHINE_PATHS {
            for text in [
                format!("{start}x"),
                format!("see \"{start}x\""),
                format!("file://{start}x"),
            ] {
                assert_eq!(
                    check("a.toml", &text),
                    [format!("a.toml:1: `{start}` is a path of one machine")],
                    "{text}"
                );
            }
            for text in [
                format!("some{start}x"),
                format!("..{start}x"),
                format!("${{here}}{start}x"),
            ] {
                assert_eq!(check("a.toml", &text), [""; 0], "{text}");
            }
        }
    }
}
