use super::*;
use crate::source;

fn write(folder: &AtomicFolder, text: &str) {
    fs::create_dir(folder.path().join("sub")).unwrap();
    fs::write(folder.path().join("sub/file"), text).unwrap();
}

fn read(target: &Path) -> String {
    fs::read_to_string(target.join("sub/file")).unwrap()
}

#[test]
fn a_folder_appears_when_it_is_committed() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("runs/first");
    let folder = AtomicFolder::create(&target, Existing::Refuse).unwrap();
    write(&folder, "one");
    assert!(!target.exists());
    assert_eq!(folder.commit().unwrap(), target);
    assert_eq!(read(&target), "one");
    assert_eq!(source::list(&dir.path().join("runs")).unwrap(), ["first"]);
}

#[test]
fn a_dropped_folder_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let folder = AtomicFolder::create(&dir.path().join("a/b/out"), Existing::Refuse).unwrap();
    write(&folder, "half");
    let names = source::list(&dir.path().join("a/b")).unwrap();
    assert!(
        names[0].starts_with(".out.") && names[0].ends_with(".tmp"),
        "{names:?}"
    );
    drop(folder);
    assert_eq!(source::list(dir.path()).unwrap(), [""; 0]);
}

#[test]
fn a_folder_that_is_not_empty_is_refused_or_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    fs::create_dir(&target).unwrap();
    // An empty folder is no obstacle.
    let first = AtomicFolder::create(&target, Existing::Refuse).unwrap();
    write(&first, "old");
    first.commit().unwrap();

    let message = AtomicFolder::create(&target, Existing::Refuse)
        .unwrap_err()
        .to_string();
    let path = target.display();
    let expected = format!(
        "{path} already exists and is not empty; choose another folder or ask for it to be replaced"
    );
    assert_eq!(message, expected);

    let dropped = AtomicFolder::create(&target, Existing::Replace).unwrap();
    write(&dropped, "never");
    drop(dropped);
    assert_eq!(read(&target), "old");

    let second = AtomicFolder::create(&target, Existing::Replace).unwrap();
    write(&second, "new");
    assert_eq!(read(&target), "old");
    second.commit().unwrap();
    assert_eq!(read(&target), "new");
    assert_eq!(source::list(dir.path()).unwrap(), ["out"]);

    let third = AtomicFolder::create(&target, Existing::Replace).unwrap();
    write(&third, "newest");
    third.replace_in_two_steps().unwrap();
    drop(third);
    assert_eq!(read(&target), "newest");
    assert_eq!(source::list(dir.path()).unwrap(), ["out"]);
}

#[test]
fn what_appeared_meanwhile_is_not_replaced_unasked() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    let slow = AtomicFolder::create(&target, Existing::Refuse).unwrap();
    let quick = AtomicFolder::create(&target, Existing::Refuse).unwrap();
    write(&slow, "slow");
    write(&quick, "quick");
    quick.commit().unwrap();
    assert!(
        slow.commit()
            .unwrap_err()
            .to_string()
            .contains("already exists and is not empty")
    );
    assert_eq!(read(&target), "quick");
    assert_eq!(source::list(dir.path()).unwrap(), ["out"]);
}

#[test]
fn an_output_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    let message = |target: &Path| {
        let error = AtomicFolder::create(target, Existing::Replace).unwrap_err();
        error
            .to_string()
            .replace(&dir.path().display().to_string(), "DIR")
    };
    assert!(message(&file.join("out")).starts_with("cannot create DIR/file/out: Not a directory"));

    assert_eq!(
        message(&file),
        "DIR/file already exists and is not a folder; choose another folder or ask for it to be replaced"
    );
    assert!(message(Path::new("/")).starts_with("/: is not a name"));

    let error = atomic_write_file(&dir.path().join("none/f"), b"x")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("cannot create a file in") && error.contains("/none: No such file"),
        "{error}"
    );
}

#[cfg(unix)]
#[test]
fn a_read_only_parent_is_named() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let parent = dir.path().join("parent");
    fs::create_dir(&parent).unwrap();
    fs::set_permissions(&parent, fs::Permissions::from_mode(0o555)).unwrap();
    // The superuser may write anyway: then there is no such error to report.
    if fs::write(parent.join("probe"), "").is_err() {
        let error = AtomicFolder::create(&parent.join("out"), Existing::Refuse).unwrap_err();
        let expected = format!(
            "cannot create a folder in {}: Permission denied",
            parent.display()
        );
        assert!(error.to_string().starts_with(&expected), "{error}");
    }
    fs::set_permissions(&parent, fs::Permissions::from_mode(0o755)).unwrap();
}

#[cfg(unix)]
#[test]
fn others_may_read_what_is_written() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    let ordinary = dir.path().join("ordinary");
    fs::create_dir(&ordinary).unwrap();
    fs::write(ordinary.join("f"), "x").unwrap();

    let target = dir.path().join("out");
    let folder = AtomicFolder::create(&target, Existing::Refuse).unwrap();
    atomic_write_file(&folder.path().join("f"), b"x").unwrap();
    folder.commit().unwrap();
    assert_eq!(mode(&target), mode(&ordinary));
    assert_eq!(mode(&target.join("f")), mode(&ordinary.join("f")));
}

#[cfg(unix)]
#[test]
fn a_link_to_a_folder_keeps_leading_to_it() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("real/sub")).unwrap();
    fs::write(dir.path().join("real/sub/file"), "old").unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(dir.path().join("real"), &link).unwrap();
    let folder = AtomicFolder::create(&link, Existing::Replace).unwrap();
    write(&folder, "new");
    folder.commit().unwrap();
    assert!(link.is_symlink());
    assert_eq!(read(&dir.path().join("real")), "new");
}

#[test]
fn a_file_is_replaced_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.json");
    atomic_write_file(&path, b"first, and longer").unwrap();
    atomic_write_file(&path, b"second").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"second");
    let failed = atomic_write(&path, 0, |_| Err(Error::content(&path, "no")));
    assert_eq!(
        failed.unwrap_err().to_string(),
        format!("{}: no", path.display())
    );
    assert_eq!(fs::read(&path).unwrap(), b"second");
    assert_eq!(source::list(dir.path()).unwrap(), ["state.json"]);
}
