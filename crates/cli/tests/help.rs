//! What the binary says of itself. A test that runs the binary also makes cargo build it, for the workspace's tests.

use std::process::Command;

fn stdout(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_lowrank"))
        .args(arguments)
        .output()
        .expect("the binary starts");
    assert!(output.status.success(), "{arguments:?}");
    assert!(output.stderr.is_empty(), "{arguments:?}");
    String::from_utf8(output.stdout).expect("help is UTF-8")
}

#[test]
fn every_verb_is_listed_and_its_help_has_an_example() {
    let listed = stdout(&["--help"]);
    for verb in ["train", "eval", "generate", "chat", "merge", "inspect"] {
        assert!(listed.contains(&format!("\n  {verb} ")), "{listed}");
        let help = stdout(&[verb, "--help"]);
        assert!(
            help.contains(&format!("\nExample: lowrank {verb} ")),
            "{help}"
        );
        assert!(help.contains("--json"), "{help}");
    }
}

#[test]
fn the_version_is_the_packages() {
    let expected = format!("lowrank {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(stdout(&["--version"]), expected);
}
