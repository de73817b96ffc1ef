//! The same tests of what a GPU runs.

use lowrank_ops as ops;
use std::process::Command;

/// Runs the other tests of this binary once more with every function computed by its composed twin, as on a GPU; but for
/// those whose names hold one of these words.
pub fn run_composed(but: &[&str]) {
    let variable = ops::composed::VARIABLE;
    if std::env::var_os(variable).is_some() {
        return;
    }
    let mut tests = Command::new(std::env::current_exe().unwrap());
    tests.env(variable, "composed");
    tests.args(but.iter().flat_map(|word| ["--skip", word]));
    let output = tests.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(!said.contains(" 0 passed"), "{said}");
}
