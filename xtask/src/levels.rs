//! `cargo xtask levels`: the tests of what is computed, once for each set of vector instructions and number of threads.

use anyhow::{Context, Result, bail, ensure};
use lowrank_ops::simd::{Level, VARIABLE};
use serde::Deserialize;
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::Instant;

/// Folders of the packages all of whose tests are run.
const PACKAGES: [&str; 7] = [
    "crates/adapter",
    "crates/conformance",
    "crates/families/",
    "crates/frozen",
    "crates/merge",
    "crates/models",
    "crates/ops",
];

/// Of the tests across crates: what begins with one of these compares numbers.
const ACROSS: [&str; 3] = ["parity_", "same_bytes", "storages"];

/// What is run where no combination is named.
const THREADS: [usize; 2] = [1, 2];

/// A set of instructions and a number of threads.
#[derive(Debug, Clone, Copy)]
pub struct Combination {
    word: &'static str,
    level: Level,
    threads: usize,
}

impl FromStr for Combination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (word, threads) = text.split_once(':')?;
            let (word, level) = Level::WORDS.into_iter().find(|(known, _)| *known == word)?;
            let threads = threads.parse().ok().filter(|threads| *threads > 0)?;
            Some(Self {
                word,
                level,
                threads,
            })
        };
        parse().ok_or_else(|| {
            let words = Level::WORDS.map(|(word, _)| word).join(", ");
            format!("expected LEVEL:THREADS, as in avx2:1, with a level out of {words}")
        })
    }
}

/// Builds the tests once and runs them for each combination, all of them if none is named; a level that the machine lacks
/// is named and left out.
pub fn run(root: &Path, only: &[Combination]) -> Result<()> {
    let tests = build(root)?;
    let all = Level::WORDS.into_iter().flat_map(|(word, level)| {
        THREADS.map(|threads| Combination {
            word,
            level,
            threads,
        })
    });
    let chosen = match only {
        [] => all.collect(),
        only => only.to_vec(),
    };
    eprintln!("{} test programs", tests.len());
    let mut failed = 0;
    for combination in chosen {
        let Combination { word, threads, .. } = combination;
        let name = format!("{word:<12} threads {threads}:");
        if combination.level > Level::of_machine() {
            eprintln!("{name} not run, this machine lacks {word}");
            continue;
        }
        let start = Instant::now();
        let counts = combination.run(&tests)?;
        let seconds = start.elapsed().as_secs_f64();
        eprintln!(
            "{name} {} passed, {} failed, {seconds:.0} s",
            counts.passed, counts.failed
        );
        failed += counts.failed;
    }
    ensure!(failed == 0, "{failed} tests failed");
    Ok(())
}

impl Combination {
    fn run(self, tests: &[Test]) -> Result<Counts> {
        let mut all = Counts::default();
        for test in tests {
            let output = Command::new(&test.program)
                .current_dir(&test.package)
                // As cargo does; proptest looks there for what failed before.
                .env("CARGO_MANIFEST_DIR", &test.package)
                .env(VARIABLE, self.word)
                .env("RAYON_NUM_THREADS", self.threads.to_string())
                .output()
                .with_context(|| format!("cannot run {}", test.program.display()))?;
            let text = String::from_utf8_lossy(&output.stdout);
            let counts = Counts::read(&text).unwrap_or(Counts {
                passed: 0,
                failed: 1,
            });
            if !output.status.success() {
                let name = test.program.file_name().unwrap_or_default();
                eprintln!("{}: {}", name.display(), output.status);
                eprintln!("{text}{}", String::from_utf8_lossy(&output.stderr));
                ensure!(counts.failed > 0, "a program failed and no test of it did");
            }
            all.passed += counts.passed;
            all.failed += counts.failed;
        }
        Ok(all)
    }
}

/// How many tests of a program ended how.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: usize,
    failed: usize,
}

impl Counts {
    /// From what the program printed; `None` if it did not get to the end.
    fn read(text: &str) -> Option<Self> {
        let line = text
            .lines()
            .rev()
            .find(|line| line.starts_with("test result: "))?;
        let count = |what: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let pair = words.windows(2).find(|pair| pair[1] == what)?;
            pair[0].parse().ok()
        };
        Some(Self {
            passed: count("passed;")?,
            failed: count("failed;")?,
        })
    }
}

/// A program with tests, and the folder of its package, which it runs in.
struct Test {
    program: PathBuf,
    package: PathBuf,
}

/// What is read of a message of cargo.
#[derive(Deserialize)]
struct Message {
    executable: Option<PathBuf>,
    #[serde(default)]
    manifest_path: PathBuf,
    profile: Option<Profile>,
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

/// The whole workspace, as `cargo test --workspace` builds it: another selection could mean other features of
/// dependencies, and a second build.
fn build(root: &Path) -> Result<Vec<Test>> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["test", "--workspace", "--no-run", "--quiet"])
        .args(["--message-format", "json-render-diagnostics"])
        .current_dir(root)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    ensure!(output.status.success(), "cargo cannot build the tests");
    let mut tests = Vec::new();
    for line in String::from_utf8(output.stdout)?.lines() {
        let message: Message = serde_json::from_str(line).context("a message of cargo")?;
        if let (Some(program), Some(target)) = (message.executable, message.target)
            && message.profile.is_some_and(|profile| profile.test)
            && let Some(package) = message.manifest_path.parent()
            && is_chosen(package.strip_prefix(root).unwrap_or(package), &target.name)
        {
            let package = package.to_path_buf();
            tests.push(Test { program, package });
        }
    }
    if tests.is_empty() {
        bail!("cargo names no test program");
    }
    tests.sort_by(|a, b| a.program.cmp(&b.program));
    Ok(tests)
}

/// Whether the target of a package, a folder relative to the root, is run.
fn is_chosen(package: &Path, target: &str) -> bool {
    let package = package.to_string_lossy().replace('\\', "/");
    match &*package {
        "tests" => ACROSS.iter().any(|start| target.starts_with(start)),
        package => PACKAGES
            .iter()
            .any(|known| package == *known || known.ends_with('/') && package.starts_with(known)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_those_of_the_last_line() {
        let text = "test result: none\n\ntest result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 1 filtered out\n\n";
        let counts = Counts {
            passed: 12,
            failed: 3,
        };
        assert_eq!(Counts::read(text), Some(counts));
        assert_eq!(Counts::read("running 4 tests\ntest a ... ok\n"), None);
    }

    #[test]
    fn what_computes_is_chosen() {
        for (package, target, expected) in [
            ("crates/ops", "gemm", true),
            ("crates/families/lora", "conformance", true),
            ("crates/opsx", "gemm", false),
            ("crates/cli", "help", false),
            ("tests", "parity_steps", true),
            ("tests", "bad_inputs", false),
        ] {
            let chosen = is_chosen(Path::new(package), target);
            assert_eq!(chosen, expected, "{package} {target}");
        }
    }

    #[test]
    fn a_combination_is_a_level_and_a_number() {
        let found: Combination = "avx512_bf16:2".parse().expect("a combination");
        assert_eq!(
            (found.word, found.level, found.threads),
            ("avx512_bf16", Level::Avx512Bf16, 2)
        );
        for text in ["avx2", "avx2:0", "avx3:1", ":1", "avx2:x"] {
            let error = text.parse::<Combination>().expect_err(text);
            assert!(error.contains("LEVEL:THREADS"), "{error}");
        }
    }
}
