//! Runs on a disk that is too small: a small tmpfs in a mount namespace of its own, where the system allows one.

use crate::folders::{names, tree};
use crate::scene::{Scene, metrics};
use lowrank_tests::binary;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Mounts, runs, keeps what is left, makes room, resumes, keeps what is left. What it mounts is gone when it ends.
const SCRIPT: &str = r#"
size=$1; disk=$2; kept=$3; shift 3
mount -t tmpfs -o "size=$size" tmpfs "$disk" || exit 99
"$@"; code=$?
cp -R "$disk/." "$kept/first"
[ $code = 0 ] && exit 0
mount -o remount,size=64m "$disk" || exit 98
"$@" --resume 2>"$kept/second.txt" || exit 97
cp -R "$disk/." "$kept/second"
exit $code
"#;

fn on_a_disk(size: u64, disk: &Path, kept: &Path, command: &Command) -> Output {
    for folder in [disk, &kept.join("first"), &kept.join("second")] {
        fs::create_dir_all(folder).unwrap();
    }
    let mut shell = Command::new("unshare");
    shell.args(["--map-root-user", "--mount", "sh", "-c", SCRIPT, "sh"]);
    shell.arg(size.to_string()).arg(disk).arg(kept);
    shell.arg(command.get_program()).args(command.get_args());
    if let Some(folder) = command.get_current_dir() {
        shell.current_dir(folder);
    }
    shell.output().unwrap()
}

fn can_mount(root: &Path) -> bool {
    let (disk, kept) = (root.join("try"), root.join("tried"));
    let mut nothing = Command::new("true");
    nothing.current_dir(root);
    Command::new("unshare").arg("--version").output().is_ok()
        && on_a_disk(1 << 20, &disk, &kept, &nothing).status.success()
}

/// All files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    tree(folder).into_keys().map(PathBuf::from).collect()
}

#[test]
fn a_full_disk_leaves_the_last_checkpoint_whole_and_a_message() {
    let root = tempfile::tempdir().unwrap();
    if !can_mount(root.path()) {
        eprintln!("not run: no tmpfs can be mounted here");
        return;
    }
    binary::path().unwrap();
    let scene = Scene::new("steps = 20\nsave_every = 3\nload_best = true");
    let disk = scene.folder("disk");
    let all = scene.folder("all");
    // Every checkpoint there ever is.
    let everything = scene.finish(&all, &["--set", "train.keep_checkpoints=99"]);
    let folder = scene.folder("whole");
    let expected = scene.finish(&folder, &[]);
    let total: u64 = tree(&folder).values().map(|bytes| bytes.len() as u64).sum();
    let (mut failed, mut blamed) = (0, BTreeSet::new());
    for part in 1.. {
        let kept = root.path().join(part.to_string());
        let run = disk.join("run");
        let output = on_a_disk(total * part / 6, &disk, &kept, &scene.train(&run, &[]));
        let said = String::from_utf8(output.stderr).unwrap();
        if output.status.success() {
            break;
        }
        failed += 1;
        assert!(part < 40, "{said}");
        assert_eq!(output.status.code(), Some(1), "{said}");
        let start = said
            .find("cannot write ")
            .unwrap_or_else(|| panic!("{said}"));
        let named = said[start + "cannot write ".len()..]
            .split([' ', ':'])
            .next()
            .unwrap();
        let named = Path::new(named).strip_prefix(&disk).unwrap();
        assert!(!named.to_str().unwrap().contains(".tmp"), "{said}");
        blamed.insert(named.file_name().unwrap().to_str().unwrap().to_owned());
        assert!(
            said.contains(": No space left on device (os error 28); free some space there and run again; with `--resume` the run goes on"),
            "{said}"
        );
        let first = kept.join("first/run");
        for file in files(&first) {
            assert!(
                !file.to_str().unwrap().contains(".tmp"),
                "{part}: {}",
                file.display()
            );
        }
        // What has a name is whole.
        for name in names(&first.join("checkpoints")) {
            let found = tree(&first.join("checkpoints").join(&name));
            assert!(
                found == tree(&all.join("checkpoints").join(&name)),
                "{part}: {name}"
            );
        }
        let adapter = tree(&first.join("adapter"));
        assert!(adapter.is_empty(), "{part}: {:?}", adapter.keys());
        let text = fs::read_to_string(first.join("metrics.jsonl")).unwrap_or_default();
        assert!(text.is_empty() || text.ends_with('\n'), "{part}: {text}");
        let lines = metrics(&first);
        assert_eq!(lines, everything.metrics[..lines.len()], "{part}");

        let second = kept.join("second/run");
        assert!(tree(&second.join("adapter")) == expected.adapter, "{part}");
        assert!(
            tree(&second.join("checkpoints")) == expected.checkpoints,
            "{part}"
        );
        assert_eq!(metrics(&second), expected.metrics, "{part}");
    }
    assert!(failed >= 5, "{failed} {blamed:?}");
    assert!(blamed.len() >= 3, "{blamed:?}");
    assert!(
        blamed.contains("params.safetensors") || blamed.contains("moments.safetensors"),
        "{blamed:?}"
    );
}
