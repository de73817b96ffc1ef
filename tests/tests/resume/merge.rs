//! Killed merges.

use crate::folders::tree;
use crate::kill::Moment;
use lowrank::ops::rng::{Key, Purpose};
use lowrank_tests::{binary, golden};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const KILLS: usize = 20;

#[test]
fn a_killed_merge_leaves_the_whole_folder_or_what_was_there() {
    let root = tempfile::tempdir().unwrap();
    let merge = |adapter: &str, out: &Path, flags: &[&str]| {
        let mut command = Command::new(binary::path().unwrap());
        command.args(["--quiet", "merge", "--model"]);
        command
            .arg(golden::folder().join("models/plain"))
            .arg("--adapter");
        command.arg(golden::folder().join("cases/lora").join(adapter));
        command.arg("--out").arg(out).args(flags);
        command
    };
    let complete = |adapter: &str, out: &Path, flags: &[&str]| {
        let output = merge(adapter, out, flags).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        tree(out)
    };
    let whole = |adapter: &str| complete(adapter, &root.path().join(adapter), &[]);
    let (old, new) = (whole("adapter_init"), whole("adapter_final"));
    assert!(old != new && old.keys().eq(new.keys()));
    let mut whole = Duration::MAX;
    let mut random = Key::new(41, Purpose::Test).stream();
    let (mut kills, mut attempts) = (0, 0);
    while kills < KILLS {
        attempts += 1;
        assert!(
            attempts < 10 * KILLS,
            "the merges end before they are killed"
        );
        let folder = root.path().join(attempts.to_string());
        let out = folder.join("merged");
        let mut flags: &[&str] = &[];
        if attempts % 2 == 0 {
            assert!(complete("adapter_init", &out, &[]) == old);
            flags = &["--force"];
        }
        let moment = match attempts % 3 {
            0 => Moment::Staged("", ".merged."),
            _ => Moment::After(
                whole
                    .min(Duration::from_millis(50))
                    .mul_f64(random.uniform()),
            ),
        };
        let start = Instant::now();
        if moment.kill(merge("adapter_final", &out, flags), &folder) {
            kills += 1;
        } else {
            whole = whole.min(start.elapsed());
        }
        let found = tree(&out);
        let kept = if flags.is_empty() {
            !out.exists()
        } else {
            found == old
        };
        assert!(kept || found == new, "attempt {attempts}, {moment:?}");
        // What is left beside it is in nobody's way.
        assert!(complete("adapter_final", &out, &["--force"]) == new);
    }
}
